"""HOG of a batch: pictures a second of ours, of the official layer's form, and of scikit-image.

Ours and the official form (a tensor of one picture a bin, filled by scatter and then cut into cells;
written anew here) give the same numbers and run on the same device, and on a GPU too where there is one.
scikit-image takes one grey picture at a time, so each of its colour pictures is three calls; its settings
are the ones that it shares with ours (plain difference, one cell a block). Arms take turns, so that a slow
moment of the machine meets all of them; figures are medians over the rounds. Run: python benchmarks/hog.py"""

import argparse, math, os, time
from statistics import median
import torch
import torch.nn.functional as F
from skimage.feature import hog as skimage_hog
from vit_ssl_lab.components.hog import hog
from vit_ssl_lab.results import save_result

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def ours(x, cell):
    return hog(x, cell)


def official_form(x, cell, bins=9):
    "Depth-wise convolutions, a picture a bin, unfold and sum."
    c = x.shape[1]
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=x.device).expand(c, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode='reflect')
    gx = F.conv2d(padded, kernel, groups=c)
    gy = F.conv2d(padded, kernel.mT, groups=c)
    votes = torch.stack([gx, gy], -1).norm(dim=-1)[:, :, None]
    bin_of = (torch.atan2(gx, gy) / math.pi * bins).floor().long()[:, :, None] % bins
    out = x.new_zeros(*gx.shape[:2], bins, *gx.shape[2:]).scatter_add_(2, bin_of, votes)
    return F.normalize(out.unfold(3, cell, cell).unfold(4, cell, cell).sum((-1, -2)), dim=2)


def scikit_image(x, cell):
    "One channel of one picture at a time."
    for channel in x.flatten(0, 1).numpy():
        skimage_hog(channel, 9, (cell, cell), (1, 1), block_norm='L2', feature_vector=False)


def measure(size: int, cell: int, batch: int, rounds: int) -> dict[str, list[float]]:
    "Pictures a second of every arm, round by round."
    x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    # the last is slow: fewer pictures
    arms = {
        'ours': (ours, x),
        'official form': (official_form, x),
        'scikit-image': (scikit_image, x[: max(1, batch // 16)]),
    }
    if torch.cuda.is_available():
        arms |= {f'{name}, GPU': (f, x.cuda()) for name, (f, _) in list(arms.items())[:2]}
    away = (ours(x, cell) - official_form(x, cell)).abs()
    assert (away > 1e-5).float().mean() < 1e-4, "the same numbers, but for votes on the border of two bins"
    rates = {name: [] for name in arms}
    for r in range(rounds + 1):  # the first is not counted
        for name, (f, v) in arms.items():
            if v.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10 if v.is_cuda else 1):
                f(v, cell)
            if v.is_cuda:
                torch.cuda.synchronize()
            if r:
                rates[name].append(len(v) * (10 if v.is_cuda else 1) / (time.perf_counter() - start))
    return rates


def main(rounds: int = 7, threads: int | None = None) -> dict:
    "Measure both sizes, store and return {'rows': [...]}."
    torch.set_num_threads(threads or CORES)
    rows = []
    for size, cell, batch in ((48, 4, 256), (224, 8, 32)):
        rates = measure(size, cell, batch, rounds)
        for name, rate in rates.items():
            base = rates['ours, GPU' if name.endswith('GPU') else 'ours']
            rows.append(
                dict(
                    pictures=f'{size} px, cells of {cell}',
                    arm=name,
                    images_per_second=round(median(rate)),
                    ours_is_times=round(median(a / b for a, b in zip(base, rate)), 2),
                    rounds=[round(v) for v in rate],
                )
            )
    save_result('bench_hog', dict(rows=rows), rounds=rounds, cores=CORES, threads=threads or CORES)
    return dict(rows=rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, help='of the batched arms; default: one a core')
    args = parser.parse_args()
    for row in main(args.rounds, args.threads)['rows']:
        speed = f"{row['pictures']:20} {row['arm']:20} {row['images_per_second']:9,} images/s"
        print(f"{speed}   ours is {row['ours_is_times']:.1f} times as fast")
