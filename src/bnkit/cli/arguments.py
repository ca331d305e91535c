"""Arguments and options that several commands share, and parsers of what is typed."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import torch
import typer
from torch import Tensor

from bnkit.diagnosis.rules.table import Rule
from bnkit.experiments.settings import (
    PANELS,
    Choice,
    Seeds,
    Settings,
    Shown,
    Target,
    shown_settings,
)
from bnkit.experiments.sides import Change
from bnkit.names import completed, one_beginning
from bnkit.options import parameters_of
from bnkit.recalibration.estimators import Estimator
from bnkit.references import import_reference
from bnkit.surgery.addition import Placement

Number = TypeVar("Number", int, float)

PLACEMENTS: dict[str, Placement] = {
    "before": "before_activation",
    "after": "after_activation",
    "before_activation": "before_activation",
    "after_activation": "after_activation",
    "every_conv": "every_conv",
}


def texts(text: str) -> tuple[str, ...]:
    """Return the parts between commas.

    >>> texts("relu, tanh,")
    ('relu', 'tanh')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(kind: Callable[[str], Number]) -> Callable[[str], tuple[Number, ...]]:
    """Return a parser of numbers with commas between them, which raises ValueError for others.

    >>> numbers(int)("8,3,32,32")
    (8, 3, 32, 32)
    """

    def parse(text: str) -> tuple[Number, ...]:
        try:
            return tuple(kind(part) for part in texts(text))
        except ValueError:
            wanted = "integers" if kind is int else "numbers"
            raise ValueError(f"{text!r}: pass {wanted} with commas between them") from None

    return parse


def skipped(text: str, rules: Iterable[Rule]) -> tuple[str, ...]:
    """Return which rules are left out, and in which layers; the beginning of a name is enough.

    >>> from bnkit.diagnosis.rules.table import RULES
    >>> skipped("stale,dead-channels:head.*", RULES)
    ('stale-statistics', 'dead-channels:head.*')
    """
    names = [rule.slug for rule in rules]
    parts = [part.partition(":") for part in texts(text)]
    return tuple(completed(name, names) + "".join(where) for name, *where in parts)


def named_values(typed: Iterable[str]) -> dict[str, Any]:
    """Return values by their names, each as JSON where it is that, else as text.

    >>> named_values(["num_gpus=1", "slurm_partition=gpu"])
    {'num_gpus': 1, 'slurm_partition': 'gpu'}
    """
    found: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{text!r}: write it as NAME=VALUE")
        found[name] = value_of(value)
    return found


def value_of(text: str) -> Any:
    """Return the value that a text is in JSON, or the text itself.

    >>> value_of("0.1"), value_of("true"), value_of("deep")
    (0.1, True, 'deep')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def swept(typed: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values of swept settings by their names, each as JSON where it is that, else text.

    >>> swept(["width=32,64", "kind=wide,deep"])
    {'width': [32, 64], 'kind': ['wide', 'deep']}
    """
    named = [(text, *text.partition("=")) for text in typed]
    if wrong := [text for text, name, _, values in named if not (name and texts(values))]:
        raise ValueError(f"--sweep is {wrong[0]!r}: write a name and its values, as width=32,64")
    names = [name for _, name, _, _ in named]
    if len({*names}) < len(names):
        raise ValueError(f"--sweep names {', '.join(names)}: give each once, as width=32,64")
    return {name: [value_of(text) for text in texts(values)] for _, name, _, values in named}


