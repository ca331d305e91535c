"""`Reproduction`: published figures beside ours."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bnkit.experiments.provenance import environment
from bnkit.experiments.statistics import SuccessRate
from bnkit.tables import text_table
from bnkit_claims.core.restoring import restored
from bnkit_claims.published.experiment import Measured, PublishedExperiment, Quantity

NOTHING = "–"


@dataclass(frozen=True)
class Reproduced:
    """One published figure beside ours: a value for each seed, None for a run without one."""

    experiment: str
    title: str
    quantity: Quantity
    ours: tuple[float | None, ...] = ()
    note: str = ""

    @property
    def median(self) -> float | None:
        """The median of our values; None where there are none."""
        return median(self._values) if self._values else None

    @property
    def difference(self) -> float | None:
        """Our median less the published figure, in its unit."""
        published = self.quantity.published
        return None if self.median is None or published is None else self.median - published

    @property
    def success(self) -> SuccessRate | None:
        """How many of our runs reach the bar; a run without a value does not."""
        bar = self.quantity.bar
        if bar is None or not self.ours:
            return None
        return SuccessRate(sum(v is not None and v >= bar for v in self.ours), len(self.ours))

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of its row: experiment, quantity, published, ours, difference, successes."""
        spread = NOTHING
        if self.median is not None:
            spread = f"{self.median:.2f} ({min(self._values):.2f}–{max(self._values):.2f})"
        rate = self.success
        return (
            f"{self.experiment}: {self.title}",
            f"{self.quantity.name} ({self.quantity.unit})",
            NOTHING if self.quantity.published is None else f"{self.quantity.published:g}",
            spread if self.ours else "not run",
            NOTHING if self.difference is None else f"{self.difference:+.2f}",
            NOTHING if rate is None else _rate(rate),
        )

    @property
    def _values(self) -> list[float]:
        return [value for value in self.ours if value is not None]


def _rate(rate: SuccessRate) -> str:
    low, high = (100 * bound for bound in rate.interval)
    return f"{rate} ({low:.0f}–{high:.0f}%)"


HEADERS = (
    "experiment",
    "quantity",
    "published",
    "ours (range)",
    "difference",
    "successes",
)


@dataclass(frozen=True)
class Reproduction:
    """Published figures beside ours, and where ours were measured."""

    environment: Mapping[str, str]
    figures: tuple[Reproduced, ...]

    def __str__(self) -> str:
        notes = {f"{each.experiment}: {each.note}" for each in self.figures if each.note}
        table = text_table(HEADERS, self._rows())
        return "\n".join([table, "", *sorted(notes)])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """The rows, in which an experiment is named once."""
        for before, each in zip((None, *self.figures), self.figures, strict=False):
            named = before is not None and before.experiment == each.experiment
            yield ("", *each.row[1:]) if named else each.row

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Reproduction":
        """Return what `to_json` wrote down.

        >>> figure = Reproduced("a", "one", Quantity("accuracy", "%", 90.0, 80.0), (91.0, None))
        >>> Reproduction.from_json(Reproduction({}, (figure,)).to_json()).figures[0] == figure
        True
        """
        return restored(cls, fields)


def reproduction(found: Iterable[tuple[PublishedExperiment, Measured]]) -> Reproduction:
    """Return the published figures of experiments beside what was found."""
    figures = [
        Reproduced(
            experiment=experiment.name,
            title=experiment.title,
            quantity=quantity,
            ours=tuple(ours.values.get(quantity.name, ())),
            note=f"{experiment.note} {_needed(experiment)}".strip(),
        )
        for experiment, ours in found
        for quantity in experiment.quantities
    ]
    return Reproduction(environment(), tuple(figures))


def _needed(experiment: PublishedExperiment) -> str:
    return f"Not run here; it takes {experiment.needs}." if experiment.needs else ""
