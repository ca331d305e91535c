"""`OwnLoop`: a training loop of the user's own, what it is given, and what it reports."""

import math
import operator
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.metrics import Metric, metric_named
from bnkit.experiments.results import Curve, Outcome, Side
from bnkit.experiments.settings import Settings, device_named
from bnkit.source_code import source_of

Train = Callable[[nn.Module, "RunningTrial"], object]
Loaders = tuple[Iterable[Any], Iterable[Any]]  # to train and to test on, as `data` gives them


@dataclass(frozen=True)
class OwnLoop:
    """A `function` of (model, trial) that trains a network and reports to its `RunningTrial`.

    `steps` is its budget, None without one. `metric` names what is judged, None for the only one
    that is reported beside the loss. `variants` are the settings that are swept beside the learning
    rate, by the label of each combination.
    """

    function: Train = field(repr=False)
    steps: int | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009  it cannot be changed
    metric: str | None = None
    higher_is_better: bool | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """What of it decides the numbers of all trials.

        It is without what is swept: each trial has its own, so that more values may join.
        """
        return {"train": source_of(self.function), "loop": repr(replace(self, variants={}))}

    def swept(self, variant: str) -> Mapping[str, Any]:
        """Return the settings that are swept, by their label; none for another one."""
        return self.variants.get(variant, {})

    def judged(self, reported: Iterable[str]) -> Metric:
        """Return the metric that is judged, of those that `train` reports; ValueError for none."""
        names = list(reported)
        if self.metric is not None and self.metric not in names:
            raise ValueError(
                f"`metric` is {self.metric!r}, and `train` reports {listed(names)}: name one of "
                f"these, or report it"
            )
        others = [name for name in names if name != "loss"] or names
        if self.metric is None and len(others) > 1:
            raise ValueError(
                f"`train` reports {listed(others)}: say which is judged, as in metric={others[0]!r}"
            )
        return metric_named(self.metric or others[0], higher_is_better=self.higher_is_better)


def own_loop(
    train: Train,
    settings: Settings,
    sweep: Mapping[str, Sequence[Any]],
    *,
    given: Container[str],
) -> OwnLoop:
    """Return the loop that `train` is, with what the settings say on it.

    `given` are the settings that the user has given: the others decide nothing here. Raises
    TypeError or ValueError for what is not a function, without learning rates, and for a sweep
    that is not one.
    """
    if not callable(train):
        raise TypeError(
            f"`train` is a {type(train).__name__}: pass a function of (model, trial) that trains "
            f"the model and reports to the trial"
        )
    if "learning_rates" not in given:
        raise ValueError(
            "`learning_rates` is missing: a loop of your own has its own, so pass them, as in "
            "learning_rates=[0.01, 0.1], and read trial.learning_rate"
        )
    if not (settings.metric is None or isinstance(settings.metric, str)):
        raise TypeError(
            f"`metric` is {settings.metric!r}, and `train` is your own: pass the name of a metric "
            f"that it reports"
        )
    return OwnLoop(
        function=train,
        steps=settings.steps if "steps" in given else None,
        device=device_named(settings.device),
        metric=settings.metric,
        higher_is_better=settings.higher_is_better,
        variants=_variants(sweep),
    )


