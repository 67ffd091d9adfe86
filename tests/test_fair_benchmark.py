"The table of the fair benchmark is what its stored runs say, and each row had the same budget."

import re, statistics
import nbformat
import pytest
from pathlib import Path
from benchmarks import fair
from vit_ssl_lab.results import load_result

ROOT = Path(__file__).resolve().parent.parent
STORED = load_result('fair_benchmark')
RUNS = STORED['figures']
# a method that is new has no row until its runs are made
ROWS = [row for row in fair.ROWS if row in RUNS]
KEYS = ('knn', 'probe_pooled', 'probe_regions')  # of the columns, from left to right


def stored_table() -> dict[str, list[str]]:
    "The table as the notebook stores it: row -> texts of its cells."
    cells = nbformat.read(ROOT / 'nbs/studies/02_fair_benchmark.ipynb', as_version=4).cells
    cell = next(c for c in cells if c.cell_type == 'code' and c.source.rstrip().endswith('table(runs)'))
    rows = re.findall(r'<tr>\s*<th>(.*?)</th>(.*?)</tr>', cell.outputs[0].data['text/html'], re.S)
    return {name: re.findall(r'<td>(.*?)</td>', rest, re.S) for name, rest in rows}


def test_every_row_has_its_runs():
    assert STORED['setting'] == fair.setting()
    assert set(RUNS) == {*ROWS, *fair.BASELINES}
    assert len(ROWS) >= 19
    for row in ROWS:
        assert [t['factor'] for t in RUNS[row]['trials']] == pytest.approx(list(fair.FACTORS))
        assert set(RUNS[row]['seeds']) == {str(s) for s in fair.SEEDS}
        assert RUNS[row]['base_lr'] == max(RUNS[row]['trials'], key=lambda t: t['knn'])['base_lr']


def test_the_table_is_what_the_runs_say():
    shown = stored_table()
    assert set(shown) == set(RUNS)
    for row, made in RUNS.items():
        for text, key in zip(shown[row], KEYS, strict=True):
            values = [r[key] for r in made['seeds'].values() if key in r]
            numbers = [float(n) for n in re.findall(r'[\d.]+', text)]
            if not values:
                assert not numbers
                continue
            assert numbers == pytest.approx(
                [statistics.fmean(values)] + ([statistics.stdev(values)] if len(values) > 1 else []),
                abs=0.051,
            )


# they have views of their own
MASKED = (
    'mae',
    'maskfeat',
    'supmae',
    'cmae',
    'macrl',
    'occlusion',
    'extrema',
    'mp3',
    'fcmae',
    'flip',
)


@pytest.mark.parametrize('row', ROWS)
def test_the_budget_is_the_same(row):
    """Of the budget only the encoder may differ, in the four rows that can't stand on the common one; all
    rows but the masked ones get the same two views."""
    chosen = fair.recipe_of(row, 1.0, 0)
    own = fair.OWN_ENCODER.get(row, {})
    assert set(fair.OWN_ENCODER) == {'extrema', 'mp3', 'fcmae', 'flip'}
    assert set(own) <= {
        'encoder',
        'encoder_options',
    }
    for k, v in fair.BUDGET.items():
        if k not in own:
            assert getattr(chosen, k) == v
    if row not in fair.OWN_ENCODER:
        assert chosen.encoder_options == fair.OPTIONS['encoder_options']
    assert (chosen.views == fair.VIEWS['views'] and chosen.views_options == fair.VIEWS['views_options']) == (
        row not in MASKED
    )


@pytest.mark.parametrize('row', ROWS)
def test_rows_with_an_encoder_of_their_own_have_its_random_scores(row):
    for run in RUNS[row]['seeds'].values():
        assert set(run.get('random', {})) == (set(KEYS) if row in fair.OWN_ENCODER else set())
