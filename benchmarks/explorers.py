"""How long a reader waits for a reconstruction after a click: the laptop model on the CPU, one picture, all
panels. Run: python -m benchmarks.explorers"""

import json, time
from statistics import median
import torch
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.data import load
from vit_ssl_lab.explorers import ReconstructionExplorer
from vit_ssl_lab.results import save_result
from vit_ssl_lab.training import build, recipe


def main(clicks: int = 40) -> dict:
    test = load('scenes', 'test')
    method = build(recipe('mae', 'laptop'), test).eval()
    widget = ReconstructionExplorer(method, test)
    times = []
    model = []
    for seed in range(clicks):
        start = time.perf_counter()
        widget.seed = seed + 1
        times.append(1000 * (time.perf_counter() - start))
        mask = random_masking(1, method.grid, 0.75)
        start = time.perf_counter()
        method.reconstruct(test.images[:1], mask)
        model.append(1000 * (time.perf_counter() - start))
    rows = [
        dict(
            what='change of the seed, all panes',
            median_ms=round(median(times), 1),
            slowest_ms=round(max(times), 1),
        ),
        dict(what='reconstruct alone', median_ms=round(median(model), 1), slowest_ms=round(max(model), 1)),
    ]
    save_result('bench_explorers', rows, clicks=clicks, threads=torch.get_num_threads())
    return dict(rows=rows)


if __name__ == '__main__':
    print(json.dumps(main(), indent=1))
