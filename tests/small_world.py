"""The package used as people use it, in miniature: what tests/malformed.py records its good calls from.

Names are looked up in their modules at the moment of the call, so that a recorder put there sees them."""

import contextlib, importlib
from pathlib import Path
from typing import Any, Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vit_ssl_lab import (
    blueprint, check, comparison, core, data, encoders, explorers, notebook, recipe, results, show,
    weight_files, weight_layouts, weights,
)  # fmt: skip
from vit_ssl_lab.components import (
    attention, clip, decoders, distillation, heads, hog, initialisation, lean, losses, masking, momentum,
    norms, patches, positions, processes, queue, reconstruction, stems, targets, tokenizer,
)  # fmt: skip
from vit_ssl_lab.data import builtin, dataset, download, folders, image_text, operations, photographs, scenes
from vit_ssl_lab.data import pictures as pixels
from vit_ssl_lab.encoders import backbone, convnextv2, resnet, swin, text, vit
from vit_ssl_lab.explorers import base, collapse
from vit_ssl_lab.methods import extrema, flip, mae, maskfeat, mp3, sdssl, simsiam
from vit_ssl_lab.studies import critical_factors
from vit_ssl_lab.training import checkpoints, cli, history, loop, optim


def module(name: str) -> Any:
    "A module whose package exports a function of the same name."
    return importlib.import_module(f'vit_ssl_lab.{name}')


build, load, views = map(module, ('training.build', 'data.load', 'data.views'))
attributes, few_labels, zero_shot = map(
    module, ('evaluation.attributes', 'evaluation.few_labels', 'evaluation.zero_shot')
)
correspondence, features, invariance = map(
    module, ('evaluation.correspondence', 'evaluation.features', 'evaluation.invariance')
)
finetune, knn, linear_probe = map(
    module, ('evaluation.finetune', 'evaluation.knn', 'evaluation.linear_probe')
)
health, table = map(module, ('evaluation.health', 'evaluation.table'))
painting, maps = map(module, ('explorers.mask', 'explorers.features'))

CAPTIONS = ['a red bag', 'a blue coat on brick', 'two cats', 'an orange shirt']


def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pictures(n: int = 4, channels: int = 3, side: int = 32) -> Tensor:
    return torch.randint(256, (n, channels, side, side), generator=g(), dtype=torch.uint8)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=g())


def small_vit(side: int = 32, **options) -> nn.Module:
    torch.manual_seed(0)
    options = dict(patch_size=8, embed_dim=24, depth=2, num_heads=2) | options
    return vit.vit_nano(img_size=side, **options)


def toy_set(n: int = 40, side: int = 32) -> dataset.Dataset:
    "Four classes told apart by their brightness."
    labels = torch.arange(n) % 4
    noise = torch.randint(40, (n, 3, side, side), generator=g())
    images = (noise + 50 * labels[:, None, None, None]).to(torch.uint8)
    captions = [CAPTIONS[label] for label in labels]
    return dataset.Dataset(
        'toy', 'train', images, labels, ['a', 'b', 'c', 'd'], (0.5,) * 3, (0.25,) * 3, dict(caption=captions)
    )


def scenario(folder: Path) -> Iterator[Callable[[], None]]:
    "Steps, each of which may be run on its own; `folder` is an empty folder to write to."
    yield lambda: checks()
    yield lambda: losses_and_heads()
    yield lambda: masks_and_patches()
    yield lambda: attention_and_positions()
    yield lambda: targets_and_tokenizer()
    yield lambda: pictures_and_views()
    yield lambda: data_sets(folder)
    yield lambda: all_encoders()
    for name in build.method_names():
        yield lambda name=name: one_method(name)
    yield lambda: methods_by_hand()
    yield lambda: scores()
    yield lambda: texts()
    yield lambda: all_explorers(folder)
    yield lambda: training_runs(folder)
    yield lambda: weights_on_disk(folder)
    yield lambda: results_and_pictures(folder)


def checks() -> None:
    check.positive(1.0, 'width')
    check.at_least(1.0, 0, 'weight')
    check.share(0.5, 'ratio')
    check.temperature(0.1, 'MoCo uses 0.07')
    check.momentum(0.9, 'MoCo uses 0.999')
    check.loss_weights(pixels=1.0, labels=0.5)
    check.same_shape(normal(2, 3), normal(2, 3), 'Two views')
    check.index(1, 3, 'picture')
    check.bins(9)
    check.grid((4, 4), 16)
    check.pictures(normal(2, 3, 8, 8), 3, 'This ViT', 'normalise them')
    check.visible(torch.tensor([[0, 1]]), 1, (2, 2))
    check.whole_pictures(None, 'A ResNet', 'convolutions')
    core.choose('mae', ['mae', 'byol'], 'method')
    core.needs(small_vit(), 'width grid', 'MAE')
    core.best_device()


