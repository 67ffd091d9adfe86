"""Good calls and malformed ones of every public callable, and what comes of them.

A good call is recorded, not guessed: `scenario` uses the package as people do, small, and the first call that
each public function, class and method gets there is kept with its arguments. `malformed_calls` spoils one
argument at a time: its type, rank, dtype, channels, rows, range, name, emptiness or device, as far as the
annotation and the docment say what is accepted. `outcome` says what came of it."""

import contextlib, dis, enum, importlib, inspect, io, math, os, pkgutil, re, typing, warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Callable, Iterator

import torch
from fastcore.docments import docments
from torch import Tensor, nn

import vit_ssl_lab

HOME = str(Path(vit_ssl_lab.__file__).parent)


# --- what is public


@dataclass
class Target:
    "A public function, a class (its constructor) or a public method."

    name: str  # methods.mae.MAE.forward
    function: Callable  # as it is written: a function, a class's __init__, a method
    owner: Any  # the class of a constructor or method; None: a function of a module
    attribute: str  # the function's name in its owner or module
    kind: str  # function, class, method, classmethod
    homes: list = field(default_factory=list)  # modules that hold the same function

    @property
    def documented(self) -> Any:
        "What the docments are written at."
        return self.owner if self.kind == 'class' else self.function


def modules() -> list[ModuleType]:
    "Every module of the package."
    found = pkgutil.walk_packages(vit_ssl_lab.__path__, 'vit_ssl_lab.')
    names = sorted(module.name for module in found if not module.name.endswith('__main__'))
    return [importlib.import_module(name) for name in names]


def is_record(cls: type) -> bool:
    "A named tuple, a protocol, an exception or an autograd function: it takes what it gets."
    kinds = (BaseException, torch.autograd.Function)
    return hasattr(cls, '_fields') or getattr(cls, '_is_protocol', False) or issubclass(cls, kinds)


def public() -> dict[str, Target]:
    "Every public callable that takes an argument, by its name below `vit_ssl_lab`."
    targets: dict[str, Target] = {}
    everywhere = modules()
    seen = set()
    for module in everywhere:
        short = module.__name__.removeprefix('vit_ssl_lab.')
        for name in getattr(module, '__all__', []):
            thing = getattr(module, name)
            if getattr(thing, '__module__', None) != module.__name__ or id(thing) in seen:
                continue
            if inspect.isfunction(thing):
                homes = [m for m in everywhere if vars(m).get(name) is thing]
                targets[f'{short}.{name}'] = Target(f'{short}.{name}', thing, None, name, 'function', homes)
            elif inspect.isclass(thing):
                if is_record(thing):
                    continue
                label = f'{short}.{thing.__name__}'
                own = vars(thing)
                if inspect.isfunction(own.get('__init__')):
                    targets[label] = Target(label, own['__init__'], thing, '__init__', 'class')
                for key, value in own.items():
                    if key.startswith('_'):
                        continue
                    kind = 'classmethod' if isinstance(value, classmethod) else 'method'
                    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                    if inspect.isfunction(function):
                        targets[f'{label}.{key}'] = Target(f'{label}.{key}', function, thing, key, kind)
            else:
                continue
            seen.add(id(thing))
    return {name: target for name, target in targets.items() if parameters(target)}


def parameters(target: Target) -> list[inspect.Parameter]:
    "The parameters that a caller gives, without self and without **options."
    every = list(inspect.signature(target.function).parameters.values())
    if target.kind != 'function':
        every = every[1:]
    return [p for p in every if p.kind is not p.VAR_KEYWORD]


# --- good calls, recorded


