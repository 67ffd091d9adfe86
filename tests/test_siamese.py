"""What the Siamese methods share: heads, losses and the momentum copy, against lightly and against sums in
float64."""

import math
from helpers import seeded, weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.utils.debug import std_of_l2_normalized
from torch import nn
from vit_ssl_lab.components.heads import (
    byol_head,
    mlp_head,
    moco_head,
    mocov3_predictor,
    mocov3_projector,
    simclr_head,
    simsiam_predictor,
    simsiam_projector,
)
from vit_ssl_lab.components.losses import (
    alignment_loss,
    cosine_similarity,
    info_nce,
    negative_cosine,
    nt_xent,
    regression_loss,
    feature_std,
    uniformity_loss,
)
from vit_ssl_lab.methods.base.siamese import MomentumSiamese, Siamese
from vit_ssl_lab.data.views import default_views
from vit_ssl_lab.encoders.vit import ViT


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed)).to(dtype)


def tiny(**kw):
    return ViT(**{**dict(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2), **kw})


# --- heads


def same(ours: nn.Sequential, theirs: nn.Module, x: torch.Tensor) -> None:
    "Copied weights, equal output and gradient of the input, in training."
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = ours(a)
    ref = theirs(b)
    torch.testing.assert_close(out, ref, rtol=0, atol=1e-5)
    out.square().sum().backward()
    ref.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_heads_equal_lightlys_where_both_follow_the_paper():
    same(simsiam_projector(24, 32), SimSiamProjectionHead(24, 32, 32), draw(16, 24))
    same(simsiam_predictor(32, 8), SimSiamPredictionHead(32, 8, 32), draw(16, 32))
    same(moco_head(24, 8), MoCoProjectionHead(24, 24, 8), draw(16, 24))


def test_simclr_head_scales_without_shift():
    ours = simclr_head(24, 32, 8)
    theirs = SimCLRProjectionHead(24, 32, 8)
    assert 'bias' not in dict(ours[-1].named_parameters())
    assert len(list(theirs.parameters())) == len(list(ours.parameters())) + 1
    keys = [k for k in theirs.state_dict() if not k.endswith('4.bias')]
    theirs.load_state_dict(dict(zip(keys, ours.state_dict().values())), strict=False)  # a new shift is zero
    torch.testing.assert_close(ours(draw(16, 24)), theirs(draw(16, 24)), rtol=0, atol=1e-5)
    assert len([m for m in simclr_head(24, layers=3) if isinstance(m, nn.Linear)]) == 3


def test_biases_and_norms_of_byol_and_mocov3():
    byol = byol_head(24, 32, 8)
    assert byol[0].bias is not None
    assert byol[-1].bias is None
    assert [type(m).__name__ for m in byol] == ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    lightly = BYOLProjectionHead(24, 32, 8)  # the other way round, as the notebook says
    assert lightly.layers[0].bias is None
    assert lightly.layers[-1].bias is not None
    for head in (mocov3_projector(24, 32, 8), mocov3_predictor(8, 32)):
        assert not head[-1].affine
        assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
    assert isinstance(mocov3_predictor(8, 32, last_norm=False)[-1], nn.Linear)
    assert len(mocov3_projector(24, 32, 8, layers=2)) == 5
    assert isinstance(moco_head(24, 8, mlp=False)[0], nn.Linear)
    assert len(moco_head(24, 8, mlp=False)) == 1
    with pytest.raises(ValueError, match='has 2 linear layers, and 3 values of bias'):
        mlp_head((8, 8, 4), bias=(True, True, False))


# --- losses


