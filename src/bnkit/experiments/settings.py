"""`Settings`: the options of a comparison with their defaults and help, checked at once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_args, get_type_hints

import torch

from bnkit.experiments.initialisation import SCHEMES, parse_scheme
from bnkit.experiments.networks import ACTIVATIONS, HIDDEN
from bnkit.experiments.sides import NAMES, Change, name_of
from bnkit.experiments.tasks import LOSSES, METRICS, Judge
from bnkit.experiments.training import OPTIMIZERS, PRECISIONS, SCHEDULES, Training
from bnkit.names import one_of
from bnkit.references import reference_to
from bnkit.surgery.addition import Placement

# The panels of `bnkit compare --help`, in their order.
PANELS = COMPARED, TRAINED, NORMALISED, REPORTED = (
    "What is compared",
    "How it is trained",
    "The batch norm",
    "What comes out",
)


Seeds = int | Literal["auto"]
Target = float | Literal["best"]
OF_THE_BUILT_IN_LOOP = (
    "optimizer loss schedule weight_decay precision clip epochs evaluate_every "
    "training_mode_accuracy"
).split()


Choice = str | Callable[..., Any]  # a name, or the user's own function


class Shown(NamedTuple):
    """How the command line shows a setting: in which panel, with which help, under which name.

    `choices` are the names that it may have, of which a beginning is enough there.
    """

    panel: str
    help: str
    option: str | None = None
    choices: Iterable[str] = ()


@dataclass(frozen=True)
class Settings:
    """The sweep, the training, and the batch norm of one comparison.

    `steps` counts optimizer steps; `epochs`, where given, counts passes over the training data
    instead. `seeds` are so many, or "auto": 3, 5, 8, 12 and at most 20, until the verdict says more
    than "not shown", or until after `budget` seconds. `target` is the held-out value whose first
    step is reported, "best" the first side's own best median. `margin` is the difference of the
    metric that counts as none. `init` is
    "default", "glorot", "he" or "normal:STD". `hidden`, `batch_size`, `shuffle` and `activations`
    apply to the named networks and data sets. Raises ValueError for a value out of range, and
    TypeError for one that is not a list or a name where there should be one.

    >>> Settings(steps=0)
    Traceback (most recent call last):
    ValueError: `steps` is 0: pass an integer ≥ 1
    """

    learning_rates: Annotated[
        Sequence[float], Shown(COMPARED, "learning rates to sweep over", "--learning-rate")
    ] = (0.01, 0.1, 1.0, 3.0)
    activations: Annotated[
        Sequence[str], Shown(COMPARED, ", ".join(ACTIVATIONS), "--activation", ACTIVATIONS)
    ] = ("sigmoid", "relu")
    seeds: Annotated[
        Seeds,
        Shown(COMPARED, "runs of each setting, at least three; auto adds seeds until the verdict"),
    ] = 3
    budget: Annotated[
        float | None, Shown(COMPARED, "seconds after which --seeds auto adds no more seeds")
    ] = None
    sides: Annotated[
        Sequence[str | Change],
        Shown(
            COMPARED,
            f"each is compared with the first: {', '.join(NAMES)}, or package.module:change, a "
            f"function from the network without batch norm to the side",
            choices=NAMES,
        ),
    ] = ("plain", "batch")
    hidden: Annotated[Sequence[int], Shown(COMPARED, "units of each hidden layer of mlp")] = HIDDEN
    optimizer: Annotated[
        Choice,
        Shown(
            TRAINED,
            "sgd, momentum (sgd with 0.9), adam or adamw, or your own as package.module:make, a "
            "function of parameters and learning rate",
            choices=OPTIMIZERS,
        ),
    ] = "sgd"
    loss: Annotated[
        Choice | None,
        Shown(
            TRAINED,
            f"{', '.join(LOSSES)}, or your own as package.module:loss, a function of output and "
            f"target; the usual one of the task, or that which the network returns",
            choices=LOSSES,
        ),
    ] = None
    schedule: Annotated[
        Choice | None,
        Shown(
            TRAINED,
            f"of the learning rate: {', '.join(SCHEDULES)}, or your own as package.module:make, a "
            f"function of the optimizer",
            choices=SCHEDULES,
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        Shown(TRAINED, "of all but normalisations and biases; the optimizer's own default"),
    ] = None
    precision: Annotated[
        str,
        Shown(
            TRAINED,
            "float32, or autocast in bfloat16 or float16 (with a scaler)",
            choices=PRECISIONS,
        ),
    ] = "float32"
    clip: Annotated[float | None, Shown(TRAINED, "largest norm of the gradients")] = None
    init: Annotated[
        str,
        Shown(
            TRAINED,
            "initial weights: default (torch's), glorot, he, or normal:STD as in normal:0.05",
            choices=SCHEMES,
        ),
    ] = "default"
    batch_size: Annotated[int, Shown(TRAINED, "examples in a mini-batch")] = 60
    steps: Annotated[int, Shown(TRAINED, "optimizer steps of each run")] = 1500
    epochs: Annotated[
        int | None, Shown(TRAINED, "passes over the training data, instead of --steps")
    ] = None
    evaluate_every: Annotated[int, Shown(TRAINED, "steps between two measurements")] = 25
    target: Annotated[
        Target | None,
        Shown(
            REPORTED,
            "held-out value whose first step is reported, or best, the plain side's own best "
            "median; by default the accuracy 0.9 for named data, and else the best",
        ),
    ] = None
    margin: Annotated[
        float | None,
        Shown(
            REPORTED,
            "difference of the metric that counts as none; by default 0.01 of a share, and else a "
            "twentieth of what the plain side gains",
        ),
    ] = None
    placement: Annotated[
        Placement, Shown(NORMALISED, "before or after the activation, or every_conv")
    ] = "before_activation"
    momentum: Annotated[
        float, Shown(NORMALISED, "torch's, where Keras' 0.99 is 0.01; of a Keras model, Keras' own")
    ] = 0.1
    metric: Annotated[
        Choice | None,
        Shown(
            COMPARED,
            f"what is judged: {', '.join(METRICS)}, or your own as package.module:metric, a "
            f"function of outputs and targets; the usual one of the task",
            choices=METRICS,
        ),
    ] = None
    higher_is_better: Annotated[
        bool | None,
        Shown(
            COMPARED,
            "of the metric, where its name does not say so",
            option="--higher-is-better/--lower-is-better",
        ),
    ] = None
    device: Annotated[str, Shown(TRAINED, "auto, cpu, cuda, cuda:1, mps, …")] = "auto"
    eps: Annotated[float, Shown(NORMALISED, "added to the variance")] = 1e-5
    shuffle: Annotated[
        bool, Shown(TRAINED, "a new order of the training data in each epoch, or their own")
    ] = True
    training_mode_accuracy: Annotated[
        bool, Shown(TRAINED, "measure also with the statistics of the mini-batch")
    ] = False

    def __post_init__(self) -> None:
        for name in ("learning_rates", "activations", "sides", "hidden"):
            object.__setattr__(self, name, _several(name, getattr(self, name)))
        for name in ("init", "placement", "device", "precision"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"`{name}` is {value!r}: pass its name")
        _check_sweep(self)
        for name in ("batch_size", "steps", "evaluate_every"):
            check_count(name, getattr(self, name))
        if self.seeds != "auto":
            _check_seeds(self)
        _check_sides(self.sides)
        if self.epochs is not None:
            check_count("epochs", self.epochs)
        _check_target(self.target)
        for name in ("budget", "margin"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        _check_between("momentum", self.momentum, 0, 1)
        check_positive("eps", self.eps)
        _check_training(self)
        one_of(dict.fromkeys(get_args(Placement)), self.placement, "placement")
        parse_scheme(self.init)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain lists, numbers and strings."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {**plain, "sides": [name_of(side) for side in self.sides]}


def shown_settings() -> dict[str, Shown]:
    """Return how the command line shows each setting, by the names of the fields."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def device_named(name: str) -> torch.device:
    """Return the device; "auto" is the accelerator that there is, or the CPU.

    Raises ValueError for a device that is unknown or not there.

    >>> device_named("cpu")
    device(type='cpu')
    """
    there = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return there or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = "auto or cpu" if there is None else f"auto, cpu or {there}"
        raise ValueError(f"`device` is {name!r}, which is not there: pass {here}") from error
    return device


