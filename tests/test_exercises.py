"""Every exercise in the notebooks: its stub fails its test, its solution passes."""

import json
import re

import pytest
from lint import source
from test_linter import NOTEBOOKS, name_of

pytestmark = pytest.mark.notebooks
SET_UP = """
from vit_ssl_lab.notebook import *
from vit_ssl_lab.components.hog import *
from vit_ssl_lab.components.losses import *
from vit_ssl_lab.components.targets import *
from vit_ssl_lab.evaluation import *
from vit_ssl_lab.notebook import check_exercise
"""


def exercises():
    "The stub, the test and the solution of each exercise, as texts."
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        for i, cell in enumerate(cells):
            found = re.search(r'^#\| exercise: (\w+)', source(cell), re.M)
            if not found:
                continue
            name = found[1]
            later = cells[i + 1 :]
            test = next(source(c) for c in later if f'def test_{name}(' in source(c))
            answers = '\n'.join(source(c) for c in later if c['cell_type'] == 'markdown')
            blocks = re.findall(r'```(?:python)?\n(.*?)```', answers, re.S)
            solution = next(block for block in blocks if f'def {name}(' in block)
            yield pytest.param(source(cell), test, solution, name, id=f'{name_of(path)}:{name}')


@pytest.mark.parametrize('stub, test, solution, name', list(exercises()))
def test_exercise(stub, test, solution, name):
    def run_test_of(answer: str):
        space = {}
        exec(SET_UP, space)
        exec(answer, space)
        exec(re.sub(r'^check_exercise\(.*$', '', test, flags=re.M), space)
        space[f'test_{name}'](space[name])

    with pytest.raises(Exception):  # noqa: B017, any way to fail will do
        run_test_of(stub)
    run_test_of(solution)


def test_there_are_exercises():
    assert len(list(exercises())) >= 3