def losses_and_heads() -> None:
    q, k = normal(4, 8), normal(4, 8).flip(0)
    losses.l2_normalize(q)
    losses.cosine_similarity(q, k)
    losses.contrastive_cross_entropy(q @ k.T, torch.arange(4), 0.2)
    losses.info_nce(q, k)
    losses.info_nce(q, k, 0.2, normal(16, 8))
    losses.nt_xent(q, k)
    for loss in (losses.negative_cosine, losses.regression_loss, losses.alignment_loss):
        loss(q, k)
    losses.uniformity_loss(q)
    losses.feature_std(q)
    pred, target, mask = normal(2, 4, 6), normal(2, 4, 6), torch.tensor([[0.0, 1, 1, 0]] * 2)
    losses.masked_error(pred, target, mask)
    losses.masked_mse(pred, target, mask)
    losses.masked_l1(pred, target, mask)
    clip.LogitScale()
    clip.clip_loss(q, k, torch.tensor(10.0))
    for make in (heads.simclr_head, heads.byol_head, heads.moco_head, heads.simsiam_projector):
        make(16, dim=8)
    heads.mocov3_projector(16, 32, 8)
    heads.cmae_head(16, 32, 8)
    heads.extrema_head(16, 32, 8)
    heads.simsiam_predictor(8, 4)
    heads.mocov3_predictor(8, 16)
    heads.mlp_head((16, 32, 8))
    heads.BatchNormGamma(8)
    heads.norm_of('batch', 8)
    heads.LinearHead(16, 4)
    position = heads.PositionHead(16, (2, 3))
    logits = normal(2, 6, 6)
    position.loss(logits)
    position.evaluate(logits)
    head = distillation.DINOHead(16, 32, 8, 12)
    head(normal(4, 16))
    center = distillation.Center(12)
    center(normal(4, 12), 0.04)
    center.stage(normal(4, 12))
    p = normal(4, 12).softmax(-1)
    distillation.at_least_float32(p)
    distillation.entropy(p)
    distillation.mean_prediction_entropy(p)
    pairs = distillation.view_pairs(normal(3, 4, 12), normal(2, 4, 12).softmax(-1))
    distillation.other_views(pairs)
    student, teacher = normal(3, 4, 5, 12), normal(2, 4, 7, 12)
    match = distillation.match_regions(student, teacher)
    distillation.region_pairs(student, teacher.softmax(-1), match)
    momentum.momentum_copy(head)
    momentum.momentum_update(momentum.momentum_copy(head), head, 0.9)
    momentum.cosine_momentum(0.99, 0.5)
    grn = norms.GRN(6)
    grn(normal(2, 3, 3, 6))
    norms.response_norm(normal(2, 3, 3, 6), torch.ones(6), torch.zeros(6))
    norms.replace_norms(nn.Sequential(nn.LayerNorm(4)))
    keys = queue.Queue(16, 8)
    keys.stage(k)
    keys.enqueue(k)
    bn = nn.Sequential(nn.BatchNorm1d(8))
    processes.shuffle(q, g())
    processes.unshuffle(q, torch.arange(4))
    split = processes.SplitBatchNorm(8, 2)
    split(q)
    split.track(torch.zeros(16), torch.ones(16))
    processes.split_batchnorm(nn.Sequential(nn.BatchNorm1d(8)), 2)
    processes.sync_batchnorm(nn.Sequential(nn.BatchNorm1d(8)))
    processes.replace_batchnorm(bn, lambda layer: nn.BatchNorm1d(layer.num_features))
    processes.convert_batchnorm(nn.BatchNorm1d(8), nn.BatchNorm1d)
    processes.gather(q)
    processes.rank_offset(4)
    block = lean.LeanBlock(16, 2)
    tokens = normal(2, 5, 16)
    block(tokens)
    block.at(tokens, torch.tensor([[0, 1], [2, 3]]))
    with lean.recompute_in_backward(nn.Linear(4, 4)):
        pass


def masks_and_patches() -> None:
    grid = (4, 4)
    masking.num_visible(16, 0.75)
    mask = masking.random_masking(2, grid, 0.75, generator=g())
    masking.mask_of_visible(mask.keep, 16)
    tokens = normal(2, 16, 6)
    masking.gather_tokens(tokens, mask.keep)
    images = pictures(2)
    masking.show_masks({'random': mask}, grid, images)
    masking.mask_from(mask.mask)
    masking.rows_and_columns(grid, 'Block-wise')
    masking.random_boxes(torch.rand(2, 4, generator=g()), torch.tensor([4.0, 5.0]), (0.5, 2.0), grid)
    masking.block_masking(2, grid, 0.5, generator=g())
    masking.bayer_matrix(4)
    masking.grid_masking(2, grid, 0.75)
    masking.group_members(grid, 2)
    masking.group_masking(2, grid, 0.5, generator=g())
    masking.noise_shape('block', grid)
    masking.make_mask('random', 2, grid, 0.75, g())
    masking.disjoint_masking(2, grid, 0.75, 3, generator=g())
    mask.to('cpu')
    patches.to_pair(4)
    patches.grid_of(32, 8)
    floats = images / 255
    rows = patches.patchify(floats, 8)
    patches.unpatchify(rows, 8, grid)
    patches.mask_to_pixels(mask.mask, 8, grid)
    patches.normalise_patches(rows)
    patches.flat_fraction(rows)
    patches.unnormalise_true(rows, rows)
    patches.unnormalise_estimated(rows, rows, mask.mask, grid)
    patches.inverse_distances(grid, 2.0, torch.device('cpu'))
    patches.choose_statistics('estimated')
    patches.unnormalise(rows, rows, mask.mask, grid)
    torch.manual_seed(0)
    decoder = decoders.MAEDecoder(24, grid, 192, 16, 1, 2)
    visible = normal(2, 4, 24)
    decoder(visible, mask.keep, normal(2, 24), mask.hidden)
    decoder.fill(normal(2, 4, 16), mask.keep)
    decoders.fill_gaps(normal(2, 4, 16), mask.keep, torch.zeros(1, 1, 16), grid)
    decoders.FeatureDecoder(24, grid, 16, 1, 2)
    conv = decoders.ConvDecoder(24, grid, 192, 16, 1)
    conv(visible, mask.keep)
    conv.fill(normal(2, 4, 16), mask.keep)
    panels = reconstruction.reconstruction_panels(floats, floats, mask, (8, 8), grid)
    reconstruction.show_reconstruction(panels)


