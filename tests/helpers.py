"""What many tests need: seeded draws, numbers by formula, comparisons that name what differs."""

import math
import zlib
from typing import Any, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn


# --- numbers


def seeded(seed: int = 0) -> torch.Generator:
    "A generator of its own for one draw."
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    "Normal numbers, drawn in float64 and rounded, so that every precision gets the same ones."
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def sine(*shape: int, f: float = 1.0) -> Tensor:
    "float64 numbers in -1..1 by a formula that the golden files of DINO, EsViT and Swin were made with."
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(f * count + 0.3 * f).reshape(shape)


def named_numbers(shape: Iterable[int], name: str) -> Tensor:
    """float64 numbers in -1..1 by a formula of the place and a parameter's name. The golden files of the
    official codes of CMAE, ExtreMA, MoCo and MoCo v3 were made with it."""
    count = np.arange(math.prod(shape))
    remainder = (count * count * 7919 + zlib.crc32(name.encode())) % 10007
    return torch.tensor(remainder / 10007 * 2 - 1).reshape(shape)


def sine_state(shapes: Mapping[str, Iterable[int]], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    "A state dict by formula (the golden files of ConvNeXt V2 and FCMAE): small sines, around 1 for gains."
    state = {}
    for name, shape in shapes.items():
        phase = zlib.crc32(name.encode()) % 1000
        values = torch.tensor(0.1 * np.sin(np.arange(math.prod(shape)) * 0.37 + phase)).reshape(shape)
        is_gain = len(shape) == 1 and name.endswith('weight')
        state[name] = (values + is_gain).to(dtype)
    return state


# --- one step of an optimizer


def lars_update(p: nn.Parameter, lr: float, weight_decay: float) -> Tensor:
    """The first update of LARS as the official codes of SimCLR, BYOL, MoCo v3 and MAE have it: a matrix moves
    by 0.001 |w| / |g + decay w| of its decayed gradient, a vector is neither decayed nor adapted."""
    grad = p.grad
    if p.ndim <= 1:
        return -lr * grad
    decayed = grad + weight_decay * p.detach()
    return -lr * 0.001 * p.detach().norm() / decayed.norm() * decayed


def check_moves(
    before: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    rtol: float = 1e-9,
    noise: float = 1e-12,
) -> None:
    """Each tensor has moved in the same direction and equally far: the difference of the two moves is at most
    `rtol` of the move's length. A comparison of the weights would pass any optimizer whose steps are shorter
    than its tolerance. A tensor that should move by rounding alone must not move by more than `noise`."""
    assert before.keys() == ours.keys() == theirs.keys()
    moved = 0
    for name, start in before.items():
        expected = (theirs[name] - start).detach()
        difference = (ours[name] - start).detach() - expected
        moved += bool(expected.norm() > noise)
        assert difference.norm() <= rtol * expected.norm() + noise, (
            f"{name}: moved by {expected.norm():.3g}, off by {difference.norm():.3g}"
        )
    assert moved, "nothing has moved, so nothing was compared"


# --- what a network holds


def weights(module: nn.Module) -> dict[str, Tensor]:
    "A copy of the state dict, which a later step doesn't change."
    return {name: value.clone() for name, value in module.state_dict().items()}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    "A copy of the gradients of the parameters that have one."
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# --- comparisons


def close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float | None = None) -> None:
    """Fail unless |actual - expected| <= atol + rtol * |expected|; atol is rtol where it isn't given.
    Takes tensors, arrays, nested lists and numbers; of one shape, whatever their precision."""
    atol = rtol if atol is None else atol
    torch.testing.assert_close(_tensor(actual), _tensor(expected), rtol=rtol, atol=atol, check_dtype=False)


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def equal(a: Mapping[str, Tensor] | Iterable[Tensor], b: Mapping[str, Tensor] | Iterable[Tensor]) -> bool:
    "Whether two state dicts, or two rows of tensors, hold the same numbers to the last bit."
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    a = list(a)
    b = list(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def differing(thing: Any, **expected: Any) -> dict[str, tuple]:
    """Attributes, or entries of a dictionary, that are not as expected:
    name -> (what it is, what it should be)."""
    is_dict = isinstance(thing, Mapping)
    found = {name: thing[name] if is_dict else getattr(thing, name) for name in expected}
    return {name: (found[name], value) for name, value in expected.items() if found[name] != value}


def close_states(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float, atol: float
) -> None:
    "Compare two state dicts; the first tensor that differs is named."
    assert actual.keys() == expected.keys()
    for name, value in expected.items():

        def named(message: str, name: str = name) -> str:
            return f"{name}: {message}"

        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=named)
