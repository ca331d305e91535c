"""`bench`: all cases one after another, as a record that prints as a table."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bnkit.benchmarking.cases import CASES, Case
from bnkit.benchmarking.measuring import Measurement, measure, refuse_without_compiler
from bnkit.experiments.provenance import environment
from bnkit.notebooks import Shown
from bnkit.tables import frame_of, text_table

LARGE = 2**24  # bytes: beyond what the caches of most processors keep
_HEADERS = (
    "mini-batch",
    "torch, ms",
    "bnkit, ms",
    "times faster",
    "than compiled",
    "in inference",
    "passes",
    "of at least",
)


@dataclass(frozen=True)
class Benchmark(Shown):
    """The measurements of some cases on one machine."""

    environment: dict[str, str]
    threads: int
    measurements: tuple[Measurement, ...]

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a copy of the largest case moves, reading and writing."""
        largest = max(self.measurements, key=lambda m: m.case.bytes)
        return 2 * largest.case.bytes / largest.seconds["copy"]

    def mean_ratio(self, slower: str, faster: str = "bnkit", *, least: int = 0) -> float | None:
        """Return the geometric mean of a ratio over the cases of `least` bytes or more."""
        ratios = [m.ratio(slower, faster) for m in self.measurements if m.case.bytes >= least]
        found = [ratio for ratio in ratios if ratio is not None]
        return statistics.geometric_mean(found) if found else None

    @property
    def noise(self) -> float:
        """The largest ratio of one program to itself, over all cases; 1 is none."""
        ratios = [m.seconds["torch again"] / m.seconds["torch"] for m in self.measurements]
        return max(max(ratio, 1 / ratio) for ratio in ratios)

    def summary(self) -> dict[str, float | None]:
        """Return the figures that sum the benchmark up, by what they are."""
        over_minimum = [
            m.passes / m.minimal_passes for m in self.measurements if m.case.bytes >= LARGE
        ]
        return {
            "copy, GB/s": self.bandwidth / 1e9,
            "torch / bnkit": self.mean_ratio("torch"),
            "torch / bnkit, least": min(m.ratio("torch") or 0.0 for m in self.measurements),
            "torch / itself, most": self.noise,
            "torch / bnkit with fresh memory": self.mean_ratio("torch", "bnkit, fresh memory"),
            "torch.compile / bnkit": self.mean_ratio("torch.compile"),
            "inference: torch / bnkit": self.mean_ratio("inference, torch", "inference, bnkit"),
            "inference: torch / bnkit, large": self.mean_ratio(
                "inference, torch", "inference, bnkit", least=LARGE
            ),
            "passes / minimum, large": statistics.geometric_mean(over_minimum)
            if over_minimum
            else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain data; times in milliseconds."""
        return {
            "environment": self.environment,
            "threads": self.threads,
            "summary": self.summary(),
            "cases": [
                {
                    "shape": list(m.case.shape),
                    "layout": m.case.layout,
                    "milliseconds": {name: 1000 * s for name, s in m.seconds.items()},
                    "passes": m.passes,
                    "minimal passes": m.minimal_passes,
                }
                for m in self.measurements
            ],
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each case, times in milliseconds.

        Raises MissingExtraError without pandas.
        """
        return frame_of(
            {**{k: v for k, v in case.items() if k != "milliseconds"}, **case["milliseconds"]}
            for case in self.to_json()["cases"]
        )

    def __str__(self) -> str:
        columns = zip(_HEADERS, *map(_row, self.measurements), strict=True)
        headers, *rows = zip(*[column for column in columns if any(column[1:])], strict=True)
        facts = [f"{what}: {value:.3g}" for what, value in self.summary().items() if value]
        return f"{text_table(headers, rows, width=120)}\n\n" + "\n".join(facts)


def bench(
    cases: Iterable[Case] = CASES,
    *,
    seconds: float = 2.0,
    compiled: bool = False,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Benchmark:
    """Return the measurements of BN+ReLU, forward and backward and inference, on this machine.

    Every case takes `seconds` for training and a quarter of it for inference. With `compiled`,
    torch.compile is measured too; it needs a C++ compiler. `progress` wraps the cases as they are
    taken. Nothing else should run on the machine meanwhile.

    Raises ValueError without cases, and with `compiled` where torch.compile does not work;
    ArithmeticError if bnkit's result is wrong.

    >>> result = bench([Case((8, 4))], seconds=0.0)
    >>> len(result.measurements), result.bandwidth > 0
    (1, True)
    """
    cases = list(cases)
    if not cases:
        raise ValueError("`cases` is empty: pass at least one")
    if compiled:
        refuse_without_compiler()
    measured = tuple(measure(case, seconds=seconds, compiled=compiled) for case in progress(cases))
    return Benchmark(environment(), torch.get_num_threads(), measured)


def _row(m: Measurement) -> list[str]:
    return [
        str(m.case),
        *(f"{1000 * m.seconds[name]:.3g}" for name in ("torch", "bnkit")),
        _times(m.ratio("torch")),
        _times(m.ratio("torch.compile")),
        _times(m.ratio("inference, torch", "inference, bnkit")),
        f"{m.passes:.1f}",
        str(m.minimal_passes),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