def attention_and_positions() -> None:
    encoder = small_vit()
    images = normal(2, 3, 32, 32)
    found = attention.attention_maps(encoder, images)
    block = encoder.blocks[0]
    tokens = encoder.tokens(images).detach()
    attention.attention_weights(block.attn, block.attn.qkv(tokens))
    attention.rollout(found)
    attention.grid_distances((4, 4), (8, 8))
    attention.attention_distance(found, (4, 4), 8)
    attention.attention_entropy(found)
    attention.filter_pca(encoder.patch_embed.proj.weight, 4)
    attention.context_attention(block.attn, tokens, tokens[:, :3])
    attention.block_in_context(block, tokens, torch.tensor([[0, 1], [0, 2]]))
    layer = attention.ClassAttention(24, 2)
    layer(tokens)
    layer.split(tokens)
    layer.weights(tokens)
    attention.ClassAttentionBlock(24, 2)(tokens, tokens[:, :1])
    pool = attention.ClassAttentionPool(24, 2)
    pool(tokens)
    pool.read(tokens, 1)
    pool.weights(tokens)
    positions.sincos_1d(torch.arange(4.0), 8)
    table = positions.sincos_nd((4, 4), 24)
    positions.sincos_2d((4, 4), 24)
    positions.LearnedPositions(16, 24)(tokens[:, 1:])
    positions.position_similarity(table, (4, 4))
    positions.show_position_similarity(table, (4, 4))
    positions.resample_positions(table, (4, 4), (2, 2), prefix=0)
    positions.grid_steps((4, 4))
    positions.with_positions(positions.without_positions(small_vit()))
    positions.without_positions(small_vit())
    encoder.embed(images, torch.tensor([[0, 1], [2, 3]]))
    encoder.run_blocks(tokens)
    encoder.check_input(images)
    encoder.masked(images, masking.random_masking(2, (4, 4), 0.5, generator=g()), torch.zeros(1, 1, 24))
    encoder.in_context(images, torch.tensor([[0, 1], [2, 3]]))
    encoder.set_grad_checkpointing(False)
    small_vit().set_img_size(40)
    keep = torch.tensor([[0, 1], [2, 3]])
    plain = stems.PatchifyStem(32, 8, 3, 16)
    plain.visible(images, keep)
    stems.conv_stem_layout(8, 32)
    stem = stems.ConvStem(32, 8, 3, 32)
    stem(images)
    stem.visible(images, keep)
    stem.set_input_size(32)
    stem.feat_ratio()
    stem.dynamic_feat_size((32, 32))
    stems.hide_pixels(images, keep, (4, 4))
    stems.receptive_field((2, 2, 1))
    stems.multiply_adds(nn.Linear(4, 4), (1, 4))


def targets_and_tokenizer() -> None:
    images = normal(2, 3, 32, 32)
    hog.gradient(images)
    cells = hog.hog(images, 4)
    hog.hog_strokes(cells)
    tokens = hog.patch_cells(cells, (4, 4))
    hog.unpatch_cells(tokens, (4, 4))
    words = tokenizer.Tokenizer(8, size=16)
    tokenizer.train_tokenizer(words, images, 2, 2)
    codes = words.encode(images)
    words.decode(codes, (4, 4))
    words.decode_vectors(words.encode_vectors(images))
    words(images)
    codebook = tokenizer.Codebook(8, 4)
    vectors = normal(16, 4)
    codebook.update(vectors, codebook.nearest(vectors))
    teacher = small_vit()
    mask = masking.random_masking(2, (4, 4), 0.5, generator=g())
    for target in (
        targets.make_target('pixels', 8),
        targets.PixelTarget(8),
        targets.HOGTarget(8, cell=4),
        targets.FeatureTarget(8, teacher=teacher),
        targets.LabelTarget(8, teacher=teacher, head=nn.Linear(24, 5)),
        targets.CodeTarget(8, tokenizer=words),
    ):
        truth = target(images)
        pred = normal(2, 16, target.width)
        target.cost(pred, truth)
        target.constant(truth)
        target.best_constant(truth)
        if target.has_picture:
            target.picture(pred, images, mask.mask, (4, 4))
    targets.freeze_teacher(teacher, 'features', (8, 8), 3)


