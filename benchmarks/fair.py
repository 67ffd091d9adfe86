"""The fair benchmark: every method gets the same encoder, pictures, views, budget, number of tuning trials
and seeds.

A row is tuned by three pre-training runs that differ in the learning rate only, judged by kNN on held-out
training pictures; the best is then run with three seeds and scored on the test set. Each run is a process
of its own, on one thread, so that time and memory are its own. Stored under results/fair_benchmark.json,
row by row.

    python -m benchmarks.fair               # what is missing
    python -m benchmarks.fair simclr byol   # these rows, anew"""

import argparse, json, os, resource, subprocess, sys
from dataclasses import replace
import torch
from vit_ssl_lab.core import transfer_encoder
from vit_ssl_lab.data import load
from vit_ssl_lab.evaluation import describe_health, extract, knn, linear_probe, random_encoder_like
from vit_ssl_lab.evaluation.features import RawPixels
from vit_ssl_lab.results import load_result, results_dir, save_result
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training.build import method_class, method_names

NAME = 'fair_benchmark'
ROWS = tuple(method_names())  # a new method joins there
BASELINES = ('raw pixels', 'random encoder')
# the same for every row
SEEDS = (0, 1, 2)
FACTORS = (1 / 3, 1.0, 3.0)
TUNING_SEED = 100
BUDGET = dict(
    data='scenes',
    encoder='vit_nano',
    img_size=32,
    patch_size=8,
    batch_size=64,
    steps=250,
    optimizer='adamw',
    weight_decay=0.05,
    decay_all=False,
    constant_lr=(),
    lr_factors={},
    lr_scale=None,
    warmup=0.1,
)
RATE = 2e-3  # the middle learning rate of every row
OPTIONS = dict(data_options=dict(size=32), encoder_options=dict(positions='sincos', global_pool='avg'))
# of every Siamese row; a method that masks keeps its own, which belong to its idea
VIEWS = dict(views='mocov2', views_options=dict(scale=(0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.2), blur=0.0))
OWN_ENCODER = {  # what a method can't do without; the rest is the common encoder
    'extrema': dict(encoder_options=dict(positions='sincos', global_pool='class_attention')),
    'mp3': dict(encoder_options=dict(positions='none', class_token=False, global_pool='avg')),
    'fcmae': dict(encoder='convnextv2_yocto', encoder_options={}),
    'flip': dict(
        encoder_options=dict(positions='sincos', global_pool='avg', class_token=False, fc_norm=False)
    ),
}


def recipe_of(row: str, factor: float, seed: int):
    "The recipe of one run: the method's laptop recipe within the common budget."
    masks = 'noise' in method_class(row).needs
    view_fields = {} if masks else VIEWS
    base = replace(recipe(row, 'laptop'), **OPTIONS, **view_fields)
    budget = BUDGET | OWN_ENCODER.get(row, {})
    return replace(base, **budget, epochs=None, base_lr=RATE * factor, seed=seed)


def parts():
    """Labelled pictures for the bank, for tuning and for the test; of all rows only SupMAE sees labels, and
    FLIP captions, in pre-training."""
    train, test = (load(BUDGET['data'], split, **OPTIONS['data_options']) for split in ('train', 'test'))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(7))
    return train, train.at(order[:3000]), train.at(order[3000:5000]), test.subset(2000)


def scores(encoder, bank, unseen) -> dict:
    "kNN on the pooled vector; linear probes on the pooled vector and on the means of nine regions."
    regions = 'pooled' if isinstance(encoder, RawPixels) else 'regions'
    return dict(
        knn=float(knn(encoder, bank, unseen)),
        probe_pooled=float(linear_probe(encoder, bank, unseen, features='pooled')),
        probe_regions=float(linear_probe(encoder, bank, unseen, features=regions)),
    )


def one(row: str, factor: float, seed: int, tuning: bool) -> dict:
    "One run, in this process."
    torch.set_num_threads(1)
    train, bank, held_out, test = parts()
    if row == 'raw pixels':
        return scores(RawPixels(), bank, test)
    if row == 'random encoder':
        mae = build(recipe_of('mae', 1.0, seed), train)
        return scores(random_encoder_like(mae.encoder, seed), bank, test)
    chosen = recipe_of(row, factor, seed)
    method = build(chosen, train)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    history = pretrain(method, train, chosen, quiet=True, device='cpu')
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if tuning:
        accuracy = float(knn(transfer_encoder(method), bank, held_out))
        return dict(factor=factor, base_lr=chosen.base_lr, knn=accuracy)
    own = {}
    if row in OWN_ENCODER:  # its random encoder isn't the common one
        own['random'] = scores(random_encoder_like(transfer_encoder(method), seed), bank, test)
    return dict(
        scores(transfer_encoder(method), bank, test),
        seconds=history.seconds,
        memory_mib=memory,
        loss=history.rows[-1]['loss'],
        parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        health=describe_health(extract(transfer_encoder(method), test)[0]),
        **own,
    )


def run(row: str, factor: float = 1.0, seed: int = 0, tuning: bool = False) -> dict:
    "One run, in a process of its own."
    call = [sys.executable, '-m', 'benchmarks.fair', '--one', json.dumps([row, factor, seed, tuning])]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    if done.returncode:
        raise RuntimeError(
            f"The run of {row} with seed {seed} failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_row(row: str) -> dict:
    "Tune, then run all seeds."
    if row in BASELINES:
        seeds = SEEDS if row == 'random encoder' else SEEDS[:1]
        return dict(trials=[], seeds={str(s): run(row, seed=s) for s in seeds})
    trials = [run(row, factor, TUNING_SEED, True) for factor in FACTORS]
    best = max(trials, key=lambda t: t['knn'])
    runs = {str(s): run(row, best['factor'], s) for s in SEEDS}
    return dict(trials=trials, base_lr=best['base_lr'], seeds=runs)


def setting() -> dict:
    "What is the same for every row, as it is stored beside the runs."
    fields = dict(BUDGET, **OPTIONS, **VIEWS, base_lr=RATE, seeds=SEEDS, factors=FACTORS)
    return json.loads(json.dumps(fields))  # tuples as lists, as they are read back


def main(rows=()) -> dict:
    "Make these rows anew, or all that are missing; each is stored as soon as it is there."
    budget = setting()

    def known():  # read again before each save: another process may have made rows meanwhile
        if not (results_dir() / f'{NAME}.json').exists():
            return {}
        stored = load_result(NAME)
        return stored['figures'] if stored['setting'] == budget else {}

    figures = known()
    for row in rows or [r for r in (*BASELINES, *ROWS) if r not in figures]:
        made = make_row(row)
        unordered = known() | {row: made}
        figures = {r: unordered[r] for r in (*BASELINES, *ROWS) if r in unordered}
        save_result(NAME, figures, **budget)
        numbers = [f"{k} {v:.1f}" for k, v in made['seeds']['0'].items() if isinstance(v, float)]
        print(f"{row}: {', '.join(numbers)}", flush=True)
    return dict(rows=[dict(row=r, **f['seeds']['0']) for r, f in figures.items()])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('rows', nargs='*', help=', '.join((*BASELINES, *ROWS)))
    p.add_argument('--one', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(one(*json.loads(args.one))))
    else:
        unknown = [r for r in args.rows if r not in (*BASELINES, *ROWS)]
        if unknown:
            p.error(f"there is no row {unknown[0]!r}; there are: {', '.join((*BASELINES, *ROWS))}")
        main(args.rows)