@dataclass
class Call:
    "A call that went well."

    target: Target
    me: Any  # self, or the class
    arguments: dict[str, Any]  # by name; without self

    def __call__(self, **changes: Any) -> Any:
        "Make the call again, some arguments exchanged."
        arguments = {**{name: fresh(value) for name, value in self.arguments.items()}, **changes}
        positional: list = []
        named: dict = {}
        for p in inspect.signature(self.target.function).parameters.values():
            if p.name not in arguments:
                continue
            value = arguments.pop(p.name)
            if p.kind is p.VAR_POSITIONAL:
                positional += value
            elif p.kind is p.VAR_KEYWORD:
                named |= value
            elif p.kind is p.POSITIONAL_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and self.splat):
                positional.append(value)
            else:
                named[p.name] = value
        named |= arguments
        if self.target.kind == 'class':
            made = self.target.owner(*positional, **named)
            close = getattr(made, 'close', None)
            if close is not None and hasattr(made, 'comm'):
                close()  # a widget: ipywidgets holds every open one
            return made
        if self.target.kind == 'function':
            result = self.target.function(*positional, **named)
        else:
            result = getattr(self.me, self.target.attribute)(*positional, **named)
        if isinstance(result, contextlib.AbstractContextManager) and inspect.isgeneratorfunction(
            inspect.unwrap(self.target.function)
        ):
            with result:
                pass
        elif inspect.isgenerator(result):
            next(result, None)
            result.close()
        return result

    @property
    def splat(self) -> bool:
        "Whether the function takes *more, which only follow positional arguments."
        every = inspect.signature(self.target.function).parameters.values()
        return any(p.kind is p.VAR_POSITIONAL for p in every)


def fresh(value: Any) -> Any:
    "A copy of tensors, lists and dictionaries, so that a call can't change what the next one gets."
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(fresh(entry) for entry in value)
    if type(value) is dict:
        return {name: fresh(entry) for name, entry in value.items()}
    if isinstance(value, torch.Generator):
        return torch.Generator().manual_seed(0)
    return value


@contextlib.contextmanager
def recording(targets: dict[str, Target]) -> Iterator[dict[str, Call]]:
    "Keep the first call of each target that went well inside."
    calls: dict[str, Call] = {}

    def recorder(target: Target) -> Callable:
        signature = inspect.signature(target.function)

        def wrapper(*args, **kwargs):
            if target.name in calls:
                return target.function(*args, **kwargs)
            bound = None
            with contextlib.suppress(TypeError):
                bound = signature.bind(*args, **kwargs)
            kept = {} if bound is None else {name: fresh(v) for name, v in bound.arguments.items()}
            result = target.function(*args, **kwargs)
            if bound is None:
                return result
            me = None
            if target.kind != 'function':
                me = args[0]
                kept.pop(next(iter(bound.arguments)))
                if target.kind == 'class' and type(me).__name__ != target.owner.__name__:
                    return result
            calls.setdefault(target.name, Call(target, me, kept))
            return result

        wrapper.__signature__ = signature
        wrapper.__dict__.update(getattr(target.function, '__dict__', {}))
        wrapper.__wrapped__ = target.function
        wrapper.__name__ = target.function.__name__
        wrapper.__doc__ = target.function.__doc__
        return wrapper

    with contextlib.ExitStack() as undo:
        for target in targets.values():
            new = recorder(target)
            if target.kind == 'function':
                for home in target.homes:
                    undo.callback(setattr, home, target.attribute, target.function)
                    setattr(home, target.attribute, new)
            else:
                old = vars(target.owner)[target.attribute]
                undo.callback(setattr, target.owner, target.attribute, old)
                put = type(old) if isinstance(old, (classmethod, staticmethod)) else lambda f: f
                setattr(target.owner, target.attribute, put(new))
        yield calls


# --- malformed calls


class Nonsense:
    "An object that nothing in the package accepts."

    def __repr__(self) -> str:
        return 'Nonsense()'


@dataclass
class Malformed:
    "One argument of a good call, spoiled."

    call: Call
    parameter: str
    fault: str  # type, rank, dtype, channels, rows, range, name, empty, device, keyword
    value: Any
    firm: bool = True  # whether the documentation rules it out; if not, an answer is right

    @property
    def name(self) -> str:
        return f'{self.call.target.name}({self.parameter}={shown(self.value)})'


def shown(value: Any) -> str:
    "A value in a few words."
    if isinstance(value, Tensor):
        return f'{str(value.dtype).removeprefix("torch.")} {tuple(value.shape)}'
    if isinstance(value, (list, tuple)):
        around = '[]' if isinstance(value, list) else '()'
        return around[0] + ', '.join(map(shown, value)) + around[1]
    text = repr(value)
    return text if len(text) < 40 else f'{type(value).__name__}'


def allows_none(p: inspect.Parameter) -> bool:
    "Whether None is an accepted value."
    if p.default is None:
        return True
    if p.annotation in (p.empty, Any, object):
        return True
    return type(None) in typing.get_args(p.annotation) or p.annotation is type(None)