def pictures_and_views() -> None:
    images = pictures()
    floats = images / 255
    operations.rand((2, 3), g())
    operations.to_float(images)
    operations.check_range('scale', (0.2, 1.0))
    boxes = operations.random_resized_crop_params(4, (32, 32), generator=g()).float()
    operations.center_box((32, 24))
    operations.cubic(normal(4))
    operations.triangle(normal(4))
    operations.resize_matrix(boxes[:, 0], boxes[:, 2], 32, 16)
    operations.rows_columns(16)
    operations.resized_crop(floats, boxes, 16)
    factor = torch.full((4,), 1.2)
    operations.grey_of(floats)
    operations.per_picture(factor, floats)
    operations.blend(floats, floats.flip(0), operations.per_picture(factor, floats))
    operations.adjust_brightness(floats, factor)
    operations.adjust_contrast(floats, factor)
    operations.adjust_saturation(floats, factor)
    operations.saturation_anchor(floats, operations.per_picture(factor, floats))
    operations.adjust_hue(floats, torch.full((4,), 0.1))
    order = operations.random_orders(4, generator=g())
    operations.color_jitter(floats, torch.ones(4, 4), order)
    which = torch.tensor([True, False, True, False])
    operations.to_grey(floats, which)
    operations.solarize(floats, which)
    operations.blur_matrix(torch.ones(4), 32, 5)
    operations.gaussian_blur(floats, torch.ones(4), 5)
    operations.normalize(images, (0.5,) * 3, (0.25,) * 3)
    policy = views.Policy(jitter=(0.4, 0.4, 0.2, 0.1), blur=0.5)
    params = views.sample_params(policy, 4, (32, 32), g())
    params.take(slice(0, 2))
    params.warp(normal(4, 1, 32, 32), 16)
    params.to_source(torch.rand(4, 5, 2, generator=g()))
    views.view_size(policy, (16, 16))
    views.blur_taps(None, (16, 16))
    two = views.Views(16, (0.5,) * 3, (0.25,) * 3, [policy, policy], g())
    two.check(images)
    prepared = two.prepare(images)
    two.restore(prepared)
    sampled = two.sample(4, (32, 32), g())
    two.pixels(images, sampled)
    two(images)
    one = views.MAEViews(16, (0.5,) * 3, (0.25,) * 3)
    one(images)
    shifted = views.views('macrl', 16, (0.5,) * 3, (0.25,) * 3)
    shifted(images)
    views.default_views(small_vit(), 'byol')
    views.ShiftedViews(16, (0.5,) * 3, (0.25,) * 3, [policy, policy])


def data_sets(folder: Path) -> None:
    digits = data.load('digits')
    digits.subset(20).at(torch.arange(4))
    digits.to('cpu')
    digits.floats(torch.arange(4))
    next(iter(digits.batches(8)))
    dataset.balanced(digits.labels, 2)
    list(dataset.batch_indices(10, 4))
    dataset.statistics(digits.images[:50])
    dataset.select([1, 2, 3], torch.tensor([0, 1]))
    dataset.select_truths(dict(a=torch.arange(3)), torch.tensor([0, 1]))
    dataset.check_split('digits', 'train')
    download.search_paths(folder)
    download.download_failed('x', 'y', [folder], 'no network')
    download.first_line(ValueError('a\nb'))
    load.resolve('vit_ssl_lab.data.builtin:digits')
    load.check_options(builtin.digits, 'digits', {})
    top = folder / 'pictures'
    for kind in ('cat', 'dog'):
        (top / 'train' / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).save(top / 'train' / kind / f'{i}.png')
    folders.split_folder(top, 'train')
    folders.spread(list(range(10)), 3)
    rows = pictures(1)[0].permute(1, 2, 0).numpy()
    pixels.bands_last(rows)
    pixels.black_and_white('uint16', 0.0, 60000.0)
    pixels.check_value_range((0.0, 1.0))
    pixels.kind_of_values(rows.dtype)
    pixels.to_8_bits(rows)
    pixels.values_of(top / 'train' / 'cat' / '0.png')
    pixels.with_channels(rows, 3)
    some = folders.folder(top, size=16, workers=0)
    pixels.decode(top / 'train' / 'cat' / '0.png', 16)
    pixels.readable(top / 'train' / 'cat' / '0.png')
    some.subset(2)
    some.at(torch.tensor([0, 1]))
    next(iter(some.batches(2)))
    some.memory(4)
    image_text.check_captions(CAPTIONS, 4)
    image_text.captions_of(toy_set(4))
    image_text.find_column(['image', 'text'], ['text'], None, 'caption', 'the file')
    painter = scenes.Scenes('train', 32)
    index = torch.arange(3)
    scene = painter.batch(index)
    painter.render(scene.params)
    painter.captions(scene.params)
    painter.pair(index)
    painter.clip(index, 2)
    painter.dataset(4)
    scenes.boxes_of(scene.masks.bool())
    solid = scene.masks[:, 0].to(torch.uint8) if scene.masks.ndim == 4 else scene.masks.to(torch.uint8)
    for f in (scenes.dilate, scenes.erode, scenes.enclosed):
        with contextlib.suppress(Exception):
            f(solid)
    scenes.bounce(normal(4), 0.0, 1.0)
    scenes.Difficulty()
    scenes.scenes('train', n=4, size=32)
    scenes.garments('train')
    photographs.photos('train', n=4, size=16)
    photographs.uniform(index, 0, 'zoom')
    atlas = photographs.atlas('train', 16)
    zeros = torch.zeros(3, dtype=torch.long)
    with contextlib.suppress(Exception):
        atlas.crops(zeros, zeros, torch.full((3,), 0.5), torch.full((3,), 0.5))
    first = photographs.photographs()[0]
    photographs.package_file(first.package, first.file)
    photographs.region(photographs.photograph(first), 'train')


