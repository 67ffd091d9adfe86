"""MoCo against numbers that the official code gave, against lightly's loss on the same queue, and against
what it must be by its definition."""

import copy, json, math, re
from functools import partial
from pathlib import Path
import helpers
from helpers import check_moves, named_numbers, seeded, weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import nn
from vit_ssl_lab.components.processes import split_batchnorm
from vit_ssl_lab.core import Features
from vit_ssl_lab.data.views import views
from vit_ssl_lab.encoders.resnet import resnet18
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.moco import MoCo

GOLDEN = json.loads((Path(__file__).parent / 'golden' / 'moco_official.json').read_text())
torch.set_num_threads(1)


class Toy(nn.Module):
    "A small encoder with BatchNorm that keeps the contract."

    width = 16
    in_chans = 3
    img_size = (8, 8)
    grid = (1, 1)

    def __init__(self, norm=True):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()
        )

    def forward(self, images, keep=None):
        z = self.net(images)
        return Features(z, z[:, None], self.grid)


def toy(seed=0, norm=True, **options):
    torch.manual_seed(seed)
    return MoCo(Toy(norm), **{**dict(dim=8, queue=12, momentum=0.9), **options})


def two_views(seed, n=4):
    g = seeded(seed)
    return [torch.randn(n, 3, 8, 8, generator=g) for _ in range(2)]


def step(model, optimizer, views):
    out = model(views)
    optimizer.zero_grad()
    out['loss'].backward()
    optimizer.step()
    model.after_step(0.0)
    return out


# --- the official implementation


def official_name(ours: str, mlp: bool) -> str:
    return re.sub(
        r'^(momentum_)?encoder\.',
        '',
        re.sub(r'^(momentum_)?projector\.(\d)', r'fc.\2' if mlp else 'fc', ours),
    )


def golden_model(mlp: bool) -> MoCo:
    "The model of tests/golden/moco_official.json: parameters by formula from their official names."
    model = MoCo(
        resnet18(img_size=32),
        dim=GOLDEN['dim'],
        queue=GOLDEN['queue'],
        momentum=0.9,
        temperature=0.2 if mlp else 0.07,
        mlp=mlp,
    ).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            name = 'encoder_q.' + official_name(name, mlp)
            scale = (6 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
            p.copy_(
                named_numbers(p.shape, name) * scale
                + (1.0 if p.ndim == 1 and name.endswith('weight') else 0.0)
            )
        model.queue.keys.copy_(F.normalize(named_numbers(model.queue.keys.shape, 'queue'), dim=1))
    return model.train()


def golden_views(t: int):
    i = np.arange(GOLDEN['batch'] * 3 * 32 * 32)
    x1 = torch.tensor(np.sin(i * 0.11 + t) + np.cos(i * 0.013 - t)).reshape(-1, 3, 32, 32)
    return x1, 0.8 * x1 + 0.2 * torch.tensor(np.sin(i * 0.17 + 1 + t)).reshape(-1, 3, 32, 32)


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_official_numbers(version):
    "Logits, loss, gradients, queue and pointer over K/N + 1 steps of SGD, and the key encoder's course."
    mlp = version == 'v2'
    model = golden_model(mlp)

    close = partial(helpers.close, rtol=2e-5, atol=2e-6)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.03, momentum=0.9, weight_decay=1e-4
    )
    for t, want in enumerate(GOLDEN[version]):
        x1, x2 = golden_views(t)
        if 'logits' in want:
            # a second forward pass in train mode would move BatchNorm's running statistics only
            peek = copy.deepcopy(model)
            q = F.normalize(peek.query(x1), dim=1)
            k = F.normalize(peek.keys(x2), dim=1)
            close(
                torch.cat([(q * k).sum(1, keepdim=True), q @ peek.queue.keys.T], 1) / peek.temperature,
                want['logits'],
            )
        # the official code averages at the start of the next forward
        close(model.momentum_encoder.conv1.weight.norm(), want['key_conv1'])
        out = model([x1, x2])
        close(out['loss'], want['loss'])
        optimizer.zero_grad()
        out['loss'].backward()
        norms = {
            official_name(n, mlp): p.grad.norm() for n, p in model.named_parameters() if p.grad is not None
        }
        for name, norm in want.get('gradient_norms', {}).items():
            close(norms[name], norm)
        optimizer.step()
        model.after_step((t + 1) / 5)
        assert model.queue.pointer.item() == want['pointer']
        close(model.queue.keys[0], want['queue_first'])
        close(model.queue.keys.sum(1), want['queue_row_sums'])


# --- lightly


