"""Every method trains on two and on three processes as on one: loss, gradient, running statistics, queue,
centre and momentum copies after three steps, of uneven batches. Real processes over gloo."""

from typing import Any

import pytest
import torch
from helpers import close_states
from small_recipes import few_pictures, small_recipe
from torch import Tensor, nn
from vit_ssl_lab.training import build, pretrain
from vit_ssl_lab.training.build import method_names

SCALES = ['laptop']


def to_double(value: Any) -> Any:
    "The float tensors in views, noise and labels, in float64."
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return [to_double(entry) for entry in value]
    if isinstance(value, dict):
        return {name: to_double(entry) for name, entry in value.items()}
    return value


def in_float64(method: nn.Module) -> nn.Module:
    """A method that computes in float64: a BatchNorm of few values multiplies float32's noise, and in float64
    a difference is a mistake."""

    def cast(module, args, kwargs):
        return tuple(to_double(list(args))), to_double(kwargs)

    method.double().register_forward_pre_hook(cast, with_kwargs=True)
    return method


def train(name: str, scale: str) -> tuple[list[dict], dict[str, Tensor]]:
    "The log's rows and the state after three steps of SGD, whose change of the weights is the gradient."
    torch.set_num_threads(1)
    recipe = small_recipe(
        name,
        scale,
        optimizer='sgd',
        lr_scale=None,
        base_lr=0.1,
        min_lr=0.1,
        momentum=0.0,
        sync_bn='auto',
    )
    # what each process draws for itself would differ
    recipe = recipe.but(encoder_options=without_drop_path(recipe.encoder_options))
    data = few_pictures()
    method = in_float64(build(recipe, data))
    history = pretrain(method, data, recipe, quiet=True, device='cpu')
    return history.rows, method.state_dict()


def without_drop_path(options: dict) -> dict:
    return dict(options, drop_path_rate=0.0) if 'drop_path_rate' in options else options


@pytest.fixture(scope='module')
def alone() -> dict:
    "What one process computes, by method and scale; computed once for both numbers of processes."
    return {}


def check(processes, alone: dict, name: str, scale: str) -> None:
    if (name, scale) not in alone:
        alone[name, scale] = train(name, scale)
    rows, state = alone[name, scale]
    assert len(rows) == 3
    for others, other_state in processes(train, name, scale):
        for mine, theirs in zip(rows, others, strict=True):
            assert theirs['images'] == mine['images']
            assert theirs['loss'] == pytest.approx(mine['loss'], rel=1e-5, abs=1e-6)
            assert theirs['grad_norm'] == pytest.approx(mine['grad_norm'], rel=1e-5)
        close_states(other_state, state, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', method_names())
def test_two_processes_train_as_one(two_processes, alone, name, scale):
    check(two_processes, alone, name, scale)


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', method_names())
def test_three_processes_train_as_one(three_processes, alone, name, scale):
    check(three_processes, alone, name, scale)
