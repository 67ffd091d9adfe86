"""What a laptop recipe is worth is measured the same way for every method, and what is stored fits what is
there."""

import pytest
import torch
from vit_ssl_lab.results import load_result, results_dir
from vit_ssl_lab.training import build, recipe
from vit_ssl_lab.training.loop import asks_for
from vit_ssl_lab.training.recipes import METHODS, Recipe, change
from vit_ssl_lab.studies import runs
from vit_ssl_lab.data import load

SIAMESE = ('simclr', 'byol', 'moco', 'simsiam', 'mocov3', 'momentum_projector', 'sdssl')
STORED = [
    m
    for m in METHODS
    if m not in ('mae', 'esvit', *SIAMESE) and (results_dir() / f'{m}_laptop.json').exists()
]


@pytest.mark.parametrize('method', SIAMESE)
def test_the_laptop_recipe_beats_a_random_encoder(method):
    """Stored: three seeds on both data sets, made with the recipe of today; on scenes kNN and probe of the
    pooled vector lie above the random encoder's on average."""
    record = load_result(f'{method}_laptop')
    assert Recipe.from_json(record['setting']['recipe']) == recipe(method, 'laptop')
    assert {k: set(v) for k, v in record['figures'].items()} == {
        k: {'0', '1', '2'} for k in ('scenes', 'fashion-mnist')
    }
    runs = record['figures']['scenes'].values()
    for score in runs.SCORES:
        assert sum(r[f'encoder, pooled, {score}'] - r[f'random encoder, pooled, {score}'] for r in runs) > 0


@pytest.mark.parametrize('method', STORED)
def test_the_later_methods_beat_a_random_encoder(method):
    """Stored for the later methods: made with the recipe of today; the probe, pooled or by regions, lies
    above the random encoder's in every stored seed, and so does kNN, but for two whose lectures say that
    it does not."""
    record = load_result(f'{method}_laptop')
    assert Recipe.from_json(record['setting']['recipe']) == recipe(method, 'laptop')
    runs = record['figures']['scenes'].values()
    for score in ['linear probe'] if method in ('dino', 'flip') else runs.SCORES:
        assert (
            max(
                min(r[f'encoder, {kind}, {score}'] - r[f'random encoder, {kind}, {score}'] for r in runs)
                for kind in ('pooled', 'regions')
            )
            > 0
        )


def test_what_the_lecture_says_of_esvit():
    """Stored with three seeds.
    The recipe beats no random encoder by class, and the lecture says so; what it says of regions is true
    of every seed: the region task adds a little on warped views, random partners lose there, and on
    average the view task alone does better on mirrored ones."""
    record = load_result('esvit_laptop')
    claims = load_result('esvit_claims')
    assert Recipe.from_json(record['setting']['recipe']) == recipe('esvit', 'laptop')
    assert set(record['figures']['scenes']) == {'0', '1', '2'}
    assert Recipe.from_json(claims['setting']['recipe']) == change(
        recipe('esvit', 'laptop'), steps=300, batch_size=32, log_every=10
    )
    view, both, randomly = (
        [claims['figures'][arm][seed] for seed in '012']
        for arm in ('Swin, view', 'Swin, both', 'Swin, random partners')
    )
    for v, b, r in zip(view, both, randomly, strict=True):
        assert r['warped'] < v['warped'] < b['warped'] < v['warped'] + 10
    assert sum(b['mirrored'] for b in both) < sum(v['mirrored'] for v in view)


@pytest.mark.parametrize('method', ['byol', 'moco', 'simsiam', 'mocov3', 'sdssl'])
def test_the_slow_recipe_beats_raw_pixels(method):
    "Where the laptop recipe does not: stored, made with the slow recipe of today."
    record = load_result(f'{method}_slow')
    run = record['figures']['scenes']['0']
    assert Recipe.from_json(record['setting']['recipe']) == recipe(method, 'slow')
    assert run['steps'] == recipe(method, 'slow').steps
    for score in runs.SCORES:
        assert run[f'encoder, pooled, {score}'] > run[f'raw pixels, {score}']


@pytest.mark.parametrize(
    'method', [m for m in METHODS if m not in ('mae', 'flip')]
)  # MAE has its own figures, FLIP needs captions
def test_fashion_recipe_builds_and_steps(method):
    plan = runs.fashion_mnist_variant(recipe(method, 'laptop'))
    data = load('fashion-mnist', 'train').subset(16)
    made = build(plan, data)
    labels = dict(labels=data.labels) if asks_for(made, 'labels') else {}
    loss = made(made.views(data.images), **labels)['loss']
    loss.backward()
    assert torch.isfinite(loss)
    assert (
        plan.img_size,
        plan.data_options,
        plan.views_options.get('grey', 0.0),
    ) == (32 if plan.encoder == 'swin_nano' else 28, {}, 0.0)


def test_taught_is_stored_once_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv('VIT_SSL_LAB_RESULTS', str(tmp_path))
    monkeypatch.setattr(
        runs,
        'recipe',
        lambda method, scale: recipe(
            method,
            scale,
            steps=2,
            batch_size=4,
            data='digits',
            encoder_options=dict(positions='none'),
            **dict(
                encoder='vit_nano',
                img_size=8,
                patch_size=4,
                views_options=dict(jitter=(0.4, 0.4, 0.0, 0.0), grey=0.0),
            ),
        ),
    )
    first = runs.load_trained('simclr')
    assert not first.training
    assert (tmp_path / 'simclr_laptop.safetensors').exists()
    again = runs.load_trained('simclr')
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)  # half precision


def test_missing_scores_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VIT_SSL_LAB_RESULTS', str(tmp_path))
    runs.show_laptop_scores('simclr')
    assert 'No scores are stored yet' in capsys.readouterr().out


@pytest.mark.parametrize('method', SIAMESE)
def test_weights_are_stored_and_small(method):
    path = results_dir() / f'{method}_laptop.safetensors'
    assert path.exists()
    assert path.stat().st_size < 3e6


@pytest.mark.parametrize(
    'method',
    sorted(p.name.removesuffix('_laptop.safetensors') for p in results_dir().glob('*_laptop.safetensors')),
)
def test_stored_weights_fit_the_recipe(method):
    "What Play first loads has the names and shapes of today's recipe."
    runs.load_trained(method)
