"""Every exercise in the notebooks: its stub fails its test, its solution passes."""

import json, re
import pytest
from test_linter import NOTEBOOKS, name_of, source


def exercises():
    for path in NOTEBOOKS:
        if not path.exists():
            continue
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        for i, cell in enumerate(cells):
            if found := re.search(r'^#\| exercise: (\w+)', source(cell), re.M):
                name = found.group(1)
                rest = cells[i + 1 :]
                test = next(source(c) for c in rest if f'def test_{name}(' in source(c))
                solution = next(
                    s
                    for c in rest
                    if c['cell_type'] == 'markdown'
                    for s in re.findall(r'```(?:python)?\n(.*?)```', source(c), re.S)
                    if f'def {name}(' in s
                )
                yield pytest.param(source(cell), test, solution, name, id=f'{name_of(path)}:{name}')


@pytest.mark.parametrize('stub, test, solution, name', list(exercises()))
def test_exercise(stub, test, solution, name):
    def outcome(answer: str):
        space = {}
        exec(
            "from vit_ssl_lab.notebook import *\nfrom vit_ssl_lab.components.targets import *\nfrom vit_ssl_lab.notebook import check_exercise",
            space,
        )
        exec(answer, space)
        exec(re.sub(r'^check_exercise\(.*$', '', test, flags=re.M), space)
        space[f'test_{name}'](space[name])

    with pytest.raises(Exception):  # noqa: B017, any way to fail will do
        outcome(stub)
    outcome(solution)


def test_there_are_exercises():
    assert len(list(exercises())) >= 3