@pytest.mark.parametrize('temperature', [0.07, 0.2])
def test_lightly(temperature):
    """The same loss and gradients for the same queue, also after enqueueing, in three steps of SGD; and the
    loss leaves the queue alone."""
    model = toy(temperature=temperature).double()
    start = weights(model)
    bank = NTXentLoss(temperature=temperature, memory_bank_size=(12, 8))
    bank.memory_bank.bank = model.queue.keys.clone()
    peer = copy.deepcopy(model)

    def sgd(network):
        return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1, momentum=0.9)

    ours = sgd(model)
    theirs = sgd(peer)
    for t in range(3):  # the queue is full after three: lightly's bank then starts anew, as ours does
        x = [view.double() for view in two_views(t)]
        before = model.queue.keys.clone()
        out = model(x)
        assert torch.equal(model.queue.keys, before), "the loss must not enqueue"
        q = peer.projector(peer.encoder(x[0]).pooled)
        k = peer.momentum_projector(peer.momentum_encoder(x[1]).pooled)
        loss = bank(q, k)
        torch.testing.assert_close(out['loss'], loss, atol=1e-5, rtol=1e-5)
        ours.zero_grad()
        theirs.zero_grad()
        out['loss'].backward()
        loss.backward()
        for (name, a), b in zip(model.named_parameters(), peer.parameters()):
            if a.requires_grad:
                torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5, msg=name)
        ours.step()
        theirs.step()
        model.after_step(0.0)
        super(MoCo, peer).after_step(0.0)
        torch.testing.assert_close(model.queue.keys, bank.memory_bank.bank, atol=1e-5, rtol=1e-5)
        assert model.queue.pointer.item() == bank.memory_bank.bank_ptr.item()
    learned = {n: start[n] for n, p in model.named_parameters()}
    check_moves(learned, dict(model.named_parameters()), dict(peer.named_parameters()), rtol=1e-6)


# --- what it must be by definition


@pytest.mark.parametrize('size', [512, 4096])
def test_loss_at_the_start(size):
    """Against random keys, whose cosines are Gaussian with variance 1/d: log(exp(own / tau) + K exp(1 / (2 d
    tau^2))) - own / tau. Against keys of an untrained encoder, which are all alike: log(1 + K)."""
    torch.manual_seed(0)
    model = MoCo(vit_nano(16, 8), dim=128, queue=size).eval()
    x = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    own = F.cosine_similarity(model.query(x[0]), model.keys(x[1])).mean()
    assert (
        abs(
            model(x)['loss']
            - ((own / 0.2).exp().add(size * math.exp(1 / (2 * 128 * 0.2**2))).log() - own / 0.2)
        )
        < 0.05
    )
    model.queue.keys.copy_(F.normalize(model.keys(torch.randn(64, 3, 16, 16)), dim=1).repeat(size // 64, 1))
    assert abs(model(x)['loss'] - math.log(1 + size)) < 0.2


def test_the_queue_holds_the_last_keys_and_no_others():
    """After t steps: exactly the last keys, in their rows, the oldest next to go; a batch never meets its own
    keys."""
    model = toy(norm=False)
    made = []
    noise = model.queue.keys.clone()
    for t in range(5):  # 4 keys a step into 12 rows
        x1, x2 = two_views(t)
        keys = F.normalize(model.keys(x2), dim=1)
        assert not any((model.queue.keys - k).abs().sum(1).lt(1e-6).any() for k in keys), (
            "its own keys must not be negatives"
        )
        model([x1, x2])
        model.after_step(0.0)
        made.append(keys)
        want = noise.clone()
        for i, k in enumerate(made):
            want[4 * i % 12 : 4 * i % 12 + 4] = k
        torch.testing.assert_close(model.queue.keys, want, atol=1e-6, rtol=0)
        assert model.queue.pointer.item() == 4 * (t + 1) % 12
        assert model.queue.filled == min(4 * (t + 1), 12)


def test_eval_mode_touches_nothing():
    "A validation step moves neither the queue nor the momentum encoder."
    model = toy().eval()
    state = weights(model)
    model(two_views(0))
    assert model.queue.staged == [], "keys were kept in eval mode"
    for k, v in model.state_dict().items():
        assert torch.equal(v, state[k]), k


def test_micro_batches_enqueue_what_one_batch_does():
    whole, parts = toy(norm=False), toy(norm=False)
    x1, x2 = two_views(0)
    whole([x1, x2])
    whole.after_step(0.0)
    for i in (0, 2):
        parts([x1[i : i + 2], x2[i : i + 2]])
    parts.after_step(0.0)
    torch.testing.assert_close(whole.queue.keys, parts.queue.keys, atol=1e-6, rtol=0)


def test_slow_copy():
    """It starts equal, no gradient reaches it, it follows by equation 2, and its BatchNorm keeps its own
    statistics."""
    model = toy()
    online = dict(model.encoder.named_parameters())
    momentum_weights = dict(model.momentum_encoder.named_parameters())
    start = {k: v.clone() for k, v in online.items()}
    assert all(
        torch.equal(online[k], momentum_weights[k]) and not momentum_weights[k].requires_grad for k in online
    )
    step(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0), two_views(0))
    for k in online:
        torch.testing.assert_close(momentum_weights[k], 0.9 * start[k] + 0.1 * online[k])
    assert not torch.equal(model.encoder.net[2].running_mean, model.momentum_encoder.net[2].running_mean)


def test_symmetric_loss_is_the_sum_of_both_directions():
    "Against the same queue: nothing is enqueued between them; the keys of the second view enter."
    one, both = toy(norm=False), toy(norm=False, symmetric=True)
    x1, x2 = two_views(0)
    torch.testing.assert_close(both([x1, x2])['loss'], one([x1, x2])['loss'] + one([x2, x1])['loss'])
    both.after_step(0.0)
    # momentum: nothing was learned yet
    torch.testing.assert_close(both.queue.keys[:4], F.normalize(both.momentum_embed(x2), dim=1))


@pytest.mark.parametrize('head, query, key', [('moco', 3, 3), ('byol', 8, 4), ('byol-both', 8, 8)])
def test_heads(head, query, key):
    """How many layers the queries and the keys go through: version 2+ has BYOL's predictor on the queries
    alone, its symmetric form on both sides."""
    model = toy(head=head, hidden=24)

    def layers(*ms):
        kinds = (nn.Linear, nn.BatchNorm1d, nn.ReLU)
        return [layer for m in ms for layer in m.modules() if isinstance(layer, kinds)]

    assert (len(layers(model.projector, model.predictor)), len(layers(model.momentum_projector))) == (
        query,
        key,
    )
    out = step(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1), two_views(0))
    assert out['loss'].isfinite()
    assert 0 <= out['accuracy'] <= 1
    assert 0 < out['std'] < 2