def training_of(
    settings: Settings, learning_rate: float, *, steps: int, judge: Judge | None = None
) -> Training:
    """Return how a network is trained by these settings, at one of the learning rates.

    Without a `judge` the task is classification, judged by accuracy.
    """
    usual = "cross-entropy" if judge is None else judge.loss
    return Training(
        learning_rate=learning_rate,
        optimizer=settings.optimizer,
        loss=usual if settings.loss is None else settings.loss,
        steps=steps,
        evaluate_every=settings.evaluate_every,
        training_mode_accuracy=settings.training_mode_accuracy,
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        device=device_named(settings.device),
        precision=settings.precision,
        clip=settings.clip,
        judge=judge,
    )


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` once more, for type checkers; a test compares the two."""

    learning_rates: Sequence[float]
    activations: Sequence[str]
    seeds: Seeds
    budget: float | None
    sides: Sequence[str | Change]
    hidden: Sequence[int]
    optimizer: Choice
    loss: Choice | None
    schedule: Choice | None
    weight_decay: float | None
    precision: str
    clip: float | None
    init: str
    batch_size: int
    steps: int
    epochs: int | None
    evaluate_every: int
    target: Target | None
    margin: float | None
    placement: Placement
    momentum: float
    metric: Choice | None
    higher_is_better: bool | None
    device: str
    eps: float
    shuffle: bool
    training_mode_accuracy: bool


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return reference_to(value) if callable(value) else value


def _check_training(settings: Settings) -> None:
    named: dict[str, Mapping[str, Any]] = {
        "optimizer": OPTIMIZERS,
        "loss": LOSSES,
        "schedule": SCHEDULES,
    }
    for name in (*named, "metric"):
        value = getattr(settings, name)
        _check_choice(name, value, optional=name != "optimizer")
        if isinstance(value, str) and name in named:
            one_of(named[name], value, name)
    one_of(PRECISIONS, settings.precision, "precision")
    if settings.clip is not None:
        check_positive("clip", settings.clip)
    decay = settings.weight_decay
    if decay is not None and not 0 <= decay < math.inf:
        raise ValueError(f"`weight_decay` is {decay!r}: pass a finite number ≥ 0")


def _check_choice(name: str, value: Any, *, optional: bool) -> None:
    own = hasattr(value, "update") and hasattr(value, "compute")  # a metric of torchmetrics
    if not (isinstance(value, str) or callable(value) or own or (optional and value is None)):
        raise TypeError(f"`{name}` is {value!r}: pass its name, or a function of your own")


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` is {values!r}: pass several in a list, or one as [{values!r}]")
    return tuple(values)