@pytest.mark.parametrize('temperature', [0.07, 0.1, 0.5, 1.0])
def test_nt_xent_equals_lightlys(temperature):
    a, b = (draw(12, 16, seed=s) for s in (1, 2))
    grads = []
    for loss in (lambda x, y: nt_xent(x, y, temperature).loss, NTXentLoss(temperature)):
        x = a.clone().requires_grad_()
        y = b.clone().requires_grad_()
        value = loss(x, y)
        value.backward()
        grads.append((value.detach(), x.grad, y.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_nt_xent_in_float64_by_numpy():
    a, b = (draw(5, 7, seed=s, dtype=torch.float64) for s in (1, 2))
    z = torch.cat([a, b]).numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    e = np.exp(z @ z.T / 0.3)
    np.fill_diagonal(e, 0)
    by_hand = -np.mean([np.log(e[i, (i + 5) % 10] / e[i].sum()) for i in range(10)])
    assert nt_xent(a, b, 0.3).loss.item() == pytest.approx(by_hand, abs=1e-12)


def test_info_nce_with_a_queue_equals_lightlys_memory_bank():
    q = draw(6, 16)
    k = draw(6, 16, seed=1)
    queue = F.normalize(draw(40, 16, seed=2), dim=1)
    theirs = NTXentLoss(0.2, memory_bank_size=(40, 16))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    mine, other = q.clone().requires_grad_(), q.clone().requires_grad_()
    ours = info_nce(mine, k, 0.2, queue).loss
    ref = theirs(other, k)
    ours.backward()
    ref.backward()
    torch.testing.assert_close((ours, mine.grad), (ref, other.grad), rtol=1e-5, atol=1e-6)


def test_info_nce_in_the_batch_in_float64():
    q, k = (draw(5, 7, seed=s, dtype=torch.float64) for s in (1, 2))
    a, b = (v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (q, k))
    e = np.exp(a @ b.T / 0.2)
    out = info_nce(q, k, 0.2)
    assert out.loss.item() == pytest.approx(-np.log(np.diag(e) / e.sum(1)).mean(), abs=1e-12)
    assert out.accuracy.item() == pytest.approx((e.argmax(1) == np.arange(5)).mean())


def test_chance():
    same = torch.ones(8, 4)
    assert info_nce(same, same).loss.item() == pytest.approx(math.log(8), abs=1e-6)
    assert info_nce(same, same, queue=torch.ones(100, 4)).loss.item() == pytest.approx(
        math.log(101), abs=1e-5
    )
    assert nt_xent(same, same).loss.item() == pytest.approx(math.log(15), abs=1e-6)


def test_cosine_losses_equal_lightlys_and_each_other():
    p = draw(9, 16).requires_grad_()
    z = draw(9, 16, seed=1)
    torch.testing.assert_close(negative_cosine(p, z), NegativeCosineSimilarity()(p, z), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        regression_loss(p, z), 2 + 2 * NegativeCosineSimilarity()(p, z), rtol=0, atol=1e-6
    )
    # nobody detaches for the caller
    assert torch.autograd.grad(negative_cosine(p, z.requires_grad_()), z)[0].abs().sum() > 0


def test_spread_is_the_papers_and_alignment_with_uniformity_those_of_wang_and_isola():
    z = draw(256, 64)
    # lightly divides by n - 1
    assert feature_std(z).item() == pytest.approx(std_of_l2_normalized(z).item() * 8, rel=3e-3)
    assert 0.98 < feature_std(z).item() < 1.02
    assert feature_std(torch.ones(4, 8)).item() == 0
    x = F.normalize(draw(20, 8), dim=1)
    y = F.normalize(draw(20, 8, seed=1), dim=1)
    assert alignment_loss(x, y).item() == pytest.approx(
        (x - y).norm(p=2, dim=1).pow(2).mean().item(), abs=1e-6
    )
    assert uniformity_loss(x).item() == pytest.approx(
        torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), abs=1e-6
    )


def test_half_precision_is_felt_by_none_of_the_losses():
    a, b = draw(16, 32), draw(16, 32, seed=1)
    for loss in (lambda: nt_xent(a, b).loss, lambda: info_nce(a, b).loss, lambda: negative_cosine(a, b)):
        with torch.autocast('cpu', torch.bfloat16):
            half = loss()
        torch.testing.assert_close(half, loss(), rtol=0, atol=1e-6)
    assert cosine_similarity(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# --- the momentum copy


def test_the_copy_follows_parameters_and_keeps_its_own_statistics():
    encoder = tiny()
    method = MomentumSiamese(encoder, byol_head(24, 16, 8), default_views(encoder, 'byol'), 0.75, 'constant')
    start = weights(method.momentum_projector)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1.0)
    method.embed(draw(4, 3, 16, 16))
    method.after_step(0.5)
    for name, value in method.momentum_projector.named_parameters():
        torch.testing.assert_close(value, start[name] + 1.0, rtol=0, atol=1e-6)  # both were moved by one
    assert method.momentum_projector[1].num_batches_tracked == 0
    assert method.projector[1].num_batches_tracked == 1
    assert not any(
        p.requires_grad for m in (method.momentum_encoder, method.momentum_projector) for p in m.parameters()
    )


def test_bad_input():
    encoder = tiny()
    views = default_views(encoder, 'simclr')
    x = draw(4, 3, 16, 16)
    method = Siamese(encoder, simclr_head(24, 16, 8), views)
    for case, match in {
        'single view': (lambda: method.check_views(x), 'compares two views of each picture'),
        'three views': (lambda: method.check_views([x, x, x]), 'and got 3'),
        'unequal views': (lambda: method.check_views([x, x[:2]]), 'are 4 and 2'),
        'batch of one': (lambda: method.check_views([x[:1], x[:1]]), 'batch of one picture'),
        'head of another width': (lambda: Siamese(encoder, simclr_head(32), views), 'build it with width=24'),
        'no encoder': (
            lambda: Siamese(nn.Linear(2, 2), simclr_head(2), views),
            'needs an encoder with width',
        ),
        'momentum': (lambda: MomentumSiamese(encoder, byol_head(24), views, 1.01), '0 to 1; 1.01 is not'),
        'temperature': (lambda: nt_xent(draw(2, 4), draw(2, 4), 0.0), 'must be above 0'),
        'queue of another width': (
            lambda: info_nce(draw(2, 4), draw(2, 4), queue=draw(3, 5)),
            'keys of width 4',
        ),
        'patches': (lambda: negative_cosine(draw(2, 3, 4), draw(2, 3, 4)), 'pool the patches'),
    }.values():
        with pytest.raises((ValueError, TypeError), match=match):
            case()
