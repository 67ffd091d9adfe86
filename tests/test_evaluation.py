"""Evaluation against independent implementations: scikit-learn, sums done by hand, and the official code's
formulas."""

from importlib import import_module
from helpers import seeded, weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vit_ssl_lab.core import Features
from vit_ssl_lab.data import load
from vit_ssl_lab.data.dataset import Dataset
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.evaluation import (
    Classifier,
    RawPixels,
    Score,
    alignment,
    describe_health,
    dimension_std,
    effective_rank,
    extract,
    finetune,
    gradient_norms,
    health,
    knn,
    knn_votes,
    linear_probe,
    random_encoder_like,
    score_table,
    standardise,
    supervised,
    train_classifier,
    uniformity,
)
from vit_ssl_lab.evaluation.finetune import NotFinite, unfreeze_last
from vit_ssl_lab.evaluation.linear_probe import probe_paper, probe_small
from vit_ssl_lab.training.optim import param_groups


def toy(n=200, classes=4, seed=0, noise=60.0, size=8):
    "Each class lights another quarter of the picture, under noise."
    g = seeded(seed)
    labels = torch.arange(n) % classes
    images = torch.randn(n, 1, size, size, generator=g) * noise + 100
    half = size // 2
    for i, c in enumerate(labels.tolist()):
        images[i, :, (c // 2) * half : (c // 2 + 1) * half, (c % 2) * half : (c % 2 + 1) * half] += 60
    return Dataset(
        'toy', 'train', images.clamp(0, 255).byte(), labels, [str(c) for c in range(classes)], (0.4,), (0.25,)
    )


def small_vit(**kw):
    torch.manual_seed(0)
    return ViT(**{**dict(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=3, num_heads=2), **kw})


# ---- features


def test_extract_is_the_encoder_in_eval_mode_in_order():
    class Drops(nn.Module):
        width = 64

        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, keep=None):
            x = self.drop(x.flatten(1))
            return Features(x, x[:, None], (1, 1))

    data = toy()
    encoder = Drops().train()
    X, y = extract(encoder, data, batch_size=37)
    expected = (data.images.float() / 255 - 0.4) / 0.25
    assert torch.allclose(X, expected.flatten(1), atol=1e-6)
    assert y.equal(data.labels)
    assert encoder.training


def test_extract_refuses_broken_weights():
    vit = small_vit()
    nn.init.constant_(vit.norm.weight, float('inf'))
    with pytest.raises(ValueError, match='200 of 200 feature vectors are not finite'):
        extract(vit, toy())


@pytest.mark.parametrize('stem', ['patchify', 'conv'])
def test_a_random_encoder_is_drawn_like_a_fresh_one(stem):
    def make(seed):
        return (
            torch.manual_seed(seed),
            ViT(img_size=32, patch_size=4, in_chans=3, embed_dim=64, depth=2, num_heads=2, stem=stem),
        )[1]

    fresh, trained = make(1), make(2)
    with torch.no_grad():
        for p in trained.parameters():
            p.mul_(7).add_(0.3)  # far from any initialisation
    a = random_encoder_like(trained, 5)
    b = random_encoder_like(trained, 6)
    for (name, p), q, r in zip(fresh.named_parameters(), a.parameters(), b.parameters()):
        if p.numel() > 500:
            assert 0.8 < q.std() / p.std() < 1.25, name
            assert not q.equal(r), name
    assert random_encoder_like(trained, 5).blocks[0].mlp.fc1.weight.equal(a.blocks[0].mlp.fc1.weight)
    assert (trained.norm.weight == 7.3).all(), "the encoder that was given must stay"


def test_a_random_encoder_keeps_the_frozen_table_and_the_random_numbers():
    vit = small_vit(positions='sincos')
    state = torch.get_rng_state()
    assert random_encoder_like(vit, 3).pos_embed.equal(vit.pos_embed)
    assert torch.get_rng_state().equal(state)


# ---- kNN


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('temperature', [0.07, 0.5, None])
def test_knn_agrees_with_scikit_learn(seed, temperature):
    from sklearn.neighbors import KNeighborsClassifier

    g = seeded(seed)
    X = torch.randn(211, 6, generator=g).double()
    y = torch.randint(0, 5, (211,), generator=g)
    Q = torch.randn(83, 6, generator=g).double()
    weights = 'uniform' if temperature is None else lambda d: np.exp((1 - d) / temperature)
    other = KNeighborsClassifier(n_neighbors=13, metric='cosine', algorithm='brute', weights=weights).fit(
        X, y
    )
    votes = knn_votes(X, y, Q, k=13, temperature=temperature, chunk=17)
    assert np.array_equal(votes.argmax(1).numpy(), other.predict(Q))
    assert np.allclose((votes / votes.sum(1, keepdim=True)).numpy(), other.predict_proba(Q), atol=1e-9)


def test_knn_of_a_set_in_itself_is_perfect_with_one_neighbour():
    assert knn(RawPixels(), toy(), toy(), k=1).value == 100


@pytest.mark.parametrize(
    'bad, message',
    [
        (dict(k=0), 'must lie in 1..200'),
        (dict(k=201), 'must lie in 1..200'),
        (dict(temperature=-1.0), 'above 0'),
    ],
)
def test_knn_says_what_is_wrong(bad, message):
    with pytest.raises(ValueError, match=message):
        knn(RawPixels(), toy(), toy(), **bad)


# ---- linear probe


def test_small_probe_is_scikit_learns_logistic_regression_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = toy(600, seed=0), toy(400, seed=1)
    score = linear_probe(RawPixels(), train, test)
    X, y = extract(RawPixels(), train)
    Q, truth = extract(RawPixels(), test)
    other = make_pipeline(StandardScaler(), LogisticRegression(C=score.setting['C'], max_iter=1000)).fit(
        X.numpy(), y.numpy()
    )
    assert abs(score.value - 100 * other.score(Q.numpy(), truth.numpy())) <= 0.5
    assert score.value > 60


def test_the_choice_of_the_penalty_never_sees_the_test_set():
    X, y = extract(RawPixels(), toy(400))
    Q, truth = extract(RawPixels(), toy(200, seed=1))
    _, how = probe_small(X, y, Q, truth)
    worst, shuffled = probe_small(X, y, Q, (truth + 1) % 4)
    assert shuffled == how
    assert worst < 40


def test_the_probe_is_invariant_to_the_scale_of_each_feature():
    X, y = extract(RawPixels(), toy(400))
    Q, truth = extract(RawPixels(), toy(200, seed=1))
    scale = torch.logspace(-1, 4, X.shape[1])
    assert abs(probe_small(X, y, Q, truth)[0] - probe_small(X * scale, y, Q * scale, truth)[0]) <= 0.5


def test_standardise_uses_the_training_statistics():
    X = torch.randn(100, 5) * 3 + 2
    Q = torch.randn(50, 5) + 9
    bn = nn.BatchNorm1d(5, affine=False, eps=1e-6, momentum=1.0)
    bn(X)
    a, b = standardise(X, Q)
    assert torch.allclose(a, bn(X), atol=1e-5)
    assert torch.allclose(b, (Q - X.mean(0)) / X.std(0, unbiased=False), atol=1e-4)


def test_the_papers_probe_takes_the_official_steps():
    "LARS of facebookresearch/mae util/lars.py, one full batch an epoch, written out."
    g = seeded(0)
    X = torch.randn(64, 6, generator=g)
    y = torch.arange(64) % 3
    base, epochs = 256.0, 4  # times batch/256: a rate large enough to move in four steps
    _, how = probe_paper(X, y, X, y, epochs=epochs, warmup=0, base_lr=base, batch=64, seed=0)
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    bn = nn.BatchNorm1d(6, affine=False, eps=1e-6)
    mu = [0.0, 0.0]
    losses = []
    for step in range(epochs):
        lr = base * 64 / 256 * 0.5 * (1 + np.cos(np.pi * step / epochs))
        loss = F.cross_entropy(linear(bn(X)), y)
        losses.append(loss.item())
        with torch.no_grad():
            for i, (p, d) in enumerate(
                zip(linear.parameters(), torch.autograd.grad(loss, list(linear.parameters())))
            ):
                if p.ndim > 1:
                    d = d * 0.001 * p.norm() / d.norm()
                mu[i] = 0.9 * mu[i] + d
                p -= lr * mu[i]
    assert abs(how['loss'] - losses[-1]) < 2e-3
    assert abs(losses[-1] - losses[0]) > 1


def test_augmented_probe_encodes_anew_each_epoch():
    class Count(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return images.float() / 255

    views = Count()
    linear_probe(RawPixels(), toy(64), toy(64), protocol='paper', views=views, epochs=3, warmup=1)
    assert views.calls == 3


# ---- fine-tuning


def test_layer_decay_is_the_official_factor():
    model = Classifier(small_vit(), 4)
    groups = param_groups(model, weight_decay=0.05, layer_decay=0.65)
    rate, decay = ({id(p): g[k] for g in groups for p in g['params']} for k in ('lr_scale', 'weight_decay'))

    def layer(name):  # util/lr_decay.py: 0 for the embeddings, i + 1 for block i, depth + 1 for the rest
        if name.startswith(('encoder.cls_token', 'encoder.pos_embed', 'encoder.patch_embed')):
            return 0
        return int(name.split('.')[2]) + 1 if name.startswith('encoder.blocks') else 4

    for name, p in model.named_parameters():
        assert rate[id(p)] == pytest.approx(0.65 ** (4 - layer(name)), rel=1e-12), name
        assert decay[id(p)] == (0 if p.ndim == 1 else 0.05), name


def test_the_first_loss_is_log_of_the_classes():
    losses = train_classifier(
        Classifier(small_vit(), 4), toy(), steps=1, batch_size=64, lr=1e-3, label_smoothing=0
    )
    assert losses[0] == pytest.approx(np.log(4), abs=1e-3)


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_the_loop_takes_the_steps_of_torchs_optimizer(optimizer):
    data = toy(64)
    ours = Classifier(small_vit(), 4)
    theirs = Classifier(small_vit(), 4)
    theirs.load_state_dict(ours.state_dict())
    train_classifier(
        ours,
        data,
        steps=3,
        batch_size=64,
        lr=0.01,
        weight_decay=0.1,
        optimizer=optimizer,
        warmup=0,
        label_smoothing=0,
        seed=3,
    )
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim <= 1]
    split = [dict(params=matrices, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    if optimizer == 'adamw':
        opt = torch.optim.AdamW(split, lr=0.01)
    else:
        opt = torch.optim.SGD(split, lr=0.01, momentum=0.9)
    for step in range(3):
        for g in opt.param_groups:
            g['lr'] = 0.01 * 0.5 * (1 + np.cos(np.pi * (step + 0.5) / 3))
        opt.zero_grad()
        F.cross_entropy(theirs(data.floats()), data.labels).backward()
        opt.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(p, q, atol=1e-5), name


def test_finetuning_learns_and_leaves_everything_else_alone():
    vit = small_vit()
    data = load('digits')
    test = load('digits', split='test')
    state = torch.get_rng_state()
    before = weights(vit)
    a, b = (finetune(vit, data, test, steps=120, lr=5e-3, layer_decay=1.0, seed=1) for _ in range(2))
    assert a.value == b.value > 30
    assert all(v.equal(before[k]) for k, v in vit.state_dict().items())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize('blocks', [0, 0.5, 1, 3])
def test_partial_finetuning_moves_only_the_last_blocks(blocks):
    model = unfreeze_last(Classifier(small_vit(stem='conv'), 4), blocks)
    before = weights(model)
    train_classifier(model, toy(), steps=3, batch_size=32, lr=1e-2)
    moved = {k for k, v in model.state_dict().items() if not v.equal(before[k])}
    allowed = {
        0: ('head',),
        0.5: ('head', 'encoder.blocks.2.mlp', 'encoder.blocks.2.norm2'),
        1: ('head', 'encoder.blocks.2'),
        3: ('head', 'encoder.blocks.0', 'encoder.blocks.1', 'encoder.blocks.2'),
    }[blocks]
    assert all(k.startswith(allowed) for k in moved), "BatchNorm statistics of a frozen stem count too"
    assert all(any(k.startswith(a) for k in moved) for a in allowed)


def test_few_labels_are_so_many_a_class(monkeypatch):
    # the package's attribute of that name is the function
    module = import_module('vit_ssl_lab.evaluation.finetune')
    seen = []
    monkeypatch.setattr(module, 'train_classifier', lambda model, train, *a, **k: seen.append(train) or [0.0])
    for seed in (0, 1):
        finetune(small_vit(), toy(200), toy(20), labels_per_class=5, seed=seed)
    assert all(d.labels.bincount().tolist() == [5] * 4 for d in seen)
    assert not seen[0].images.equal(seen[1].images)


def test_supervised_starts_from_other_weights():
    vit = small_vit()
    data = toy(200)
    scratch = supervised(vit, data, data, steps=2, lr=1e-3, seed=4)
    by_hand = finetune(random_encoder_like(vit, 4), data, data, steps=2, lr=1e-3, seed=4, layer_decay=1.0)
    assert scratch.value == by_hand.value
    assert scratch.setting['loss'] == by_hand.setting['loss']
    assert scratch.setting['name'] == 'supervised'


@pytest.mark.parametrize(
    'bad, error, message',
    [
        (dict(labels_per_class=51), ValueError, 'the rarest class has 50'),
        (dict(labels_per_class=0), ValueError, 'must lie in 1..50'),
        (dict(blocks=4), ValueError, 'up to 3'),
        (dict(blocks=-1), ValueError, 'up to 3'),
        (dict(optimizer='adamww'), ValueError, "Near it are 'adamw'"),
        (dict(lr=1e20, optimizer='sgd', steps=30), NotFinite, 'lower the rate'),
    ],
)
def test_finetune_says_what_is_wrong(bad, error, message):
    with pytest.raises(error, match=message):
        finetune(small_vit(), toy(), toy(), **{'steps': 1, **bad})


# ---- the table


class Oracle(nn.Module):
    "Its feature is the place of the light: as good as this data allows."

    width = 4

    def forward(self, x, keep=None):
        x = F.avg_pool2d(x, 4).flatten(1)
        return Features(x, x[:, None], (1, 1))


def test_the_table_says_when_an_encoder_beats_the_baselines_and_when_not():
    train, test = toy(600, noise=150.0), toy(1500, seed=1, noise=150.0)
    good = score_table(Oracle(), train, test, random=small_vit())
    bad = score_table(
        {'blind': small_vit(), 'oracle': Oracle()}, train, test, random=small_vit(), baselines=good
    )
    assert all(' beats raw pixels' in s for s in good.sentences())
    assert all('blind' in s and 'does not beat oracle' in s for s in bad.sentences())
    assert list(bad.rows) == ['blind', 'oracle', 'raw pixels', 'random encoder']
    assert bad.rows['raw pixels'] is good.rows['raw pixels']
    assert good.frame().loc['encoder', 'kNN'] == good.rows['encoder']['kNN'].value
    assert '<table' in good._repr_html_()


def test_a_gap_within_the_noise_is_called_so():
    from vit_ssl_lab.evaluation import ScoreTable

    def table(n):
        return ScoreTable(
            {'ours': {'kNN': Score(51.0)}, 'raw pixels': {'kNN': Score(50.0)}}, 'ours', n
        ).sentences()[0]

    # two standard errors: 4.5 and .45 points
    assert 'within the noise' in table(1000)
    assert ' beats ' in table(100_000)


# ---- health


def test_uniformity_and_alignment_are_the_official_lines():
    "ssnl/align_uniform, README."
    g = seeded(0)
    z = torch.randn(50, 8, generator=g)
    w = torch.randn(50, 8, generator=g)
    x, y = F.normalize(z, dim=1), F.normalize(w, dim=1)
    assert uniformity(z) == pytest.approx(
        torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item(), abs=1e-5
    )
    assert alignment(z, w) == pytest.approx((x - y).norm(p=2, dim=1).pow(2).mean().item(), abs=1e-5)


def test_effective_rank_counts_equal_directions():
    g = seeded(0)
    for r in (1, 5, 16):
        q = (
            torch.linalg.qr(torch.randn(200, r, generator=g).double())[0]
            @ torch.linalg.qr(torch.randn(16, r, generator=g).double())[0].T
        )
        assert effective_rank(q) == pytest.approx(r, rel=1e-3)


def test_gradient_norms_add_up():
    model = Classifier(small_vit(), 4)
    F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
    norms = gradient_norms(model, depth=3)
    assert 'encoder.blocks.1' in norms
    assert sum(v**2 for v in norms.values()) ** 0.5 == pytest.approx(
        nn.utils.clip_grad_norm_(model.parameters(), 1e9).item(), rel=1e-5
    )


def test_diagnose_names_each_state():
    g = seeded(0)
    z = torch.randn(300, 32, generator=g)
    assert describe_health(z).startswith('healthy')
    assert dimension_std(z).mean() == pytest.approx(1, abs=0.02)
    assert describe_health(torch.ones(300, 32) + 1e-4 * z).startswith('collapsed: std 0.00')
    assert describe_health(z * (torch.arange(32) < 2)).startswith('narrow')
    assert set(health(z, z)) == {'std', 'effective_rank', 'participation', 'uniformity', 'alignment'}


def test_the_grid_of_penalties_reaches_both_ends():
    """Half noise dimensions want a strong penalty, clean ones a weak penalty: neither may sit at the edge of
    the grid."""
    g = seeded(0)
    y = torch.arange(3000) % 2
    t = torch.arange(1000) % 2

    def wide(y):
        return torch.randn(len(y), 300, generator=g) + 0.15 * (2 * y[:, None] - 1) * (torch.arange(300) < 30)

    _, how = probe_small(wide(y), y, wide(t), t)
    assert 1e-5 < how['C'] < 0.1


def test_the_face_exports_every_page():
    "vit_ssl_lab.evaluation has all public names of its modules."
    import importlib
    import pkgutil

    from vit_ssl_lab import evaluation

    for module in pkgutil.iter_modules(evaluation.__path__):
        page = importlib.import_module(f'vit_ssl_lab.evaluation.{module.name}')
        assert set(page.__all__) <= set(evaluation.__all__), module.name
