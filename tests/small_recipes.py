"""Every recipe of every method in miniature: the structure that its options describe, on narrow networks and
small pictures. Shared by the tests that go through all of them. Importable by a child process."""

from importlib import import_module
from typing import Any, Iterator

import torch
from helpers import seeded
from torch import Tensor, nn
from vit_ssl_lab.data.dataset import Dataset
from vit_ssl_lab.recipe import Recipe, encoder_family
from vit_ssl_lab.training import build
from vit_ssl_lab.training.build import method_names

BATCH = 11  # 5 and 6 on two processes, 3, 4 and 4 on three
PICTURES = 24  # two batches, and a last one of two pictures: one of three processes has none

ENCODERS: dict[str, tuple[str, dict]] = {
    'vit': ('vit_nano', dict(embed_dim=24, depth=2, num_heads=2)),
    'resnet': ('resnet_nano', dict(channels=(8, 8, 16, 16))),
    'convnextv2': ('convnextv2_yocto', dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))),
    'swin': ('swin_nano', dict(embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4))),
}
# an option of a method -> its value in miniature; what a recipe doesn't have, or has as None, isn't changed
METHOD_OPTIONS: dict[str, Any] = dict(
    hidden=16,
    dim=8,
    pred_dim=8,
    bottleneck=8,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    queue=2 * BATCH,
    text_encoder='text_nano',
)


def every_recipe() -> Iterator[tuple[str, str]]:
    "Method and scale of every recipe of the package."
    for method in method_names():
        for scale in import_module(f'vit_ssl_lab.methods.{method}').RECIPES:
            yield method, scale


def small_recipe(method: str, scale: str, **changes: Any) -> Recipe:
    "A recipe in miniature, of three steps."
    module = import_module(f'vit_ssl_lab.methods.{method}')
    full: Recipe = module.RECIPES[scale]
    family = encoder_family(full.encoder)
    encoder, size = ENCODERS[family]
    kept = {name: value for name, value in full.encoder_options.items() if name not in size}
    options = {name: value for name, value in METHOD_OPTIONS.items() if full.method_options.get(name)}
    if 'target_options' in full.method_options:
        options['target_options'] = dict(cell=4)
    if 'text_options' in full.method_options:
        options['text_options'] = dict(width=16, layers=1, heads=2, own_words=True)
    patch, side = {'vit': (8, 32), 'resnet': (None, 32), 'convnextv2': (8, 32), 'swin': (2, 32)}[family]
    views = {}
    if full.views_options.get('local') or 'dino' in (full.views, method):
        views = dict(local=2, local_size=16)
    small = full.but(
        encoder=encoder,
        patch_size=patch,
        img_size=side,
        method_options=options,
        views_options=views,
        batch_size=BATCH,
        steps=3,
        drop_last='queue' in full.method_options,
        warmup=0,
        precision='fp32',
        log_every=1,
    )
    small = small.but(encoder_options=kept | size)
    return small.but(**changes)


def few_pictures() -> Dataset:
    "Pictures with three channels, labels and captions."
    images = torch.randint(0, 256, (PICTURES, 3, 36, 36), dtype=torch.uint8, generator=seeded(0))
    labels = torch.arange(PICTURES) % 3
    classes = ['a cat', 'a dog', 'a bird']
    captions = [f'a picture of {classes[label]}' for label in labels.tolist()]
    return Dataset(
        images=images,
        labels=labels,
        classes=classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        name='few',
        split='train',
        truths=dict(caption=captions),
    )


def inputs_of(method: Any, data: Dataset, n: int = 4) -> tuple[Any, dict[str, Tensor]]:
    "What a training step hands to a method: views of the first pictures, and what it needs beside them."
    needed = {}
    if 'noise' in method.needs:
        needed['noise'] = torch.rand(n, *method.noise_shape)
    if 'labels' in method.needs:
        needed['labels'] = data.labels[:n]
    if 'captions' in method.needs:
        needed['captions'] = method.tokenize(data.truths['caption'][:n])
    return method.views(data.images[:n]), needed


def small_method(method: str, scale: str, **changes: Any) -> nn.Module:
    "The method of a recipe in miniature."
    return build(small_recipe(method, scale, **changes), few_pictures())