def _variants(sweep: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return each combination of the values, by a label such as "width=64, dropout=0.1"."""
    for name, values in sweep.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable) or not [*values]:
            raise TypeError(
                f"`sweep` has {values!r} for {name!r}: pass its values in a list, as in "
                f"sweep={{{name!r}: [{values!r}]}}"
            )
        labels = [_label({name: value}) for value in values]
        if len({*labels}) < len(labels):
            raise ValueError(
                f"`sweep` has {', '.join(labels)}: pass each value once, under a name of its own"
            )
    if "learning_rate" in sweep:
        raise ValueError("`sweep` has 'learning_rate': pass its values as `learning_rates`")
    combinations = [dict(zip(sweep, each, strict=True)) for each in product(*sweep.values())]
    return {_label(each): each for each in combinations if each}


def _label(values: Mapping[str, Any]) -> str:
    named = {name: getattr(value, "__name__", value) for name, value in values.items()}
    return ", ".join(f"{name}={value}" for name, value in named.items())


class EndOfTrial(BaseException):
    """Ends a loop that goes on after its end; `except Exception` in it does not catch this."""


class RunningTrial:
    """What `train(model, trial)` is given: one side, one seed, one setting, and where to report.

    `side` names the side ("plain", …), and `seed` is set on the global generators of torch, Python
    and NumPy before `train` begins. `device` is where the network is. `settings` holds the learning
    rate and whatever else is swept, by name. `loaders` is what `data` returned under the seed, an
    error without `data`. In the `rehearsal` one report is enough.

    >>> trial = RunningTrial(OwnLoop(print, steps=20), "plain", 0, {"learning_rate": 0.1})
    >>> trial.report(10, loss=2.5), trial.report(20, loss=1.5)
    (False, True)
    """

    def __init__(
        self,
        loop: OwnLoop,
        side: Side,
        seed: int,
        settings: Mapping[str, Any],
        *,
        open_loaders: Callable[[], Loaders] | None = None,
        metric: Metric | None = None,
        rehearsal: bool = False,
        tell: Callable[[int, Mapping[str, float]], object] = lambda _step, _numbers: None,
    ) -> None:
        self.side = side
        self.seed = seed
        self.device = loop.device
        self._read = _Read(settings)
        self.settings: Mapping[str, Any] = self._read
        self.rehearsal = rehearsal
        self.began = self.last = time.perf_counter()
        self.outcome: Outcome = "finished"
        self.reason = ""
        self.ended = False
        self.reported: dict[str, int] = {}  # each metric and the step of its first report
        self._loop, self._metric, self._tell = loop, metric, tell
        self._open_loaders = open_loaders
        self._loaders: Loaders | None = None
        self.last_step = -1
        self._points: dict[int, tuple[float | None, float | None]] = {}  # loss and metric by step
        self._losses: list[float] = []  # since the last point

    @property
    def read(self) -> frozenset[str]:
        """The names of the settings that the loop has read."""
        return frozenset(self._read.names)

    @property
    def learning_rate(self) -> float:
        """The learning rate of this trial."""
        rate: float = self.settings["learning_rate"]
        return rate

    @property
    def steps(self) -> int:
        """The budget, `steps=` of the comparison, 1 in the rehearsal; ValueError without one."""
        if self._loop.steps is None:
            raise ValueError("`train` reads trial.steps: pass `steps` to compare")
        return 1 if self.rehearsal else self._loop.steps

    @property
    def loaders(self) -> Loaders:
        """What `data` returned under the seed, (train, test)."""
        if self._open_loaders is None:
            raise ValueError("`train` reads trial.loaders: pass `data` to compare")
        if self._loaders is None:
            self._loaders = self._open_loaders()
        return self._loaders

    def report(self, step: int, **metrics: Any) -> bool:
        """Keep what was measured at `step`, and return whether the loop should end.

        It should once the loss or the judged metric is not finite, or the budget is used up. A
        `loss` is averaged from one value of the judged metric to the next; both may be reported at
        once or by themselves. Values are numbers or tensors of one.

        Raises ValueError or TypeError for a step before the last one, no metric, or no number.
        """
        step = self._checked(step)
        if not metrics:
            raise ValueError(
                f"trial.report({step}) has no metric: name each, as in trial.report(step, loss=x)"
            )
        if self.ended and step > self.last_step:
            raise EndOfTrial
        values = {name: _number(name, value) for name, value in metrics.items()}
        for name in values:
            self.reported.setdefault(name, step)
        self.last_step = step
        if not self.ended:  # what goes on after its end has no more time for it
            self.last = time.perf_counter()
        self._keep(step, values)
        self._tell(step, values)
        self.ended = self.ended or self._is_over(step, values)
        if self.outcome == "diverged":  # with a point there, also where the loss alone is lost
            self._points.setdefault(step, (None, None))
        return self.ended

    @property
    def curve(self) -> Curve:
        """What was reported of the loss and of the judged metric."""
        points = self._points.values()
        return Curve(
            steps=tuple(self._points),
            loss=tuple(loss for loss, _ in points),
            metric=tuple(metric for _, metric in points),
        )

    def _checked(self, step: Any) -> int:
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(
                f"the step of trial.report is {step!r}: pass an integer, such as the optimizer "
                f"steps so far"
            ) from None
        if step < max(self.last_step, 0):
            last = f"after {self.last_step}" if self.last_step > 0 else "the first"
            raise ValueError(f"the step of trial.report is {step}, {last}: steps go forward from 0")
        return int(step)

    def _keep(self, step: int, values: Mapping[str, float]) -> None:
        metric = self._metric
        if metric is None:  # in a rehearsal, before it is known
            return
        known = (metric.name, "loss")
        if new := [n for n in values if self._loop.metric is None and n not in known]:
            raise ValueError(
                f"`train` reports {listed(new)}, which it did not in its rehearsal: say which "
                f"metric is judged, as in metric={new[0]!r}"
            )
        if "loss" in values:
            self._losses.append(values["loss"])
        if metric.name in values:
            loss = _mean(self._losses) if self._losses else self._points.get(step, (None,))[0]
            self._points[step] = _finite(loss), _finite(values[metric.name])
            self._losses = []

    def _is_over(self, step: int, values: Mapping[str, float]) -> bool:
        name = self._loop.metric if self._metric is None else self._metric.name
        for each in ("loss", name or "loss"):
            if each in values and not math.isfinite(values[each]):
                kind = "the reported loss" if each == "loss" else f"the reported {each}"
                self.outcome, self.reason = "diverged", f"{kind} was {values[each]} at step {step}"
                return True
        if self.rehearsal:
            return name is None or name in self.reported
        return self._loop.steps is not None and step >= self._loop.steps


class _Read(Mapping[str, Any]):
    """Settings that know which of them have been read."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return repr(self._settings)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, Tensor):
            return float(value.item())
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        if isinstance(value, Tensor):
            kind = f"tensor of shape {tuple(value.shape)}"
        raise TypeError(
            f"the metric {name!r} of trial.report is a {kind}: pass a number, or a tensor of one"
        ) from None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def listed(names: Iterable[str]) -> str:
    """Return names in quotes, with commas between them."""
    return ", ".join(map(repr, names))