def _check_sweep(settings: Settings) -> None:
    for name in ("learning_rates", "activations"):
        values = getattr(settings, name)
        if not values:
            raise ValueError(f"`{name}` is empty: pass at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}` is {values}: pass each once")
    for rate in settings.learning_rates:
        check_positive("learning_rates", rate, verb="holds")
    for size in settings.hidden:
        check_count("hidden", size)


def _check_sides(sides: Sequence[str | Change]) -> None:
    named = [name_of(side) for side in sides]
    if len(named) < 2 or len({*named}) < len(named):
        raise ValueError(f"`sides` is {named}: pass two or more, each once")


def _check_target(target: object) -> None:
    if not (
        target in (None, "best") or (isinstance(target, int | float) and math.isfinite(target))
    ):
        raise ValueError(f"`target` is {target!r}: pass a finite number, or 'best'")


def _check_seeds(settings: Settings) -> None:
    count = settings.seeds
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"`seeds` is {count!r}: pass an integer ≥ 1, or 'auto'")
    if settings.budget is not None:
        raise ValueError(
            f"`budget` is {settings.budget!r} and `seeds` is {settings.seeds}: a budget is for "
            f"seeds='auto', which adds seeds until it is spent"
        )


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}: pass an integer ≥ 1")


def check_positive(name: str, value: object, *, verb: str = "is") -> None:
    """Raise ValueError unless the value, which a list "holds", is a positive, finite number."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` {verb} {value!r}: pass a positive, finite number")


def _check_between(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low < value <= high:
        raise ValueError(f"`{name}` is {value!r}: pass a number above {low} and up to {high}")