def all_encoders() -> None:
    images = normal(2, 3, 32, 32)
    encoders.encoder('vit_nano', img_size=32)
    encoders.family('vit_nano')
    keep = torch.tensor([[0, 1], [2, 3]])
    conv = convnextv2.convnextv2_yocto(32)
    conv(images)
    conv(images, keep)
    conv.expansions(images)
    conv.set_img_size(32)
    net = resnet.resnet_nano(32)
    net(images)
    net.check_input(images)
    net.init_weights(True)
    shifted = swin.swin_nano(32)
    shifted(images)
    shifted.check_input(images)
    shifted.set_img_size(32)
    plain = small_vit()
    plain(images, keep)
    plain.tokens(images, keep)
    vit.ViT(32, 8, embed_dim=24, depth=1, num_heads=2)
    vit.ViT.from_timm(
        'vit_tiny_patch16_224', img_size=32, embed_dim=24, depth=1, num_heads=2, pretrained=False
    )
    vit.trained_size(plain)
    regnet = backbone.timm_encoder('regnetx_002', 32, pretrained=False)
    regnet(images)
    regnet.set_img_size(32)
    eva = backbone.timm_encoder(
        'eva02_tiny_patch14_224', 28, pretrained=False, embed_dim=48, depth=1, num_heads=2
    )
    eva(normal(2, 3, 28, 28), keep)
    eva.tokens(normal(2, 3, 28, 28), keep)
    backbone.try_size(regnet, (32, 32))
    resnet.ResNet.from_timm('resnet18', img_size=32, pretrained=False)
    convnextv2.ConvNeXtV2.from_timm('convnextv2_atto', img_size=32, pretrained=False)
    swin.is_official(['a'])


SMALL: dict[str, dict] = dict(
    byol=dict(hidden=32, dim=16),
    cmae=dict(decoder_width=16, decoder_depth=1, decoder_heads=2, hidden=16, dim=8),
    dino=dict(dim=32, hidden=32, bottleneck=16),
    esvit=dict(dim=32, hidden=32, bottleneck=16),
    extrema=dict(hidden=32, dim=16),
    moco=dict(dim=16, queue=16),
    mocov3=dict(hidden=32, dim=16),
    momentum_projector=dict(hidden=32, dim=16),
    sdssl=dict(hidden=32, dim=16),
    simclr=dict(hidden=32, dim=16),
    simsiam=dict(dim=16, pred_dim=8),
    flip=dict(dim=16),
)


def one_method(name: str) -> None:
    "A step of a method on four pictures."
    own = build.recipe(name, 'laptop')
    side = own.img_size if isinstance(own.img_size, int) else own.img_size[0]
    toy = toy_set(8, side)
    own = build.recipe(name, 'laptop', data='digits', method_options=SMALL.get(name, {}))
    method = build.build(own, toy)
    images = toy.images[:4]
    made = method.views(images)
    given = {}
    if 'labels' in method.needs:
        given['labels'] = toy.labels[:4]
    if 'captions' in method.needs:
        given['captions'] = method.tokenize(toy.truths['caption'][:4])
    if hasattr(method, 'before_step'):
        method.before_step(0.5)
    method(made, **given)['loss'].backward()
    method.after_step(0.5)
    if hasattr(method, 'reconstruct'):
        with contextlib.suppress(ValueError):
            method.eval().reconstruct(images)
    if hasattr(method, 'embed'):
        x = made[0] if isinstance(made, (list, tuple)) else made
        method.embed(x)
    if hasattr(core, 'transfer_encoder'):
        core.transfer_encoder(method)


def small_mae() -> nn.Module:
    torch.manual_seed(0)
    return mae.MAE(small_vit(), 16, 1, 2)


