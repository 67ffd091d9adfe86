"""make bench: every benchmark of this folder, one after the other; tables on the screen, figures under
results/bench_*.json."""

import importlib, sys
import pandas as pd
import torch

NAMES = [
    'mae_step',
    'siamese_step',
    'two_views',
    'hog',
    'explorers',
    *(['gpu'] if torch.cuda.is_available() else []),
]


def run() -> None:
    for name in sys.argv[1:] or NAMES:
        sys.argv[1:] = []  # the benchmarks have arguments of their own
        rows = importlib.import_module(f'benchmarks.{name}').main()['rows']
        print(f'\n{name}\n{pd.DataFrame(rows).to_string(index=False)}', flush=True)


run()