def kinds(annotation: Any) -> set:
    "The plain types in an annotation: int | tuple[int, int] -> {int, tuple}."
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return set().union(*(kinds(part) for part in typing.get_args(annotation)))
    return {typing.get_origin(annotation) or annotation}


SHAPE = re.compile(r'^\(([^()]*)\)')
ALTERNATIVE = re.compile(r'\bor\b|\.\.\.|any shape|any number')
COUNTS = set(
    """width heads depth dim hidden dims layers size batch batch_size steps n channels classes cell bins
    side k
    in_chans embed_dim num_heads decoder_width decoder_depth decoder_heads out_features patch_size img_size
    bottleneck groups masks blocks feature_depth total epochs limit iterations chunk kernel frames objects
    num_classes num_features rows cols count workers every accumulate queue pred_dim tries levels per_epoch
    capacity sample fan_in""".split()
)
FREE_TEXT = set(
    'title suptitle alt note hint name what who where message caption text claim unit source'.split()
)


def range_faults(p: inspect.Parameter, value: Any, doc: str) -> Iterator[tuple[Any, bool]]:
    "Numbers outside what is documented, and whether the documentation says so."
    low = doc.lower()
    if type(value) is int:
        may_be_negative = 'negative' in low or '-1' in low or type(p.default) is int and p.default < 0
        if p.name in COUNTS and not may_be_negative:
            yield -1, True
            zero_is_said = re.search(r'\b0\b', low) or p.default == 0
            yield 0, not zero_is_said
        elif 'index' in low or p.name in ('picture', 'layer', 'i', 'index', 'rank'):
            yield 10**6, True
    elif type(value) is float:
        yield math.nan, 'nan' not in low
        yield math.inf, p.default != math.inf and 'inf' not in low
        share = re.search(r'\bshare\b|\b0\.\.1\b|\b0 to 1\b|between 0 and 1|0 <= ', low) or p.name in (
            'momentum', 'progress', 'mask_ratio', 'ratio', 'decay',
        )  # fmt: skip
        if share:
            yield 1.5, True
            yield -0.5, True
        elif re.search(
            r'temperature|weight|\bstd\b|deviation|rate|eps|larger|scale|width|size|ratio', low + p.name
        ):
            yield -1.0, True


def tensor_faults(
    p: inspect.Parameter, value: Tensor, doc: str, others: list
) -> Iterator[tuple[str, Any, bool]]:
    "A tensor of another rank, length, channel count or dtype."
    shape = SHAPE.match(doc)
    fixed = shape is not None and not ALTERNATIVE.search(doc)
    yield 'rank', value[None], fixed
    if value.ndim:
        yield 'rank', value[0], fixed
        yield 'empty', value[:0], False
        if any(o.ndim and len(o) == len(value) for o in others):
            yield 'rows', torch.cat([value, value]) if len(value) else value, False
    if value.ndim == 4 and value.shape[1] in (1, 3):
        yield 'channels', value.repeat(1, 5, 1, 1)[:, :5], False
    elif value.ndim > 1:
        yield 'channels', torch.cat([value, value[..., :1]], -1), False
    if value.is_floating_point():
        said = 'float' in doc or 'normalised' in doc
        yield 'dtype', value.long(), said
        yield 'dtype', value.to(torch.complex64), True
        yield 'dtype', value.bool(), said
    elif value.dtype in (torch.int64, torch.int32):
        yield 'dtype', value + 0.5, True
        yield 'range', value + 10**6, False
    elif value.dtype == torch.uint8:
        yield 'dtype', value.to(torch.complex64), True
        yield 'dtype', value.long() * 1000, False


