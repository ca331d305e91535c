"""`Claim`: what is said of batch norm, by whom, and how it is put to the test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from bnkit.experiments.settings import check_count
from bnkit.names import one_beginning
from bnkit_claims.core.evidence import Evidence

S = TypeVar("S", bound="ClaimSettings")


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """What the settings of every claim have: the data set, its folder, and how many seeds.

    `folder` is where the files of MNIST and Fashion-MNIST lie (see `bnkit.experiments.data.load`).
    """

    data: str = "digits"
    folder: str | None = None
    seeds: int = 5

    def __post_init__(self) -> None:
        check_count("seeds", self.seeds)

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the numbers of one case: all but where the files lie and how many seeds."""
        return {k: v for k, v in asdict(self).items() if k not in ("folder", "seeds")}


class RunCases(Protocol):
    """What measures every case of a claim, in this process or in many.

    `measure(settings, case)` is a function of a module (so that it reaches other processes) and
    returns what JSON can hold; `cases` are tuples of plain values. The results are in their order.
    """

    def __call__(
        self, measure: Callable[[Any, Any], Any], settings: Any, cases: Sequence[Any]
    ) -> list[Any]: ...


@dataclass(frozen=True)
class Source:
    """Who says it, with the place, and what exactly is said there, in our words."""

    who: str
    says: str


@dataclass(frozen=True)
class Claim(Generic[S]):
    """A claim in one sentence, its sources, its measurement, and the criteria of its verdict.

    `measurement` explains to people what is measured; `criteria`, written before any run, which
    evidence gives which verdict. `sizes` are its settings for the embedded digits ("digits"), for
    MNIST and Fashion-MNIST ("mnist"), and for a test of a few seconds ("toy").
    `run(settings, run_cases)` measures and judges.
    """

    name: str
    statement: str
    sources: tuple[Source, ...]
    measurement: str
    criteria: str
    sizes: Mapping[str, S]
    run: Callable[[S, RunCases], Evidence]

    def settings(
        self, data: str = "digits", *, folder: str | None = None, seeds: int | None = None
    ) -> S:
        """Return the settings for a data set: "digits", "mnist", "fashion-mnist", or "toy"."""
        size = self.sizes["mnist" if data == "fashion-mnist" else data]
        named = size.data if data == "toy" else data
        own = size.seeds if seeds is None else seeds
        return replace(size, data=named, folder=folder, seeds=own)


def claim_named(claims: Sequence[Claim[Any]], name: str) -> Claim[Any]:
    """Return the claim whose name this is, or whose name alone begins so.

    Raises ValueError, with near names, where there is none.
    """
    table = {claim.name: claim for claim in claims}
    return one_beginning(table, name, "claim")