def methods_by_hand() -> None:
    method = small_mae()
    x = normal(2, 3, 32, 32)
    mask = method.draw_mask(x, generator=g())
    latent = method.encode(x, mask)
    method.decode(latent, mask)
    method.predict(x, mask)
    rows = method.hidden_patches(x, mask)
    method.target(rows)
    method(x, mask=mask)
    torch.manual_seed(0)
    guesser = extrema.ExtreMA(small_vit(), 2, 0.5, 16, 8)
    guesser.guess(pictures(4), g())
    extrema.show_guess(guesser, pictures(4))
    initialisation.init_uniform(nn.Linear(4, 4), 4, 4.0)
    initialisation.init_truncated(nn.Linear(4, 4))
    initialisation.init_normal_001(nn.Linear(4, 4))
    initialisation.init_mae(small_vit())
    initialisation.init_mocov3(small_vit())
    initialisation.init_deit(small_vit())
    initialisation.init_torchvision(resnet.resnet_nano(32))
    initialisation.init_as_published(build.build(build.recipe('mae', 'laptop'), toy_set(4, 48)))
    sdssl.exit_after(small_vit(), 1)
    sdssl.block_outputs(small_vit(), x)
    simsiam.make_predictor(8, 4, 'batch')
    simsiam.cross_entropy_similarity(normal(4, 8), normal(4, 8))
    mp3.position_leak(small_vit())
    mp3.sees_neighbours(nn.Conv2d(3, 4, 3))
    mp3.mean_or_nan(normal(4))
    torch.manual_seed(0)
    places = mp3.MP3(positions.without_positions(small_vit()))
    places.locate(pictures(2), generator=g())
    places.measure(toy_set(8), batch_size=4)


def small_simsiam() -> nn.Module:
    torch.manual_seed(0)
    return simsiam.SimSiam(small_vit(), 16, 8)


def scores() -> None:
    toy = toy_set()
    encoder = small_vit()
    z = normal(20, 6)
    X, y = normal(20, 6), torch.arange(20) % 4
    features.extract(encoder, toy)
    features.region_means(encoder(normal(2, 3, 32, 32)))
    features.random_encoder_like(encoder)
    features.Score(50.0)
    features.Projected(small_simsiam())(normal(2, 3, 32, 32))
    features.RawPixels()(normal(2, 3, 32, 32))
    knn.knn_votes(X, y, X, 3)
    knn.knn(encoder, toy, toy, 3)
    linear_probe.standardise(X, X)
    linear_probe.fit_logistic(X.numpy(), y.numpy(), 1.0, 10)
    linear_probe.probe_small(X, y, X, y, (0.1,), 10)
    linear_probe.probe_paper(X, y, X, y, 2, 1, batch=8)
    linear_probe.linear_probe(encoder, toy, toy, grid=(0.1,))
    model = finetune.Classifier(encoder, 4)
    model(normal(2, 3, 32, 32))
    finetune.unfreeze_last(model, 1)
    finetune.train_unfrozen(model)
    finetune.train_classifier(model, toy, 2, 8, 1e-3)
    finetune.accuracy(model, toy)
    finetune.finetune(encoder, toy, toy, steps=2, batch_size=8)
    finetune.supervised(encoder, toy, toy, steps=2, batch_size=8)
    for f in (health.check_rows, health.dimension_std, health.effective_rank, health.participation_ratio):
        f(z)
    health.alignment(z, z.flip(0))
    health.uniformity(z)
    health.health(z)
    health.describe_health(z)
    encoder(normal(2, 3, 32, 32)).pooled.sum().backward()
    health.gradient_norms(encoder)
    health.channel_distance(normal(2, 4, 3, 3))
    invariance.linear_cka(z, z.flip(0))
    invariance.retrieval_accuracy(z, z)
    invariance.block_means(encoder, normal(2, 3, 32, 32))
    invariance.occlusion_invariance(encoder, toy)
    rows = {'encoder': {'kNN': features.Score(50.0)}, 'raw pixels': {'kNN': features.Score(40.0)}}
    rows['random weights'] = {'kNN': features.Score(30.0)}
    with contextlib.suppress(Exception):
        made = table.ScoreTable(rows, 'encoder', 40)
        made.sentences()
    table.score_table(encoder, toy, toy, k=3)
    painter = scenes.Scenes('train', 32)
    warp = correspondence.warped(painter, 4)
    painted = painter.dataset(40)
    attributes.attribute(painted, 'tint')
    attributes.attributes({'small': encoder}, painted, painted, ('tint',), grid=(0.1,))
    attributes.neighbour_shares(encoder, painted, ('tint',))
    few = few_labels.few_labels(encoder, toy, toy, (1, 2), ('probe', 'from scratch'), (0,), steps=1)
    few_labels.show_few_labels(few, 'accuracy over labels')
    few_labels.labels_saved(few, 'probe')
    correspondence.recolour(pictures(2))
    correspondence.mirrored(pictures(2))
    points = correspondence.true_points(warp.flow, (4, 4))
    correspondence.true_regions(points, (4, 4))
    correspondence.find_matches(encoder, warp, (0.5,) * 3, (0.25,) * 3)
    correspondence.correspondence(encoder, warp, (0.5,) * 3, (0.25,) * 3)
    correspondence.RawRegions(8)(normal(2, 3, 32, 32))
    critical_factors.norm_rescale(encoder, critical_factors.weight_norms(encoder))


