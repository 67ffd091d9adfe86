"Stored results are found in one way: where results are written, else in the copy inside the package."

import json
from pathlib import Path
import pytest
import torch
from vit_ssl_lab import core, results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Where results are written; empty."
    monkeypatch.setenv('VIT_SSL_LAB_RESULTS', str(tmp_path / 'own'))
    (tmp_path / 'own').mkdir()
    return tmp_path / 'own'


@pytest.fixture
def package_copy(tmp_path, monkeypatch):
    "The folder that a wheel carries, with one result."
    monkeypatch.setattr(core, '__file__', str(tmp_path / 'vit_ssl_lab' / 'core.py'))
    stored = tmp_path / 'vit_ssl_lab' / 'stored'
    stored.mkdir(parents=True)
    (stored / 'mae_claims.json').write_text(json.dumps(dict(figures={'a': {'0': {}}}, setting={'steps': 1})))
    return stored


def test_own_results_come_before_those_of_the_package(folder, package_copy):
    assert results.find('mae_claims.json') == package_copy / 'mae_claims.json'
    assert results.load_arms('mae_claims') == {'a': {'0': {}}}
    (folder / 'mae_claims.json').write_text('{}')
    assert results.find('mae_claims.json') == folder / 'mae_claims.json'


def test_without_a_setting_results_lie_in_the_checkout_or_here(tmp_path, monkeypatch):
    monkeypatch.delenv('VIT_SSL_LAB_RESULTS', raising=False)
    monkeypatch.chdir(tmp_path)
    assert results.results_dir() == Path.cwd() / 'results'
    (tmp_path / 'settings.ini').touch()
    (tmp_path / 'nbs').mkdir()
    monkeypatch.chdir(tmp_path / 'nbs')
    assert results.results_dir() == tmp_path / 'results'


@pytest.mark.parametrize(
    'name, maker',
    [
        ('byol_laptop.json', "run_laptop('byol')"),
        ('byol_slow.json', "run_slow('byol')"),
        ('byol_gpu.json', "run_gpu('byol')"),
        ('momentum_projector_laptop.safetensors.xz', "load_trained('momentum_projector')"),
        ('mae_claims.json', 'the cell flagged slow or gpu'),
    ],
)
def test_a_missing_result_says_where_it_was_looked_for_and_what_makes_it(folder, package_copy, name, maker):
    (package_copy / 'mae_claims.json').unlink()
    with pytest.raises(FileNotFoundError) as error:
        results.find(name)
    said = str(error.value)
    assert name in said
    assert str(folder) in said
    assert str(package_copy) in said
    assert maker in said
    assert not results.is_stored(name)


def test_the_package_copy_is_continued_and_never_written(folder, package_copy):
    before = (package_copy / 'mae_claims.json').read_bytes()
    figures = results.run_arms('mae_claims', {'a': lambda seed: {'seed': seed}}, seeds=(0, 1), steps=1)
    assert figures == {'a': {'0': {}, '1': {'seed': 1}}}  # seed 0 was stored already
    assert (package_copy / 'mae_claims.json').read_bytes() == before
    assert results.load_result('mae_claims')['figures'] == figures


def test_a_network_is_stored_in_half_and_read_in_single_precision(folder):
    state = {'w': torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), 'n': torch.tensor(5)}
    path = results.save_network('net', state)
    assert path == folder / 'net.safetensors.xz'
    back = results.load_network('net')
    assert back['w'].dtype == torch.float32
    assert back['n'].dtype == torch.int64
    assert back['n'] == state['n']
    assert (back['w'] - state['w']).norm() < 0.01 * state['w'].norm()  # rounded to half a percent