def listed(values: Sequence[object]) -> str:
    """Return values as they are typed.

    >>> listed((0.1, 10))
    '0.1,10'
    """
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Return what is set by texts such as "num_groups=8", whose values are JSON or else text.

    >>> settings(["num_groups=8", 'domains=["day", "night"]', "default=all"])
    {'num_groups': 8, 'domains': ['day', 'night'], 'default': 'all'}
    """
    found = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--option is {text!r}: write a name and a value, as num_groups=8")
        found[name.replace("-", "_")] = value_of(value)
    return found


def random_example(inputs: Sequence[str]) -> Any:
    """Return the random inputs that each --example describes: a tensor, a tuple or a dict of them.

    "8,3,32,32" are normally distributed numbers of this shape, "8,128:30522" integers from 0 to
    30521, such as token ids, and "8,128:bool" numbers of a dtype; "mask=8,128:bool" is the keyword
    argument `mask`.

    >>> ids, mask = random_example(["2,3:10", "2,3:bool"])
    >>> ids.shape, ids.dtype, mask.dtype
    (torch.Size([2, 3]), torch.int64, torch.bool)
    >>> list(random_example(["ids=2,3:10"]))
    ['ids']
    """
    named = [_named_input(text) for text in inputs]
    names = [name for name, _ in named if name]
    if names and len(set(names)) < len(named):
        raise ValueError(
            f"--example is {' and '.join(map(repr, inputs))}: name all of them, each once, or none"
        )
    if names:
        return dict(named)
    tensors = tuple(tensor for _, tensor in named)
    return tensors if len(tensors) > 1 else tensors[0]


def _named_input(text: str) -> tuple[str, Tensor]:
    name, _, described = text.rpartition("=")
    sizes, colon, kind = described.partition(":")
    shape = numbers(int)(sizes)
    if not shape or min(shape) < 1:
        raise ValueError(f"--example is {text!r}: pass sizes of at least 1, as in 8,3,32,32")
    if kind.isdecimal() and int(kind) > 0:
        return name, torch.randint(int(kind), shape)
    dtype = getattr(torch, kind if colon else "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(  # noqa: TRY004  it is text that the user typed
            f"--example is {text!r}: {kind!r} is neither a dtype of torch, as float16 or bool, nor "
            f"how many ids there are, as in 8,128:30522"
        )
    if dtype.is_floating_point or dtype.is_complex:
        return name, torch.randn(shape).to(dtype)
    return name, torch.randint(2, shape).to(dtype)


def option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    """Return an option that --help shows in a panel of its own."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


MODEL = "What is changed"
RESULT = "What comes out"

Model = Annotated[
    str,
    typer.Argument(
        help="a function that returns the network, as package.module:build, or a .keras file"
    ),
]
Checkpoint = Annotated[
    Path | None,
    option(
        MODEL,
        "values of the network, a file of safetensors or a weights-only one of torch (.pt, .pth, "
        ".ckpt, .bin); the changes that its plan lists are made first",
    ),
]
Key = Annotated[
    str | None,
    option(MODEL, "under which key of the --checkpoint the values are, where it has several"),
]
Example = Annotated[
    list[str] | None,
    option(
        MODEL,
        "shape of a mini-batch of random inputs on which the network is run; 8,128:30522 are ids "
        "below 30522, 8,128:bool has another dtype, name=8,128 is a keyword argument; may be given "
        "again",
        metavar="N,C,H,W",
    ),
]
Data = Annotated[
    str | None,
    option(
        MODEL,
        "a function that returns mini-batches, or (train, test) as of `bnkit compare`, of which "
        "the first is taken, as package.module:loaders",
    ),
]
Where = Annotated[
    str | None,
    option(MODEL, "change only layers with such paths, * for anything", metavar="GLOB,GLOB,…"),
]
Tolerance = Annotated[
    float | None,
    option(
        RESULT,
        "largest error, relative to the largest output, by which the changed network may differ",
        show_default="1e-4 in float32",
    ),
]
Out = Annotated[
    Path | None,
    option(
        RESULT,
        "write the checkpoint of the changed network, with the plan, to this .safetensors, .pt "
        "or .pth, which bnkit.load reads; or a changed Keras model to this .keras",
    ),
]
ESTIMATORS: dict[str, Estimator] = {name: name for name in get_args(Estimator)}
AsJson = Annotated[bool, option(RESULT, "print all of it as JSON", "--json", show_default=False)]