def test_versions():
    """Version 1: one linear layer; version 2:
    Linear, ReLU, Linear, without BatchNorm, the hidden layer as wide as the encoder."""
    v1 = MoCo(vit_nano(16, 8), queue=8, mlp=False)
    v2 = MoCo(vit_nano(16, 8), queue=8)
    assert [tuple(m.weight.shape) for m in v1.projector if isinstance(m, nn.Linear)] == [(128, 96)]
    assert [type(m).__name__ for m in v2.projector] == ['Linear', 'ReLU', 'Linear']
    assert [tuple(m.weight.shape) for m in v2.projector[::2]] == [(96, 96), (128, 96)]
    assert all(m.bias is not None for m in v2.projector[::2])


def test_shuffling():
    """With BatchNorm in groups shuffling changes who shares statistics, and keys come back in their order;
    with one group, or without BatchNorm, it changes nothing."""
    plain = toy()
    x, _ = two_views(0, 12)
    assert plain.shuffle
    assert not toy(norm=False).shuffle
    assert not toy(shuffle=False).shuffle
    torch.testing.assert_close(plain.keys(x), plain.momentum_embed(x), atol=1e-5, rtol=1e-5)
    split = toy()
    split_batchnorm(split, 3)
    torch.manual_seed(0)
    assert not torch.allclose(split.keys(x), split.momentum_embed(x), atol=1e-3)
    split.eval()
    torch.testing.assert_close(split.keys(x), split.momentum_embed(x))


# --- bad input: one sentence that says what was given, what is accepted, what to do


def test_bad_input():
    with pytest.raises(ValueError, match="temperature.*above 0.*0.07 and 0.2"):
        toy(temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        toy(temperature=-1.0)
    for m in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"0 to 1; {m} is not"):
            toy(momentum=m)
    with pytest.raises(ValueError, match="two views of each picture"):
        toy()(two_views(0)[0])
    with pytest.raises(ValueError, match="two views of each picture"):
        toy()(two_views(0)[:1])
    with pytest.raises(ValueError, match="batch of one picture"):
        toy()(two_views(0, 1))
    with pytest.raises(ValueError, match="queue of 0 keys"):
        toy(queue=0)
    with pytest.raises(ValueError, match="There is no head 'bylo'. Did you mean 'byol'"):
        toy(head='bylo')
    with pytest.raises(TypeError, match="MoCo needs an encoder with width"):
        MoCo(nn.Linear(3, 3))
    model = toy()
    model(two_views(0, 5))
    with pytest.raises(ValueError, match="12 keys can't be filled with batches of 5.*multiple of the batch"):
        model.after_step(0.0)
    model = toy()
    model(two_views(0))
    model.after_step(0.0)
    model(two_views(0, 2))
    with pytest.raises(ValueError, match="drop_last=True"):
        model.after_step(0.0)


def test_a_checkpoint_keeps_the_queue():
    model = toy()
    model(two_views(0))
    model.after_step(0.0)
    again = toy(seed=1)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.queue.keys, model.queue.keys)
    assert again.queue.pointer.item() == 4
    assert again.queue.filled == 4


def test_views_of_version_one():
    "Version 1's weaker views: hue as strong as the rest and always on, no blur."
    policy = views(
        'mocov2', 32, [0.5] * 3, [0.5] * 3, jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, blur=0.0
    ).policies[0]
    assert policy.jitter == (0.4, 0.4, 0.4, 0.4)
    assert policy.blur == 0.0
    assert policy.scale == (0.2, 1.0)
    assert policy.grey == 0.2
