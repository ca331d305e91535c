"""`Settings`: the options of a comparison with their defaults and help, checked at once."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict, get_args

from bnkit.experiments.initialisation import parse_scheme
from bnkit.experiments.networks import ACTIVATIONS, HIDDEN
from bnkit.experiments.training import LOSSES, OPTIMIZERS, Training
from bnkit.names import one_of
from bnkit.surgery.addition import Placement

# The panels of `bnkit compare --help`, in their order.
PANELS = COMPARED, TRAINED, NORMALISED, REPORTED = (
    "What is compared",
    "How it is trained",
    "The batch norm",
    "What comes out",
)


def _shown(panel: str, text: str, **more: str) -> dict[str, str]:
    """Return a field's metadata: the command line makes an option of it (see cli/comparison.py)."""
    return {"panel": panel, "help": text, **more}


@dataclass(frozen=True)
class Settings:
    """The sweep, the training, and the batch norm of one comparison.

    `steps` counts optimizer steps; `epochs`, where given, counts passes over the training data
    instead. `target` is the held-out accuracy, in [0, 1], whose first step is reported. `init` is
    "default", "glorot", "he" or "normal:STD". `hidden`, `batch_size`, `shuffle` and `activations`
    apply to the named networks and data sets. Raises ValueError for a value out of range, and
    TypeError for one that is not a list or a name where there should be one.

    >>> Settings(steps=0)
    Traceback (most recent call last):
    ValueError: `steps` is 0: pass an integer ≥ 1
    """

    learning_rates: Sequence[float] = field(
        default=(0.01, 0.1, 1.0, 3.0),
        metadata=_shown(COMPARED, "learning rates to sweep over", option="--learning-rate"),
    )
    activations: Sequence[str] = field(
        default=("sigmoid", "relu"),
        metadata=_shown(COMPARED, ", ".join(ACTIVATIONS), option="--activation"),
    )
    seeds: int = field(
        default=3,
        metadata=_shown(COMPARED, "runs of each setting; under three there are no intervals"),
    )
    hidden: Sequence[int] = field(
        default=HIDDEN, metadata=_shown(COMPARED, "units of each hidden layer of mlp")
    )
    optimizer: str = field(
        default="sgd", metadata=_shown(TRAINED, "sgd, momentum (sgd with 0.9), adam or adamw")
    )
    loss: str = field(
        default="cross-entropy",
        metadata=_shown(TRAINED, "cross-entropy, or sigmoid-cross-entropy for each class"),
    )
    init: str = field(
        default="default",
        metadata=_shown(
            TRAINED,
            "initial weights: default (torch's), glorot, he, or normal:STD as in normal:0.05",
        ),
    )
    batch_size: int = field(default=60, metadata=_shown(TRAINED, "examples in a mini-batch"))
    steps: int = field(default=1500, metadata=_shown(TRAINED, "optimizer steps of each run"))
    epochs: int | None = field(
        default=None,
        metadata=_shown(TRAINED, "passes over the training data, instead of --steps"),
    )
    evaluate_every: int = field(
        default=25, metadata=_shown(TRAINED, "steps between two measurements")
    )
    target: float = field(
        default=0.9,
        metadata=_shown(REPORTED, "accuracy, from 0 to 1, whose first step is reported"),
    )
    placement: Placement = field(
        default="before_activation", metadata=_shown(NORMALISED, "before or after the activation")
    )
    momentum: float = field(
        default=0.1,
        metadata=_shown(NORMALISED, "torch's: Keras' and TensorFlow's 0.99 is 0.01 here"),
    )
    eps: float = field(default=1e-5, metadata=_shown(NORMALISED, "added to the variance"))
    shuffle: bool = field(
        default=True,
        metadata=_shown(TRAINED, "a new order of the training data in each epoch, or their own"),
    )
    training_mode_accuracy: bool = field(
        default=False,
        metadata=_shown(TRAINED, "measure also with the statistics of the mini-batch"),
    )

    def __post_init__(self) -> None:
        for name in ("learning_rates", "activations", "hidden"):
            object.__setattr__(self, name, _several(name, getattr(self, name)))
        for name in ("optimizer", "loss", "init", "placement"):
            _check_text(name, getattr(self, name))
        _check_sweep(self)
        check_count("seeds", self.seeds)
        check_count("batch_size", self.batch_size)
        check_count("steps", self.steps)
        check_count("evaluate_every", self.evaluate_every)
        if self.epochs is not None:
            check_count("epochs", self.epochs)
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


def training_of(settings: Settings, learning_rate: float, *, steps: int) -> Training:
    """Return how a network is trained by these settings, at one of the learning rates."""
    return Training(
        learning_rate=learning_rate,
        optimizer=settings.optimizer,
        loss=settings.loss,
        steps=steps,
        evaluate_every=settings.evaluate_every,
        training_mode_accuracy=settings.training_mode_accuracy,
    )


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` once more, for type checkers; a test compares the two."""

    learning_rates: Sequence[float]
    activations: Sequence[str]
    seeds: int
    hidden: Sequence[int]
    optimizer: str
    loss: str
    init: str
    batch_size: int
    steps: int
    epochs: int | None
    evaluate_every: int
    target: float
    placement: Placement
    momentum: float
    eps: float
    shuffle: bool
    training_mode_accuracy: bool


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` is {values!r}: pass several in a list, or one as [{values!r}]")
    return tuple(values)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` is {value!r}: pass its name")


def _check_sweep(settings: Settings) -> None:
    for name in ("learning_rates", "activations"):
        values = getattr(settings, name)
        if not values:
            raise ValueError(f"`{name}` is empty: pass at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}` is {values}: pass each once")
    for rate in settings.learning_rates:
        _check_positive("learning_rates", rate)
    for size in settings.hidden:
        check_count("hidden", size)


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}: pass an integer ≥ 1")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` holds {value!r}: pass a positive, finite number")


def _check_between(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low < value <= high:
        raise ValueError(f"`{name}` is {value!r}: pass a number above {low} and up to {high}")
