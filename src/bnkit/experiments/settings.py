"""`Settings`: all that a comparison can be told, with its defaults, checked at once."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from bnkit.experiments.initialisation import parse_scheme
from bnkit.experiments.networks import HIDDEN
from bnkit.experiments.training import LOSSES, OPTIMIZERS
from bnkit.names import one_of
from bnkit.surgery.addition import Placement


@dataclass(frozen=True)
class Settings:
    """The sweep, the training, and the batch norm of one comparison.

    `steps` counts optimizer steps; `epochs`, where given, counts passes over the training data
    instead. `target` is the held-out accuracy, in [0, 1], whose first step is reported. `init` is
    "default", "glorot", "he" or "normal:STD". `hidden`, `batch_size`, `shuffle` and `activations`
    apply to the named networks and data sets. Raises ValueError for a value out of range, and
    TypeError for one that is no list or name where there should be one.

    >>> Settings(steps=0)
    Traceback (most recent call last):
    ValueError: `steps` is 0: give a whole number of at least 1
    """

    learning_rates: Sequence[float] = (0.01, 0.1, 1.0, 3.0)
    activations: Sequence[str] = ("sigmoid", "relu")
    seeds: int = 3
    hidden: Sequence[int] = HIDDEN
    optimizer: str = "sgd"
    loss: str = "cross-entropy"
    init: str = "default"
    batch_size: int = 60
    steps: int = 1500
    epochs: int | None = None
    evaluate_every: int = 25
    target: float = 0.9
    placement: Placement = "before_activation"
    momentum: float = 0.1
    eps: float = 1e-5
    shuffle: bool = True
    training_mode_accuracy: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rates", "activations", "hidden"):
            object.__setattr__(self, name, _several(name, getattr(self, name)))
        for name in ("optimizer", "loss", "init", "placement"):
            _check_text(name, getattr(self, name))
        _check_sweep(self)
        check_whole("seeds", self.seeds)
        check_whole("batch_size", self.batch_size)
        check_whole("steps", self.steps)
        check_whole("evaluate_every", self.evaluate_every)
        if self.epochs is not None:
            check_whole("epochs", self.epochs)
        _check_between("target", self.target, 0, 1)
        _check_between("momentum", self.momentum, 0, 1)
        _check_positive("eps", self.eps)
        one_of(OPTIMIZERS, self.optimizer, "optimizer")
        one_of(LOSSES, self.loss, "loss")
        one_of(dict.fromkeys(get_args(Placement)), self.placement, "placement")
        parse_scheme(self.init)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain lists, numbers and strings."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` is {values!r}: give several in a list, or one as [{values!r}]")
    return tuple(values)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` is {value!r}: give its name")


def _check_sweep(settings: Settings) -> None:
    for name in ("learning_rates", "activations"):
        values = getattr(settings, name)
        if not values:
            raise ValueError(f"`{name}` is empty: give at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}` is {values}: give each once")
    for rate in settings.learning_rates:
        _check_positive("learning_rates", rate)
    for size in settings.hidden:
        check_whole("hidden", size)


def check_whole(name: str, value: object) -> None:
    """Raise ValueError unless the value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}: give a whole number of at least 1")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` holds {value!r}: give a positive, finite number")


def _check_between(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low < value <= high:
        raise ValueError(f"`{name}` is {value!r}: give a number above {low} and up to {high}")