def faults(p: inspect.Parameter, value: Any, doc: str, others: list) -> Iterator[tuple[str, Any, bool]]:
    "Spoiled values of one argument: what is wrong, the value, and whether the documentation rules it out."
    accepted = kinds(p.annotation)
    is_open = bool(accepted & {Any, object, p.empty})
    if not allows_none(p):
        yield 'type', None, True
    yield 'type', Nonsense(), not is_open
    if p.name == 'device':
        if not torch.cuda.is_available():
            yield 'device', 'cuda', True
        yield 'device', 'gpu', True
    if isinstance(value, Tensor):
        yield 'type', 'abc', True
        if 'list' not in doc and not accepted & {list, tuple}:
            yield 'type', [1.0, 2.0], False
        yield from tensor_faults(p, value, doc, others)
    elif isinstance(value, bool):
        yield 'type', 'abc' if p.name != 'pretrained' else [], not accepted & {str}
    elif isinstance(value, (int, float)):
        yield 'type', 'abc', not accepted & {str}
        yield 'type', [value], not accepted & {list, tuple} and not is_open
        if type(value) is int and float not in accepted:
            yield 'type', value + 0.5, not is_open
        for wrong, firm in range_faults(p, value, doc):
            yield 'range', wrong, firm
    elif isinstance(value, str):
        yield 'type', 3, not accepted & {int, float} and not is_open
        if p.name not in FREE_TEXT:
            choices = re.findall(r"""["']\w+["']""", doc)
            yield (
                'name',
                'no-such-name',
                bool(choices) or p.name in ('kind', 'mode', 'split', 'layout', 'preset'),
            )
            yield 'empty', '', bool(choices)
    elif type(value) in (list, tuple):
        yield 'type', 5, not accepted & {int} and not is_open
        yield (
            'type',
            type(value)(['abc'] * max(len(value), 1)),
            not is_open and str(p.annotation).count('str') == 0,
        )
        yield 'empty', type(value)(), False
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) for v in value):
            yield 'rank', (*value, 3), not re.search(r'\.\.\.|any number', str(p.annotation) + doc)
            yield 'range', (-1, *value[1:]), True
            yield 'range', (0, *value[1:]), True
    elif isinstance(value, dict):
        yield 'type', 5, not is_open
        yield 'type', [1], not is_open
        yield 'empty', {}, False
    elif isinstance(value, nn.Module):
        yield 'type', 'abc', not accepted & {str}
        yield 'type', nn.Identity(), False
    elif callable(value) and not is_open:
        yield 'type', 'abc', not accepted & {str}
    elif isinstance(value, Path):
        yield 'type', 5, True
        yield 'name', Path('no') / 'such' / 'place', False


def malformed_calls(call: Call) -> Iterator[Malformed]:
    "Every malformed call that one good call gives."
    comments = docments(call.target.documented, returns=False)
    tensors = {name: value for name, value in call.arguments.items() if isinstance(value, Tensor)}
    for p in parameters(call.target):
        if p.kind is p.VAR_POSITIONAL:
            continue
        given = p.name in call.arguments
        if not given and p.default is p.empty:
            continue
        value = call.arguments[p.name] if given else p.default
        others = [other for name, other in tensors.items() if name != p.name]
        doc = str(comments.get(p.name) or '')
        for fault, wrong, firm in faults(p, value, doc, others):
            yield Malformed(call, p.name, fault, wrong, firm)
    yield Malformed(call, 'no_such_argument', 'keyword', 1, True)


# --- what comes of them

PACKAGE = os.sep + 'vit_ssl_lab' + os.sep


class Outcome(enum.Enum):
    "What a malformed call comes to."

    SENTENCE = 'sentence'
    ANSWER = 'right answer'
    RAW = 'raw error'
    SILENT = 'silent acceptance'


def is_ours(error: BaseException) -> bool:
    "Whether an error is a full sentence, raised on purpose by a line of the package."
    text = str(error).strip()
    if not isinstance(error, (ValueError, TypeError, OSError, FloatingPointError, NotImplementedError)):
        return False
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    is_raised = dis.opname[code.co_code[trace.tb_lasti]] in ('RAISE_VARARGS', 'RERAISE')
    return PACKAGE in code.co_filename and is_raised and len(text.split()) >= 4 and text[-1:] in '.)'


def outcome(malformed: Malformed) -> tuple[Outcome, str]:
    "Make the call: its class, and the error's text."
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            with contextlib.redirect_stderr(io.StringIO()):
                malformed.call(**{malformed.parameter: malformed.value})
    except (Exception, SystemExit) as error:
        kind = Outcome.SENTENCE if is_ours(error) else Outcome.RAW
        return kind, f'{type(error).__name__}: {error}'
    return (Outcome.SILENT if malformed.firm else Outcome.ANSWER), ''
