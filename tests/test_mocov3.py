"""MoCo v3 against the official implementation's stored numbers and its formulas in float64, lightly's heads,
the official schedules in numbers, and limits."""

import json, math
from functools import partial
from pathlib import Path
import helpers
from helpers import equal, gradients, named_numbers, normal, seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import nn
from vit_ssl_lab.encoders.resnet import resnet_nano
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.evaluation import Classifier
from vit_ssl_lab.methods.mocov3 import MoCoV3, init_mocov3

B = 6
GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'mocov3_official.json').read_text())


def make(dtype=torch.float32, stem='patchify', **kw):
    torch.manual_seed(0)
    return MoCoV3(
        ViT(16, 8, 3, embed_dim=24, depth=2, num_heads=2, positions='sincos', stem=stem),
        hidden=32,
        dim=8,
        **kw,
    ).to(dtype)


def two(seed=1, dtype=torch.float32):
    return list(normal(2, B, 3, 16, 16, seed=seed, dtype=dtype))


def contrastive_loss(q, k, t):
    """builder.py: contrastive_loss in words, on one process: normalise, all pairs over the temperature, own
    index as label, times 2 t."""
    logits = torch.einsum('nc,mc->nm', F.normalize(q, dim=1), F.normalize(k, dim=1)) / t
    return nn.CrossEntropyLoss()(logits, torch.arange(len(q))) * (2 * t)


class Official(nn.Module):
    "MoCo.forward in plain torch; the momentum encoder moves before the keys are made."

    def __init__(self, m):
        super().__init__()
        self.base = m.encoder
        self.projector = m.projector
        self.predictor = m.predictor
        self.target = m.momentum_encoder
        self.target_projector = m.momentum_projector
        self.t = m.temperature

    def forward(self, x1, x2, momentum):
        q1, q2 = (self.predictor(self.projector(self.base(x).pooled)) for x in (x1, x2))
        with torch.no_grad():
            for online_part, target in ((self.base, self.target), (self.projector, self.target_projector)):
                for p, s in zip(online_part.parameters(), target.parameters()):
                    s.data = s.data * momentum + p.data * (1.0 - momentum)
            k1, k2 = (self.target_projector(self.target(x).pooled) for x in (x1, x2))
        return contrastive_loss(q1, k2, self.t) + contrastive_loss(q2, k1, self.t)