def seeds(text: str) -> Seeds:
    """Return how many seeds, or "auto".

    >>> seeds("5"), seeds("auto")
    (5, 'auto')
    """
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--seeds is {text!r}: pass an integer ≥ 1, or auto") from None


def target(text: str | None) -> Target | None:
    """Return the value to reach, or "best".

    >>> target("0.9"), target("best"), target(None)
    (0.9, 'best', None)
    """
    if text is None or text == "best":
        return text  # type: ignore[return-value]  # mypy does not narrow it to the literal
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--target is {text!r}: pass a number, or best") from None


def sides(text: str) -> tuple[str | Change, ...]:
    """Return sides by their names, and functions of one's own by package.module:change.

    >>> sides("plain,group")
    ('plain', 'group')
    """
    return tuple(import_reference(side) if ":" in side else side for side in texts(text))


# Settings that are typed as text: the parser, how a default is shown, the metavar.
_TYPED: dict[Any, tuple[Callable[[str], Any], Callable[[Any], str | None], str | None]] = {
    Sequence[float]: (numbers(float), listed, "X,X,…"),
    Sequence[int]: (numbers(int), listed, "N,N,…"),
    Sequence[str]: (texts, listed, "NAME,NAME,…"),
    Seeds: (seeds, str, "N|auto"),
    Target | None: (target, lambda _: None, "X|best"),
    Choice: (lambda text: import_reference(text) if ":" in text else text, str, "NAME"),
    Choice | None: (
        lambda text: import_reference(text) if text and ":" in text else text,
        lambda _: None,
        "NAME",
    ),
    Sequence[str | Change]: (sides, listed, "NAME,NAME,…"),
    Placement: (
        lambda text: one_beginning(PLACEMENTS, text, "placement"),
        lambda placement: placement.removesuffix("_activation"),
        None,
    ),
}


def setting_options() -> list[inspect.Parameter]:
    """Return the fields of `Settings` as typer takes options, panel by panel."""
    shown = shown_settings()
    options = sorted(
        parameters_of(Settings), key=lambda field: PANELS.index(shown[field.name].panel)
    )
    return [_option_of(field, shown[field.name]) for field in options]


def settings_of(typed: Mapping[str, Any]) -> Settings:
    """Return the settings that were typed as these options; ValueError for text that is wrong.

    Of a name its beginning is enough.

    >>> settings_of({"optimizer": "mom", "activations": "sig,tanh"}).activations
    ('sigmoid', 'tanh')
    """
    choices = {name: shown.choices for name, shown in shown_settings().items()}
    return Settings(**{n: _completed(v, choices[n]) for n, v in values_of(typed).items()})


def values_of(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that were typed as these options of `Settings`, as they are."""
    kinds = {field.name: field.annotation for field in parameters_of(Settings)}
    read = {name: _TYPED[kind][0] for name, kind in kinds.items() if kind in _TYPED}
    return {n: read[n](value) if n in read else value for n, value in typed.items()}


def _completed(value: Any, choices: Iterable[str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_completed(each, choices) for each in value)
    return completed(value, choices) if isinstance(value, str) else value


def _option_of(field: inspect.Parameter, told: Shown) -> inspect.Parameter:
    # A switch that is on has a --no- beside it: typer adds it to what has no name.
    name = told.option or (None if field.default is True else "--" + field.name.replace("_", "-"))
    names = [name] if name else []
    kind, default, more = field.annotation, field.default, {}
    if kind in _TYPED:
        _, shown, metavar = _TYPED[kind]
        kind, default, more = str, shown(default), {"metavar": metavar}
        kind = str | None if default is None else str
    marked = Annotated[kind, option(told.panel, told.help, *names, **more)]  # type: ignore[valid-type]  # made here
    return field.replace(annotation=marked, default=default)
