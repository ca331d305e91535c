"""`KerasSettings`: the options of a comparison of Keras models, checked at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import keras

from bnkit.experiments.settings import Seeds, Settings, Target
from bnkit.experiments.sides import name_of
from bnkit.keras.addition import Placement
from bnkit.references import reference_to

Change = Callable[[Any], Any]  # a function of the user's, from the plain model to a side

# Of the shared settings those that mean the same here, with the same checks.
_SHARED = (
    "seeds budget sides batch_size shuffle steps epochs evaluate_every target margin metric "
    "higher_is_better placement training_mode_accuracy"
).split()

OF_THE_BUILT_IN_LOOP = (
    "optimizer loss batch_size shuffle epochs evaluate_every training_mode_accuracy"
).split()


@dataclass(frozen=True)
class KerasSettings:
    """The sweep, the training and the batch norm of a comparison of Keras models.

    `learning_rates` None is the one that the model is compiled with, also where that is a schedule;
    of a model that is not compiled, those of `bnkit.compare`. `optimizer`, a name or a function of
    the learning rate, and `loss` are for a model that is not compiled: "sgd", and the cross-entropy
    of integer targets. `steps` counts mini-batches, `epochs`, where given, passes over the training
    data instead; it is measured every `evaluate_every` steps, in inference and, with
    `training_mode_accuracy`, also by the statistics of the held-out mini-batches. `metric` names
    one of those that the model is compiled with. `batch_size` and `shuffle` are for data in arrays.
    `momentum`, `epsilon` and `placement` are those of the new batch norms, as Keras has them. The
    others are those of `bnkit.compare`. Raises ValueError and TypeError as `bnkit.compare` does.

    >>> KerasSettings(steps=0)
    Traceback (most recent call last):
    ValueError: `steps` is 0: pass an integer ≥ 1
    """

    learning_rates: Sequence[float] | None = None
    seeds: Seeds = 3
    budget: float | None = None
    sides: Sequence[str | Change] = ("plain", "batch")
    optimizer: str | Callable[[float], Any] | None = None
    loss: Any = None
    metric: str | None = None
    higher_is_better: bool | None = None
    batch_size: int = 32
    shuffle: bool = True
    steps: int = 1500
    epochs: int | None = None
    evaluate_every: int = 50
    training_mode_accuracy: bool = True
    target: Target | None = None
    margin: float | None = None
    placement: Placement = "before_activation"
    momentum: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.metric is None or isinstance(self.metric, str)):
            raise TypeError(
                f"`metric` is {self.metric!r}: pass the name of a metric that the model is "
                f"compiled with"
            )
        if isinstance(self.optimizer, keras.Optimizer):
            raise TypeError(
                f"`optimizer` is a {type(self.optimizer).__name__} that all trials would share: "
                f"pass its name, or a function of the learning rate that makes a new one, such as "
                f"keras.optimizers.Adam"
            )
        object.__setattr__(self, "sides", self.shared.sides)
        if self.learning_rates is not None:
            object.__setattr__(self, "learning_rates", self.shared.learning_rates)

    def refuse_given(self, names: Iterable[str], why: str) -> None:
        """Raise ValueError for the first of these settings that would change nothing here."""
        for name in names:
            value = getattr(self, name)
            if value != getattr(KerasSettings, name):
                raise ValueError(f"`{name}` is {value!r}, and {why}: leave it out")

    @property
    def shared(self) -> Settings:
        """What of it is the same for networks of PyTorch."""
        found = {name: getattr(self, name) for name in _SHARED}
        if self.learning_rates is not None:
            found["learning_rates"] = self.learning_rates
        return Settings(**found)

    @property
    def of_batch_norm(self) -> dict[str, Any]:
        """The options of `add`."""
        return {name: getattr(self, name) for name in ("placement", "momentum", "epsilon")}

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain lists, numbers and strings."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {**plain, "sides": [name_of(side) for side in self.sides]}


def _plain(value: Any) -> Any:
    if isinstance(value, keras.losses.Loss):
        return type(value).__name__
    if isinstance(value, tuple):
        return list(value)
    return reference_to(value) if callable(value) else value