@pytest.mark.parametrize(
    'dtype, steps, close',
    [(torch.float64, 3, dict(rtol=1e-8, atol=1e-9)), (torch.float32, 1, dict(rtol=1e-3, atol=5e-5))],
)
def test_steps_equal_the_official_forward_pass(dtype, steps, close):
    """Loss, gradients, AdamW step and momentum encoder, step by step: ours moves it after the optimizer,
    theirs before the keys of the next step."""
    runs = []
    for official in (False, True):
        m = make(dtype, momentum=0.9, momentum_schedule='constant')
        model = Official(m) if official else m
        adamw = torch.optim.AdamW(
            [p for p in m.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1
        )
        log = []
        for step in range(steps):
            x = two(step, dtype)
            loss = model(*x, 0.9) if official else model(x)['loss']
            adamw.zero_grad()
            loss.backward()
            log += [loss.detach(), gradients(m)]
            adamw.step()
            if not official:
                m.after_step(0.5)
        if official:
            with torch.no_grad():
                model(*two(9, dtype), 0.9)  # their copy makes its last move here
        log.append({n: p.detach() for n, p in m.named_parameters()})
        runs.append(log)
    # AdamW makes a step of 0.001 of a gradient that is rounding alone: in float32 loss and gradients are
    # compared
    last = None if dtype == torch.float64 else 2
    torch.testing.assert_close(runs[0][:last], runs[1][:last], **close)


# --- the official implementation's numbers


def official_name(ours):
    return (
        ours.replace('momentum_', '')
        .replace('encoder.', 'base_encoder.')
        .replace('projector.', 'base_encoder.head.')
    )


def golden_views(t):
    i = np.arange(GOLDEN['batch'] * 3 * 16 * 16)
    x1 = torch.tensor(np.sin(i * 0.11 + t) + np.cos(i * 0.013 - t)).reshape(-1, 3, 16, 16)
    return x1, 0.8 * x1 + 0.2 * torch.tensor(np.sin(i * 0.17 + 1 + t)).reshape(-1, 3, 16, 16)


def test_official_numbers():
    """Loss, every gradient, AdamW's step and the momentum encoder over three steps; MAE's positions have the
    two halves of the official one exchanged."""
    m = make(torch.float64, momentum=0.9, momentum_schedule='constant')

    close = partial(helpers.close, rtol=2e-5, atol=2e-6)
    for name, p in m.named_parameters():
        if name.endswith('pos_embed'):
            p.data = torch.cat(p.data.chunk(2, -1)[::-1], -1)
        else:
            p.data = named_numbers(p.shape, official_name(name)) * (
                (6 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
            ) + (1.0 if p.ndim == 1 and name.endswith('weight') else 0.0)
    for i, row in ((0, 'class_token'), (2, 'second'), (-1, 'last')):
        close(m.encoder.pos_embed[0, i], GOLDEN['table'][row])
    adamw = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    for t, want in enumerate(GOLDEN['steps']):
        close(m.momentum_encoder.blocks[0].attn.qkv.weight.norm(), want['momentum_qkv_in_this_forward'])
        loss = m(golden_views(t))['loss']
        adamw.zero_grad()
        loss.backward()
        close(loss, want['loss'])
        norms = {
            official_name(n): p.grad.norm().item() for n, p in m.named_parameters() if p.grad is not None
        }
        assert norms.keys() == want['gradient_norms'].keys(), "the same parameters learn"
        for name, norm in want['gradient_norms'].items():
            close(norms[name], norm)
        adamw.step()
        m.after_step(0.5)
        close(m.encoder.blocks[0].attn.qkv.weight.norm(), want['qkv_after'])


@pytest.mark.parametrize('temperature', GOLDEN['losses'])
def test_official_loss(temperature):
    q = named_numbers((5, 8), 'q').requires_grad_()
    k = named_numbers((5, 8), 'k')
    loss = make(temperature=float(temperature)).contrast(q, k)[0]
    loss.backward()
    torch.testing.assert_close(
        (loss.item(), q.grad),
        (
            GOLDEN['losses'][temperature]['loss'],
            torch.tensor(GOLDEN['losses'][temperature]['gradient'], dtype=torch.float64),
        ),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize('temperature', [0.07, 0.2, 1.0])
def test_loss_and_gradient_for_any_temperature(temperature):
    m = make(temperature=temperature)
    q, k = torch.randn(2, 5, 8, dtype=torch.float64, generator=seeded(3))
    a, b = q.clone().requires_grad_(), q.clone().requires_grad_()
    ours = m.contrast(a, k)[0]
    theirs = contrastive_loss(b, k, temperature)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close((ours, a.grad), (theirs, b.grad), rtol=1e-10, atol=1e-12)


def test_chance():
    m = make()
    nn.init.zeros_(m.predictor[0].weight)
    m.predictor[-1].eval()
    assert m(two())['loss'].item() == pytest.approx(4 * 0.2 * math.log(B), rel=1e-5)
    # what the official logs start with
    assert 4 * 0.2 * math.log(4096) == pytest.approx(6.65, abs=0.01)
    assert 4 * math.log(4096) == pytest.approx(33.3, abs=0.05)


def test_projector_equals_lightlys_but_for_its_last_norm():
    # lightly's learns in the last norm too
    m = make()
    theirs = MoCoProjectionHead(24, 32, 8, num_layers=3, batch_norm=True)
    mine = m.projector.state_dict()
    state = theirs.state_dict()
    learned = [
        k
        for k in state
        if not k.startswith(f'layers.{len(theirs.layers) - 1}.') or 'running' in k or 'num_batches' in k
    ]
    theirs.load_state_dict({**state, **dict(zip(learned, mine.values()))})
    x = torch.randn(16, 24)
    torch.testing.assert_close(m.projector(x), theirs(x), rtol=0, atol=1e-5)


def test_what_is_trained_and_what_is_frozen():
    m = make()
    before = m.encoder.patch_embed.proj.weight.clone()
    sgd = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    m(two())['loss'].backward()
    sgd.step()
    m.after_step(0.1)
    assert torch.equal(m.encoder.patch_embed.proj.weight, before)
    assert torch.equal(m.momentum_encoder.patch_embed.proj.weight, before)
    assert any(p.requires_grad for p in make(stem='conv').encoder.patch_embed.parameters()), (
        "a convolutional stem learns"
    )
    again = MoCoV3(m.encoder, hidden=32, dim=8, freeze_patches=False)  # an encoder that came in frozen
    assert all(p.requires_grad for p in again.encoder.patch_embed.parameters())
    assert not again.encoder.pos_embed.requires_grad
    again(two())['loss'].backward()
    assert all(p.grad is not None for p in again.encoder.patch_embed.parameters())


def test_fine_tuning_trains_what_pre_training_froze():
    m = make()
    model = Classifier(m.encoder, 3)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ['encoder.pos_embed'], (
        "a fixed table of positions, and nothing else"
    )
    assert not any(p.requires_grad for p in m.encoder.patch_embed.parameters()), (
        "the encoder that was given stays as it was"
    )


def test_hooks_tell_each_layers_gradient_once_a_step():
    "What the study of spikes reads: one call a parameter and step, with the whole step's gradient."
    m = make(freeze_patches=False)
    found = {}
    for n, p in m.encoder.named_parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(
                lambda p, n=n: found.setdefault(n, []).append(p.grad.norm().item())
            )
    m(two())['loss'].backward()
    assert found == {
        n: [p.grad.norm().item()]
        for n, p in m.encoder.named_parameters()
        if p.requires_grad and p.grad is not None
    }


def test_switches():
    assert isinstance(make(predictor=False).predictor, nn.Identity)
    m = make(stop_gradient=False)
    assert m.momentum_encoder is None
    x1, x2 = two()
    z1, z2 = m.embed(x1), m.embed(x2)
    expected = contrastive_loss(m.predictor(z1), z2, 0.2) + contrastive_loss(m.predictor(z2), z1, 0.2)
    torch.testing.assert_close(m([x1, x2])['loss'], expected, rtol=1e-5, atol=1e-5)
    still = make(momentum=1.0, momentum_schedule='constant')
    start = [p.clone() for p in still.momentum_projector.parameters()]
    with torch.no_grad():
        still.projector[0].weight.add_(1.0)
    still.after_step(0.5)
    assert equal(start, still.momentum_projector.parameters())


def test_schedule_of_the_momentum():
    m = make()  # adjust_moco_momentum: 1 - (1 + cos(pi e / E)) / 2 * (1 - .99)
    assert [m.momentum_at(e / 300) for e in (0, 75, 150, 300)] == pytest.approx(
        [1 - 0.5 * (1 + math.cos(math.pi * e / 300)) * 0.01 for e in (0, 75, 150, 300)]
    )


def test_a_resnet_gets_the_papers_other_heads():
    m = MoCoV3(resnet_nano(img_size=32), hidden=32, dim=8, temperature=1.0)
    assert len([layer for layer in m.projector if isinstance(layer, nn.Linear)]) == 2
    assert isinstance(m.predictor[-1], nn.Linear)
    m(list(torch.randn(2, B, 3, 32, 32)))['loss'].backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)


def test_first_weights():
    torch.manual_seed(0)
    e = init_mocov3(ViT(16, 8, 3, embed_dim=96, depth=2, num_heads=2, positions='sincos'))

    def near(w, limit):
        return w.abs().max().item() == pytest.approx(limit, rel=0.02) and w.std().item() == pytest.approx(
            limit / 3**0.5, rel=0.03
        )

    assert near(e.blocks[0].attn.qkv.weight, (6 / 192) ** 0.5)
    assert near(e.blocks[1].mlp.fc1.weight, (6 / 480) ** 0.5)
    assert near(e.patch_embed.proj.weight, (6 / (3 * 64 + 96)) ** 0.5)
    assert e.cls_token.abs().max() < 1e-5
    assert all(b.abs().max() == 0 for n, b in e.named_parameters() if n.endswith('bias'))


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: make(temperature=0.0), 'must be above 0'),
        (lambda: make(momentum=1.5), '0 to 1; 1.5 is not'),
        (lambda: make(momentum_schedule='linear'), 'schedule of momentum'),
        (lambda: make()(two()[0]), 'compares two views'),
        (lambda: make()([v[:1] for v in two()]), 'batch of one'),
        (lambda: MoCoV3(nn.Linear(2, 2)), 'needs an encoder'),
    ],
)
def test_bad_input(case, match):
    with pytest.raises((ValueError, TypeError), match=match):
        case()
