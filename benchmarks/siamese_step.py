"""One SimCLR training step, augmentation included: ours beside the same step put together from lightly's
parts.

Both make two views of 64 colour pictures of 48 pixels in memory (random resized crop, flip, colour jitter,
grey, blur, normalise with SimCLR's figures), pass the 128 views through a Vision Transformer of width 96
and 4 blocks and SimCLR's head, and update by AdamW. Ours augments the batch at once; lightly's transform
takes PIL pictures one by one, here in the same process, so that each arm's processor time is all there.
With workers lightly's clock would show less, its processor time would not. Arms take turns; figures are
medians over the turns, ratios are taken turn by turn. Run: python -m benchmarks.siamese_step"""

import json, time, warnings
from statistics import median
import torch
from PIL import Image
from torch import nn
from vit_ssl_lab.data import load
from vit_ssl_lab.results import save_result

BATCH, SIZE, PATCH = 64, 48, 8
MODEL = dict(img_size=SIZE, patch_size=PATCH, embed_dim=96, depth=4, num_heads=3, num_classes=0)
PHASES = ('augmentation', 'forward', 'backward', 'update')


def ours(images):
    from vit_ssl_lab.encoders.vit import ViT
    from vit_ssl_lab.methods.simclr import SimCLR

    model = SimCLR(ViT(**MODEL))
    return model, lambda index: model.views(images[index]), lambda views: model(views)['loss']


class Lightly(nn.Module):
    "SimCLR from lightly's parts, as its documentation shows, on timm's Vision Transformer."

    def __init__(self):
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from timm.models.vision_transformer import VisionTransformer

        self.encoder = VisionTransformer(**MODEL)
        self.head = SimCLRProjectionHead(96, 96, 128)
        self.loss = NTXentLoss(temperature=0.1)

    def forward(self, views):
        z1, z2 = self.head(self.encoder(torch.cat(views))).chunk(2)
        return self.loss(z1, z2)


def lightly(images):
    from lightly.transforms import SimCLRTransform

    model = Lightly()
    transform = SimCLRTransform(input_size=SIZE)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
    return model, lambda index: [torch.stack(v) for v in zip(*(transform(pictures[i]) for i in index))], model


ARMS = {'ours': ours, 'lightly': lightly}


def make(name: str, images):
    "A step that returns how long its phases took, by the clock and in processor time."
    torch.manual_seed(0)
    model, augment, loss_of = ARMS[name](images)
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)

    def step():
        index = torch.randperm(len(images))[:BATCH]
        marks = []

        def mark():
            marks.append((time.perf_counter(), time.process_time()))

        mark()
        views = augment(index)
        mark()
        loss = loss_of(views)
        mark()
        loss.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad()
        mark()
        return [[b[i] - a[i] for a, b in zip(marks, marks[1:])] for i in (0, 1)]

    return step


def turns(threads: int, rounds: int, images) -> dict:
    torch.set_num_threads(threads)
    steps = {name: make(name, images) for name in ARMS}
    times = {name: [] for name in ARMS}
    for step in steps.values():
        step()
        step()  # warm-up
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(step())
    return times


def ratio_to_ours(times: dict, name: str, clock: int) -> float:
    "The median over the rounds of an arm's time to ours; clock 0: wall, 1: CPU."
    return median(sum(t[clock]) / sum(ours[clock]) for t, ours in zip(times[name], times['ours']))


def main(rounds: int = 21) -> dict:
    warnings.filterwarnings('ignore')
    images = load('scenes').images[:1024]
    rows = []
    for threads in (1, 2):
        times = turns(threads, rounds, images)
        for name in ARMS:
            wall_ratio, cpu_ratio = (ratio_to_ours(times, name, clock) for clock in (0, 1))
            phases = {}
            for p, phase in enumerate(PHASES):
                phases[f'{phase}_ms'] = round(1000 * median(t[0][p] for t in times[name]), 1)
            rows.append(
                dict(
                    arm=name,
                    threads=threads,
                    step_ms=round(1000 * median(sum(t[0]) for t in times[name]), 1),
                    time_to_ours=round(wall_ratio, 3),
                    cpu_to_ours=round(cpu_ratio, 3),
                    augmentation_share=round(median(t[0][0] / sum(t[0]) for t in times[name]), 3),
                    **phases,
                )
            )
    save_result(
        'bench_siamese_step',
        rows,
        batch=BATCH,
        size=SIZE,
        rounds=rounds,
        model='ViT of width 96, 4 blocks, patch 8; SimCLR',
    )
    return dict(rows=rows)


if __name__ == '__main__':
    print(json.dumps(main(), indent=1))
