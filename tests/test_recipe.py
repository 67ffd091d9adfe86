"""Every field of a recipe has a range: what lies outside is refused in one sentence that names the field,
when the recipe is made, when it is changed and when it is read."""

import dataclasses, json
from functools import partial
from typing import get_args
import numpy as np
import pytest
from vit_ssl_lab.recipe import FIELD_KINDS, Recipe, check_field, make_schedule
from vit_ssl_lab.training import recipe
from vit_ssl_lab.training.build import _method_module, method_names

pytestmark = pytest.mark.unit
FIELDS = {f.name: f for f in dataclasses.fields(Recipe)}
nan, inf = float('nan'), float('inf')

NO_NUMBER = [nan, inf, -inf, '3', True, [3], {}, 1j]
WRONG = {  # kind -> values that no field of it can have
    '_count': [0, -1, 2.5, 3.0, *NO_NUMBER],
    '_index': [-1, 2.5, *NO_NUMBER],
    '_positive': [0, -1, -1e-9, *NO_NUMBER],
    '_rate': [-1, -1e-9, *NO_NUMBER],
    '_share': [-0.1, 1.1, *NO_NUMBER],
    '_factor': [0, -0.1, 1.1, *NO_NUMBER],
    '_switch': [0, 1, 'True', nan],
    '_text': [3, nan, True, ['a']],
    '_word': ['', 3, nan, True, ['a']],
    '_size': [0, -8, 2.5, (8,), (8, 8, 8), (8, 0), (8, nan), '8', True, nan],
    '_betas': [(0.9,), (0.9, 0.9, 0.9), (0.9, 1), (-0.1, 0.9), (0.9, nan), (0.9, '0.9'), 0.9, 'ab'],
    '_names': ['predictor', 3, (3,), ('',), (True,), {}],
    '_milestones': [120, '120', (0,), (-1,), (nan,), ('3',), (True,)],
    '_options': [[1], 'a', 3, {3: 1}, {'': 1}, {'a': nan}, {'a': [inf]}, {'a': {'b': nan}}, {'a': object()}],
    '_factors': [[1], 3, {3: 1}, {'encoder': -1}, {'encoder': nan}, {'encoder': inf}, {'encoder': 'a'}],
    '_choice': [3, nan, ['auto'], {}],
}
RIGHT = {  # kind -> values that a field of it can have
    '_count': [1, 7, np.int64(7)],
    '_index': [0, 7],
    '_positive': [1e-9, 1, 0.5, np.float32(0.5)],
    '_rate': [0, 0.0, 0.5],
    '_share': [0, 1, 0.5],
    '_factor': [1, 0.65],
    '_switch': [True, False],
    '_size': [8, (8, 16), [8, 16]],
    '_betas': [(0.9, 0.999), [0, 0.5]],
    '_names': [(), ('predictor',), ['a', 'b']],
    '_options': [{}, {'a': None, 'b': (1, 'c', {'d': [2.5, True]})}],
    '_factors': [{}, {'encoder': 0, 'projector': 2.5}],
}


def plain(name, value):
    "A recipe with this value, and otherwise nothing but its length."
    length = {} if name in ('steps', 'epochs') else dict(steps=9)
    return Recipe(**{**dict(method='mae'), **length, name: value})


def kind_of(name):
    return FIELD_KINDS[name].__name__


def test_every_field_has_a_kind_and_every_kind_is_tested():
    assert list(FIELD_KINDS) == list(FIELDS)
    assert {kind_of(name) for name in FIELDS} == set(WRONG)
    assert set(RIGHT) < set(WRONG)


@pytest.mark.parametrize('name', FIELDS)
def test_what_lies_outside_is_refused_in_one_sentence(name):
    base = plain('steps', 9)
    values = list(WRONG[kind_of(name)])
    if type(None) not in get_args(FIELDS[name].type):
        values.append(None)
    for value in values:
        for make in (partial(plain, name, value), partial(base.but, **{name: value})):
            with pytest.raises(ValueError) as refused:
                make()
            text = str(refused.value)
            assert name in text, (value, text)
            assert text.endswith('.') and '\n' not in text and 20 < len(text) < 300, (value, text)


@pytest.mark.parametrize('name', [name for name in FIELDS if kind_of(name) in RIGHT])
def test_what_lies_inside_is_accepted_and_comes_back_from_json(name):
    values = list(RIGHT[kind_of(name)])
    if type(None) in get_args(FIELDS[name].type) and name not in ('steps', 'epochs'):
        values.append(None)
    for value in values:
        made = plain(name, value)
        assert Recipe.from_json(made.to_json()) == made
        assert type(getattr(made, name)) in (int, float, bool, str, tuple, dict, type(None)), "no numpy"


CHOICES = dict(
    scale='laptp',
    init='papr',
    optimizer='adamv',
    lr_scale='batch',
    schedule='cosin',
    precision='fp17',
    compile='yes',
    sync_bn='yes',
)


@pytest.mark.parametrize('name', CHOICES)
def test_a_word_that_is_no_choice(name):
    with pytest.raises(ValueError, match=f"no .*'{CHOICES[name]}'"):
        plain(name, CHOICES[name])


@pytest.mark.parametrize(
    'values, match',
    [
        (dict(), 'give exactly one'),
        (dict(steps=3, epochs=2), 'give exactly one'),
        (dict(steps=9, milestones=(3,)), "schedule='step'"),
    ],
)
def test_fields_that_do_not_fit_together(values, match):
    with pytest.raises(ValueError, match=match):
        Recipe('mae', **values)


@pytest.mark.parametrize('n', [0, -3, 2.5, nan, inf, '8', None, True])
def test_a_schedule_needs_a_number_of_images(n):
    with pytest.raises(ValueError, match='image'):
        make_schedule(Recipe('mae', steps=9), n)


@pytest.mark.parametrize(
    'changes, match',
    [
        (dict(warmup=10), 'longer than the run of 9'),
        (dict(schedule='step', milestones=(3, 3)), 'must grow'),
        (dict(schedule='step', milestones=(9,)), 'inside the run'),
        (dict(schedule='step', milestones=(0.9, 0.1)), 'must grow'),
    ],
)
def test_a_schedule_that_does_not_fit_the_run(changes, match):
    with pytest.raises(ValueError, match=match):
        make_schedule(Recipe('mae', steps=9, **changes), 100)


@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{"steps": 3}', '{"method": "mae", "step": 3}', None])
def test_what_is_no_recipe_is_not_read(text):
    with pytest.raises(ValueError, match='recipe'):
        Recipe.from_json(text)


def test_nan_does_not_come_in_through_json():
    values = json.loads(Recipe('mae', steps=9).to_json()) | dict(base_lr=nan)
    with pytest.raises(ValueError, match='base_lr of the recipe must be a finite number, not nan'):
        Recipe.from_json(json.dumps(values))


def test_every_published_recipe_lies_inside():
    for method in method_names():
        for scale in _method_module(method).RECIPES:
            published = recipe(method, scale)
            assert Recipe.from_json(published.to_json()) == published
            for name in FIELDS:
                check_field(name, getattr(published, name))