def small_flip() -> nn.Module:
    torch.manual_seed(0)
    encoder = small_vit(24, patch_size=6, global_pool='avg', class_token=False, fc_norm=False)
    made_views = views.views('mae', 24, (0.5,) * 3, (0.25,) * 3)
    words = text.TextEncoder(10, 24, 1, 2, text.vocabulary_of(CAPTIONS))
    return flip.FLIP(encoder, words, dim=16, mask_ratio=0.5, views=made_views)


def texts() -> None:
    method = small_flip()
    toy = toy_set(8, 24)
    method.text_encoder.unknown('a zebra')
    method.text_encoder.tokenize(CAPTIONS)
    text.word_pieces('a red bag')
    zero_shot.encode_images(method, toy)
    zero_shot.encode_texts(method, CAPTIONS)
    zero_shot.prompt_templates('name')
    zero_shot.fill_prompt('a {}', 'bag')
    zero_shot.zero_shot_classifier(method, ['red bag', 'cats'])
    zero_shot.zero_shot(method, toy, classes=['red bag', 'blue coat', 'cats', 'orange shirt'])
    zero_shot.recall_at_k(normal(4, 8), normal(4, 8), CAPTIONS, (1, 2))
    painted = scenes.Scenes('train', 24).dataset(8)
    zero_shot.scene_questions(painted, 'tint')
    zero_shot.zero_shot_scenes(method, painted, ensemble=False)
    with contextlib.suppress(Exception):
        zero_shot.image_text_retrieval(method, toy, (1, 2))
    method.embed_images(normal(2, 3, 24, 24))
    method.embed_texts(CAPTIONS)
    method.embed_patches(normal(2, 3, 24, 24))


def explorer_makers() -> dict[str, Callable[[], base.Explorer]]:
    "Each explorer, small."
    images = pictures()

    def target_method() -> nn.Module:
        torch.manual_seed(0)
        return maskfeat.MaskFeat(small_vit(), targets.HOGTarget(8, cell=4))

    def places() -> nn.Module:
        torch.manual_seed(0)
        return mp3.MP3(positions.without_positions(small_vit()))

    return dict(
        MaskExplorer=lambda: explorers.MaskExplorer(images, 8),
        ReconstructionExplorer=lambda: explorers.ReconstructionExplorer(small_mae(), images),
        AttentionExplorer=lambda: explorers.AttentionExplorer(small_vit(), images),
        PositionExplorer=lambda: explorers.PositionExplorer(positions.sincos_2d((4, 4), 16), grid=(4, 4)),
        ViewsExplorer=lambda: explorers.ViewsExplorer(images, preset='byol', size=32),
        FeatureExplorer=lambda: explorers.FeatureExplorer(small_vit(), pictures(8)),
        SiameseExplorer=lambda: explorers.SiameseExplorer(small_simsiam(), images),
        CollapseExplorer=lambda: explorers.CollapseExplorer(pictures(64, 1, 12), batch=16, width=16, dim=8),
        CorrespondenceExplorer=lambda: explorers.CorrespondenceExplorer(small_vit(), toy_set(8), 'mirrored'),
        PositionPuzzle=lambda: explorers.PositionPuzzle(places(), images),
        HogExplorer=lambda: explorers.HogExplorer(images),
        TargetExplorer=lambda: explorers.TargetExplorer(target_method(), images),
        ZeroShotExplorer=lambda: explorers.ZeroShotExplorer(small_flip(), pictures(4, 3, 24), CAPTIONS),
    )


def all_explorers(folder: Path) -> None:
    made = {name: make() for name, make in explorer_makers().items()}
    for name, explorer in made.items():
        plt.close(explorer.figure())
        explorer.to_html(folder / f'{name}.html')
    made['MaskExplorer'].paint(torch.tensor([[1.0, 0, 0, 0]] * 4))
    painting.mask_title(made['MaskExplorer'])
    painting.masked_picture(made['MaskExplorer'])
    made['FeatureExplorer'].patch_cosines([0, 1])
    made['AttentionExplorer'].maps(0)
    made['CorrespondenceExplorer'].matches()
    with contextlib.suppress(Exception):
        made['SiameseExplorer'].place(0, (0, 0, 16, 16))
    made['CollapseExplorer'].advance(2)
    base.names_of(toy_set(4), 2)
    base.widget_script('mask.js')
    base.normalizer(toy_set(4))
    base.pictures_of(pictures())
    base.rgb_bytes(pictures())
    figure, ax = plt.subplots()
    base.hide_ticks(ax)
    base.draw_picture(ax, pictures()[0])
    base.draw_frame(ax, (0, 0, 4, 4))
    base.draw_marker(ax, 1.0, 2.0)
    plt.close(figure)
    for explorer in made.values():
        explorer.close()
    collapse.CollapseRun(pictures(64, 1, 12), batch=16, width=16, dim=8).advance(1)
    maps.main_axes(normal(8, 4))
    maps.pca_rgb(normal(2, 16, 6))
    maps.nearest_neighbours(normal(8, 4), 2)


