"""Two augmented views of Fashion-MNIST: pictures a second of four pipelines that do the same work.

Every arm makes MoCo v2's two views (random resized crop, flip, colour jitter, grey, blur, normalise) from
the pictures in memory, with all cores of the machine: ours and kornia batched with one thread a core,
lightly and torchvision on PIL with one worker process a core. Arms take turns, so that a slow moment of
the machine meets all of them; figures are medians over the turns. Processor time stands beside the clock:
it is the same on a machine that has other work to do. Run: python benchmarks/two_views.py"""

import argparse, os, time, warnings
from statistics import median
import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader
from vit_ssl_lab.data import load
from vit_ssl_lab.data.views import views
from vit_ssl_lab.results import save_result

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


class Pictures(torch.utils.data.Dataset):
    "The pictures as PIL images, with a transform: what a torchvision or lightly user has."

    def __init__(self, images, transform):
        self.arrays = images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.transform = transform

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.arrays[i]))


def forever(loader):
    while True:
        yield from loader


def ours(images, batch, mean, std):
    "Batched on the device."
    two = views('mocov2', images.shape[-1], mean, std)
    while True:
        for index in torch.randperm(len(images)).split(batch)[:-1]:
            yield two(images[index])


def lightly(images, batch, mean, std):
    "lightly's own MoCo v2 transform in worker processes."
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=images.shape[-1], normalize=dict(mean=list(mean), std=list(std)))
    return forever(
        DataLoader(
            Pictures(images, transform),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=CORES,
            persistent_workers=True,
        )
    )


def torchvision(images, batch, mean, std):
    "torchvision's transforms (v2) on PIL in worker processes."
    from torchvision.transforms import v2

    one = v2.Compose(
        [
            v2.RandomResizedCrop(images.shape[-1], (0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return forever(
        DataLoader(
            Pictures(images, lambda p: [one(p), one(p)]),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=CORES,
            persistent_workers=True,
        )
    )


def kornia(images, batch, mean, std):
    "kornia's batched augmentations; they want colour, so grey pictures are repeated over three channels."
    import kornia.augmentation as K

    size = images.shape[-1]

    def three(v):
        return torch.tensor(v if len(v) == 3 else list(v) * 3)

    one = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), (0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        K.Normalize(three(mean), three(std)),
    )
    while True:
        for index in torch.randperm(len(images)).split(batch)[:-1]:
            x = images[index].float().div(255).expand(-1, 3, -1, -1)
            yield [one(x), one(x)]


ARMS = dict(ours=ours, lightly=lightly, torchvision=torchvision, kornia=kornia)


def cpu_seconds():
    "What this process and its workers have used so far."
    return sum(sum(p.cpu_times()[:2]) for p in [psutil.Process(), *psutil.Process().children(recursive=True)])


def measure(images, mean, std, batch, rounds, seconds):
    "Every arm's rounds as (pictures a second, pictures a second of processor time)."
    pipelines = {name: make(images, batch, mean, std) for name, make in ARMS.items()}
    for pipeline in pipelines.values():
        next(pipeline)  # start workers, fill caches
    rates = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, pipeline in pipelines.items():
            for _ in range(2 * CORES + 1):
                next(pipeline)  # what worker processes made while others ran doesn't count
            start = time.perf_counter()
            used = cpu_seconds()
            n = 0
            while time.perf_counter() - start < seconds:
                n += len(next(pipeline)[0])
            rates[name].append((n / (time.perf_counter() - start), n / (cpu_seconds() - used)))
    return rates


def main(
    rounds: int = 5,
    seconds: float = 2.0,
    batch: int = 256,
    pictures: int = 20_000,
    threads: int | None = None,
) -> dict:
    """Measure grey (28 px, as the data set is) and colour (the same pictures in three channels); store and
    return {'rows': [...]}."""
    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads or CORES)
    torch.manual_seed(0)
    np.random.seed(0)
    data = load('fashion-mnist').subset(pictures)
    rows = []
    for kind, images, mean, std in [
        ('grey 28 px', data.images, data.mean, data.std),
        ('colour 28 px', data.images.expand(-1, 3, -1, -1).contiguous(), data.mean * 3, data.std * 3),
    ]:
        rates = measure(images, mean, std, batch, rounds, seconds)
        for name in ARMS:
            wall, cpu = zip(*rates[name])
            ratios, cpu_ratios = ([a[i] / b[i] for a, b in zip(rates['ours'], rates[name])] for i in (0, 1))
            rows.append(
                dict(
                    pictures=kind,
                    arm=name,
                    images_per_second=round(median(wall)),
                    ours_is_times=round(median(ratios), 2),
                    images_per_cpu_second=round(median(cpu)),
                    ours_is_times_per_cpu_second=round(median(cpu_ratios), 2),
                    rounds=[round(r) for r in wall],
                )
            )
    save_result(
        'bench_two_views',
        dict(rows=rows),
        batch=batch,
        rounds=rounds,
        seconds=seconds,
        cores=CORES,
        threads=threads or CORES,
        policy='mocov2',
    )
    return dict(rows=rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=2.0)
    parser.add_argument('--threads', type=int, help='of the batched arms; default: one a core')
    args = parser.parse_args()
    for row in main(args.rounds, args.seconds, threads=args.threads)['rows']:
        speed = f"{row['pictures']:14} {row['arm']:12} {row['images_per_second']:8,} images/s"
        gain = f"ours is {row['ours_is_times']:.1f} times as fast"
        per_cpu = f"{row['ours_is_times_per_cpu_second']:.1f} times for the same processor time"
        print(f"{speed}   {gain}, {per_cpu}")
