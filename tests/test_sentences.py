"""Sentences of the pages that state a number or an order, computed again from what is stored."""

import json
import re
import sys
from pathlib import Path
import numpy as np
import pytest
from vit_ssl_lab.comparison import compare
from vit_ssl_lab.results import load_result, over_seeds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'scripts'))
from stored import runs_of, stored  # noqa: E402  (scripts/ is no package)


def cells(name: str) -> list[dict]:
    return json.loads((ROOT / name).read_text(encoding='utf-8'))['cells']


def prose(name: str) -> str:
    return '\n'.join(''.join(cell['source']) for cell in cells(name) if cell['cell_type'] == 'markdown')


def printed(name: str) -> str:
    "All text that a notebook's stored outputs hold."
    texts = []
    for cell in cells(name):
        for output in cell.get('outputs', []):
            texts.append(''.join(output.get('text', '')))
            texts.append(''.join(output.get('data', {}).get('text/plain', '')))
    return '\n'.join(texts)


def test_the_index_says_what_is_stored():
    rows = [line.split(' | ') for line in prose('index.ipynb').split('\n') if 'arxiv.org' in line]
    rows = [row for row in rows if len(row) == 3]
    assert len(rows) == 21
    for paper, notebooks, runs in rows:
        assert runs.removesuffix(' |') == stored(notebooks), paper


def test_stored_runs_are_counted(tmp_path, monkeypatch):
    import stored as script

    monkeypatch.setattr(script, 'ROOT', tmp_path)
    (tmp_path / 'results').mkdir()
    assert runs_of('mae') == ''
    arms = {'a': {'0': {}, '1': {}}, 'b': {'0': {}}}
    (tmp_path / 'results' / 'mae_claims.json').write_text(json.dumps({'figures': arms}))
    assert runs_of('mae') == 'claims (2 arms of 1 to 2 seeds)'
    laptop = {'scenes': {'0': {}, '1': {}, '2': {}}}
    (tmp_path / 'results' / 'mae_laptop.json').write_text(json.dumps({'figures': laptop}))
    assert runs_of('mae').startswith('laptop (3 seeds, 1 data set), claims')


def test_the_tour_takes_the_minutes_it_says():
    assert 'in one to two minutes' in prose('index.ipynb')
    seconds = [int(s) for s in re.findall(r'steps in (\d+) s', printed('index.ipynb'))]
    assert seconds, "the training cell's output says how long it took"
    assert 45 <= max(seconds) <= 120


@pytest.mark.parametrize('folder', ['evaluation', 'explorers', 'encoders', 'training', 'data'])
def test_a_folders_first_page_lists_all_others(folder):
    pages = sorted(path.name for path in (ROOT / 'nbs' / folder).glob('*.ipynb'))
    listed = set(re.findall(r'\((\d\d_\w+\.ipynb)\)', prose(f'nbs/{folder}/{pages[0]}')))
    assert listed == set(pages[1:])


def fcmae(key):
    arms = load_result('fcmae_claims')['figures']
    return {label: over_seeds(arms[label], key) for label in arms if key in arms[label]['0']}


def test_fcmae_says_which_arms_lead():
    text = prose('nbs/methods/16_fcmae.ipynb')
    scores = ('kNN, pooled', 'kNN, regions', 'probe, pooled', 'probe, regions', 'tuned')
    ahead = []
    for key in scores:
        arms = fcmae(key)
        assert compare(arms['V2'], arms['plain convolutions'])['word'] != 'shown', key
        ahead.append(np.mean(arms['V2']) > np.mean(arms['four decoder blocks']))
    assert 'are not shown to be worse in any of the five scores' in text
    assert sum(ahead) == 4, 'the higher mean in every score but one'
    for key in ('probe, pooled', 'probe, regions'):
        arms = fcmae(key)
        assert 1.5 < np.mean(arms['V2']) - np.mean(arms['four decoder blocks']) < 2, 'by almost two points'


def test_flip_says_that_no_arm_learns_the_class():
    assert 'all five lie between 11 and 12 %' in prose('nbs/methods/19_flip.ipynb')
    arms = load_result('flip_claims')['figures']
    assert len(arms) == 5
    means = {key: [np.mean(over_seeds(arm, key)) for arm in arms.values()] for key in ('class', 'tint')}
    assert all(11 < mean < 12 for mean in means['class'])
    assert min(means['tint']) > 80, 'answered well by every arm'
    base = arms['0%, equal steps']
    for label in ('50%, equal time', '75%, equal time'):
        for key in ('tint', 'background'):
            assert np.mean(over_seeds(arms[label], key)) > np.mean(over_seeds(base, key))


def test_the_fair_benchmark_names_its_limits():
    text = prose('nbs/studies/02_fair_benchmark.ipynb')
    runs = load_result('fair_benchmark')['figures']
    methods = [row for row in runs if runs[row]['trials']]
    for key in ('knn', 'probe_pooled'):
        raw = runs['raw pixels']['seeds']['0'][key]
        assert all(np.mean(over_seeds(runs[row]['seeds'], key)) < raw for row in methods)
    assert 'On kNN and on the pooled probe no method beats raw pixels' in text
    regions = {row: np.mean(over_seeds(runs[row]['seeds'], 'probe_regions')) for row in methods}
    first, second = sorted(regions, key=lambda row: -regions[row])[:2]
    assert first == 'mp3' and regions[first] - regions[second] > 10, 'by a wide margin'


def test_critical_factors_says_that_rare_classes_are_drawn():
    arms = load_result('critical_factors')['figures']
    assert 'of one arm it ranges over tens of points' in prose('nbs/studies/03_critical_factors.ipynb')
    assert max(np.ptp(over_seeds(arms[arm], 'rare')) for arm in arms if arm != 'untrained') > 20
    assert np.mean(over_seeds(arms['BYOL, symmetric'], 'std')) < 0.1, 'a feature std near 0'


def test_pages_of_stand_in_scores_store_none_of_them():
    assert '9 steps' not in printed('nbs/studies/00_runs.ipynb')
    assert '+20.00' not in printed('nbs/studies/00_runs.ipynb')
