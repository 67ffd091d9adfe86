"The table of the fair benchmark is what its stored runs say, and each row had the same budget."
import re, statistics
import nbformat
import pytest
from pathlib import Path
from benchmarks import fair
from vit_ssl_lab.results import load_result
from vit_ssl_lab.training.recipes import METHODS

ROOT = Path(__file__).resolve().parent.parent
STORED = load_result('fair_benchmark')
RUNS = STORED['figures']
KEYS = ('knn', 'probe_pooled', 'probe_regions', 'seconds', 'memory_mib') # of the columns, from left to right

def stored_table() -> dict[str, list[str]]:
    "The table as the notebook stores it: row -> texts of its cells."
    cells = nbformat.read(ROOT / 'nbs/studies/02_fair_benchmark.ipynb', as_version=4).cells
    cell = next(c for c in cells if c.cell_type == 'code' and c.source.rstrip().endswith('table(runs)'))
    rows = re.findall(r'<tr>\s*<th>(.*?)</th>(.*?)</tr>', cell.outputs[0].data['text/html'], re.S)
    return {name: re.findall(r'<td>(.*?)</td>', rest, re.S) for name, rest in rows}

def test_every_row_has_its_runs():
    assert STORED['setting'] == fair.setting()
    assert fair.ROWS == tuple(METHODS) and set(RUNS) == {*fair.ROWS, *fair.BASELINES}
    for row in fair.ROWS:
        assert [t['factor'] for t in RUNS[row]['trials']] == pytest.approx(list(fair.FACTORS)) and set(RUNS[row]['seeds']) == {str(s) for s in fair.SEEDS}
        assert RUNS[row]['base_lr'] == max(RUNS[row]['trials'], key=lambda t: t['knn'])['base_lr']

def test_the_table_is_what_the_runs_say():
    shown = stored_table()
    assert set(shown) == set(RUNS)
    for row, made in RUNS.items():
        for text, key in zip(shown[row], KEYS, strict=True):
            values, digits = [r[key] for r in made['seeds'].values() if key in r], 0 if key in ('seconds', 'memory_mib') else 1
            numbers = [float(n) for n in re.findall(r'[\d.]+', text)]
            if not values: assert not numbers; continue
            assert numbers == pytest.approx([statistics.fmean(values)] + ([statistics.stdev(values)] if len(values) > 1 else []), abs=.51 * 10 ** -digits)

@pytest.mark.parametrize('row', fair.ROWS)
def test_the_budget_is_the_same(row):
    plan = fair.plan_of(row, 1., 0)
    own = fair.OWN_ENCODER.get(row, {})
    assert {k: getattr(plan, k) for k in fair.BUDGET} == {**fair.BUDGET, **{k: v for k, v in own.items() if k in fair.BUDGET}}
    if row not in fair.OWN_VIEWS: assert plan.views == fair.VIEWS['views'] and plan.views_options == fair.VIEWS['views_options']
