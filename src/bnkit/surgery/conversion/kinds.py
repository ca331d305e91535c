"""The kinds of normalisation that `convert` knows: their classes, and the options of each."""

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from bnkit import layers
from bnkit.internals import RANK_CHECK, AnyBatchNorm, AnyInstanceNorm
from bnkit.surgery.operations import check_numbers

Classes = tuple[type[nn.Module], type[nn.Module], type[nn.Module]]
Family = Literal["batch", "group", "instance"]

DEFAULT_GROUPS = 32  # Wu and He 2018, section 3.1


@dataclass(frozen=True)
class Kind:
    """One kind: its `classes` for inputs of 1, 2 and 3 dimensions beside batch and channels.

    `options` are the arguments of its constructor that are its own, `carried` those that each
    layer brings along and that may be set too. Kinds of the family "batch" compute the same in eval
    mode; those that `need_statistics` refuse layers without running statistics.
    """

    name: str
    classes: Classes
    options: tuple[str, ...] = ()
    carried: tuple[str, ...] = ("momentum", "guard")
    takes_residual: bool = True
    family: Family = "batch"
    needs_statistics: bool = False

    def options_of(self, layer: nn.Module) -> dict[str, Any]:
        """Return the options that a layer of this kind has."""
        return {name: getattr(layer, name) for name in self.options}

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError for unknown and missing options, and what the constructor raises."""
        known = (*self.options, *self.carried)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{self.name!r} has no option `{unknown[0]}`: it takes "
                f"{', '.join(f'`{name}`' for name in known)}; the rest is kept from each layer"
            )
        parameters = inspect.signature(self.classes[0]).parameters
        for name in self.options:
            required = parameters[name].default is inspect.Parameter.empty
            if self.family == "batch" and required and name not in options:
                raise TypeError(
                    f"{self.name!r} needs `{name}`: pass it, as convert(model, {self.name!r}, "
                    f"{name}=…)"
                )
        check_numbers(momentum=options.get("momentum"), eps=options.get("eps", 0.0))
        if not isinstance(options.get("guard", True), bool):
            raise TypeError(f"`guard` is {options['guard']!r}: pass True or False")
        self._try(options)

    def _try(self, options: Mapping[str, Any]) -> None:
        """Make a layer with these options, so that what is wrong with them is said at once."""
        own = {name: value for name, value in options.items() if name in self.options}
        if self.family != "group":
            self.classes[0](1, **own)
            return
        groups = own.get("num_groups", 1)
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise ValueError(
                f"`num_groups` is {groups!r}: pass an integer ≥ 1 that divides the "
                f"channels of each layer"
            )


def _each_rank(name: str, *, of: Any = layers) -> Classes:
    return getattr(of, f"{name}1d"), getattr(of, f"{name}2d"), getattr(of, f"{name}3d")


_TABLE = (
    Kind(
        "torch",
        _each_rank("BatchNorm", of=nn),
        carried=("momentum",),
        takes_residual=False,
    ),
    Kind("bnkit", _each_rank("BatchNorm")),
    Kind("sync", _each_rank("SyncBatchNorm"), ("process_group",)),
    Kind("ghost", _each_rank("GhostBatchNorm"), ("virtual_batch_size",)),
    Kind("renorm", _each_rank("BatchRenorm"), ("r_max", "d_max"), needs_statistics=True),
    Kind("masked", _each_rank("MaskedBatchNorm"), ("default",)),
    Kind("accumulated", _each_rank("AccumulatedBatchNorm"), ("micro_batches",)),
    Kind("domains", _each_rank("DomainBatchNorm"), ("domains", "affine"), needs_statistics=True),
    Kind("frozen", _each_rank("FrozenBatchNorm"), needs_statistics=True),
    Kind(
        "group",
        (nn.GroupNorm, nn.GroupNorm, nn.GroupNorm),
        ("num_groups",),
        carried=("eps",),
        takes_residual=False,
        family="group",
    ),
    Kind(
        "instance",
        _each_rank("InstanceNorm", of=nn),
        ("track_running_stats",),
        carried=("eps", "momentum"),
        takes_residual=False,
        family="instance",
    ),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _TABLE}

# The class of every kind, with its kind and for how many dimensions it is; None for any.
_RANKS: dict[type[nn.Module], tuple[str, int | None]] = {
    made: (kind.name, None if kind.family == "group" else rank)
    for kind in _TABLE
    for rank, made in enumerate(kind.classes, start=1)
}
# Batch norms that take inputs of any rank: torch's synchronised ones, and what other libraries make
# of these when they are to run alone.
_RANKS[nn.SyncBatchNorm] = ("torch's sync", None)
_RANKS[AnyBatchNorm] = ("without a rank", None)

# What a subclass may define and still be no more than the class that it derives from.
_HARMLESS = frozenset(["__init__", "__repr__", "extra_repr"])


def find_kind(name: str) -> Kind:
    """Return the kind called `name`; ValueError, with those that there are, for another.

    >>> find_kind("ghost").options
    ('virtual_batch_size',)
    """
    if name not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ValueError(
            f"`to` is {name!r}: choose one of {known}, or pass a callable from layer to layer"
        )
    return KINDS[name]


def base_of(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class in the table of kinds that `layer` is of or derives from, None for none.

    >>> base_of(nn.GroupNorm(2, 4)).__name__, base_of(nn.LayerNorm(4))
    ('GroupNorm', None)
    """
    return next((base for base in type(layer).__mro__ if base in _RANKS), None)


def additions_of(layer: nn.Module) -> list[str]:
    """Return what the class of `layer` defines beyond its base in the table, but for printing.

    >>> class Doubled(nn.BatchNorm1d):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> additions_of(Doubled(1)), additions_of(nn.BatchNorm1d(1))
    (['forward'], [])
    """
    classes = itertools.takewhile(lambda made: made not in _RANKS, type(layer).__mro__)
    harmless = _HARMLESS | ({RANK_CHECK} if base_of(layer) is AnyBatchNorm else set())
    defined = {name: value for made in classes for name, value in vars(made).items()}
    return sorted(
        name
        for name, value in defined.items()
        if name not in harmless and (callable(value) or not name.startswith("__"))
    )


def name_and_rank(layer: nn.Module) -> tuple[str, int | None]:
    """Return the name of the layer's kind and for how many dimensions it is, None where for any.

    >>> name_and_rank(layers.BatchRenorm2d(3)), name_and_rank(nn.SyncBatchNorm(3))
    (('renorm', 2), ("torch's sync", None))
    """
    base = base_of(layer)
    return ("another library's", None) if base is None else _RANKS[base]


def family_of(layer: nn.Module) -> Family:
    """Return the family of a layer: what it computes in eval mode.

    >>> family_of(nn.GroupNorm(2, 4)), family_of(nn.SyncBatchNorm(4))
    ('group', 'batch')
    """
    if isinstance(layer, nn.GroupNorm):
        return "group"
    return "instance" if isinstance(layer, AnyInstanceNorm) else "batch"