def training_runs(folder: Path) -> None:
    small = dict(
        data='digits', img_size=8, patch_size=2, encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
        method_options=dict(decoder_width=16, decoder_depth=1, decoder_heads=2), steps=2, batch_size=8,
    )  # fmt: skip
    own = build.recipe('mae', 'laptop', **small)
    digits = data.load('digits').subset(40)
    recipe.encoder_family('vit_nano')
    recipe.as_tuples([1, [2]])
    recipe.change(own, steps=3)
    recipe.Recipe.from_json(own.to_json())
    recipe.Recipe('mae', steps=2)
    schedule = recipe.make_schedule(own, 40)
    schedule.seen(1)
    optim.lr_at(1.0, 10, 2.0, 0.1)
    out = folder / 'run'
    done = loop.pretrain(build.build(own, digits), digits, own, out, quiet=True, device='cpu')
    done.frame()
    plt.close(done.figure())
    loop.pretrain(build.build(own, digits), digits, own, out, quiet=True, device='cpu')
    loop.load_run(out)
    checkpoints.read_run(out)
    checkpoints.load_checkpoint(out)
    loop.shard(10, 0, 2)
    loop.micro_batches(10, 0, 1, 2)
    loop.is_due(3, 2)
    optim.layer_of('blocks.0', 2)
    optim.param_groups(small_vit(), layer_decay=0.7)
    cli.settings(['steps=3'])
    cli.parse(['mae', 'laptop', '--out', 'x'])
    history.read_log(out, 2)


def weights_on_disk(folder: Path) -> None:
    encoder = small_vit()
    path = weights.save(encoder, folder / 'vit.safetensors')
    weights.load_encoder(path)
    weights.load_encoder('vit_tiny_patch16_224', img_size=32, pretrained=False)
    weights.read_checkpoint(path)
    weights.save(small_mae(), folder / 'mae.safetensors', layout='mae')
    weights.load_method(folder / 'mae.safetensors', decoder_heads=2)
    weights.state_dict_as(encoder, 'timm')
    weights.save_atomic(folder / 'x.bin', b'x')
    weight_layouts.possible_keys(list(encoder.state_dict()))
    weights.config_of(encoder, 'timm')
    weight_files.find_state_dict(encoder.state_dict(), 'vit')
    weight_layouts.key_on_disk('a.b')
    weight_layouts.rename_key('blocks.0.attn.qkv.weight', 'timm')
    weight_layouts.to_timm_keys(encoder.state_dict(), 'timm')
    weight_files.weight_file(path.parent, strict=False)
    blueprint.rebuild(blueprint.describe(encoder))
    blueprint.fingerprint(encoder)
    weight_layouts.detect_layout(list(encoder.state_dict()))


def results_and_pictures(folder: Path) -> None:
    results.save_result('x', dict(a=1.0), seed=0)
    results.load_result('x')
    results.is_stored('x')
    results.save_network('net', {'a': normal(2, 2)})
    results.load_network('net')
    results.run_arms('arms', {'base': lambda seed: dict(score=float(seed))}, (0, 1))
    arms = results.load_arms('arms')
    results.over_seeds(arms['base'], 'score')
    results.make_arms(lambda seed: dict(a=1.0), {'base': {}})
    comparison.half_width(0.05, 3, 1.0)
    comparison.paired_test_error([True, False, True], [True, True, False])
    comparison.unpaired_test_error(50.0, 60.0, 100)
    outcome = comparison.compare([3.0, 4.0, 5.0], [1.0, 2.0, 2.5])
    comparison.compare_equal([3.0, 4.0, 5.0], [3.1, 4.0, 4.9], 1.0)
    comparison.verdict('a is better', outcome)
    comparison.judge_claim('a is better', [3.0, 4.0, 5.0], [1.0, 2.0, 2.5])
    comparison.holm({'a': outcome, 'b': outcome})
    comparison.verdict_table({'a': outcome})
    comparison.show_verdicts({'a': outcome}, 'verdicts')
    figure, ax = plt.subplots()
    show.png_bytes(figure)
    show.show(figure, 'an empty figure')
    show.to_picture(pictures()[0])
    show.show_images(pictures(), alt='noise')
    show.show_rows({'noise': pictures()}, 'noise')
    show.show_curves({'loss': [3.0, 2.0, 1.0]}, 'a curve')
    show.show_bars({'a': 1.0, 'b': [1.0, 2.0]}, 'bars')
    figure, ax = plt.subplots()
    show.draw_bar(ax, 0.0, np.array([1.0, 2.0]))
    show.draw_box(ax, 0.0, 0.0, 1.0, 1.0, 'box')
    show.draw_arrow(ax, (0.0, 0.0), (1.0, 1.0))
    plt.close('all')
    notebook.flags_of('#| slow\nx = 1')
    notebook.settled([], [])
    notebook.stable_outputs([], 'x')
    notebook.setup(0)
    notebook.check_exercise(lambda: 1, lambda answer: None)
