"""`State`: what the kinds have in common, and a layer keeps when it becomes one of another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bnkit.layers.batch_norm import ActivatedBatchNorm
from bnkit.layers.domains import DomainBatchNorm, domain
from bnkit.layers.finished import Finished
from bnkit.surgery.conversion.kinds import family_of

PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NOTE = "_kept_by_conversion"  # attribute: what the layer's kind has no place for
CARRIED = {"momentum": 0.1, "guard": True}  # and how new layers have them
_WITH_ACTIVATION = ActivatedBatchNorm, Finished


@dataclass(frozen=True)
class State:
    """What the kinds have in common, and a layer keeps when it becomes one of another kind.

    `trains` says which parameters require gradients, or would if the layer were not frozen.
    `statistics` are empty for group and instance norms that have none; `of_domains` are those by
    domain, of per-domain layers.
    """

    num_features: int
    eps: float
    affine: bool
    track_running_stats: bool
    parameters: Mapping[str, Tensor | None]
    statistics: Mapping[str, Tensor | None]
    trains: Mapping[str, bool]
    momentum: float | None = 0.1
    guard: bool = True
    activation: str | None = None
    non_finite_batches: Tensor | None = None
    of_domains: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    domain: str = ""


def state_of(layer: Any) -> State:
    """Return the state of a normalisation of any kind.

    >>> state_of(nn.GroupNorm(2, 4, eps=0.1)).eps
    0.1
    """
    parameters = {name: getattr(layer, name, None) for name in PARAMETERS}
    statistics = {name: getattr(layer, name, None) for name in STATISTICS}
    if family_of(layer) != "batch" and statistics["running_mean"] is None:
        statistics = {}  # it has no need of any, and a batch norm begins with new ones
    return State(
        num_features=_features_of(layer),
        eps=layer.eps,
        affine=getattr(layer, "affine", parameters["weight"] is not None),
        track_running_stats=getattr(layer, "track_running_stats", True) or not statistics,
        parameters=parameters,
        statistics=statistics,
        trains=_which_train(layer, parameters),
        activation=layer.activation if isinstance(layer, _WITH_ACTIVATION) else None,
        non_finite_batches=getattr(layer, "non_finite_batches", None),
        of_domains=_statistics_of_domains(layer),
        domain=layer.domain if isinstance(layer, DomainBatchNorm) else "",
        **{name: _carried(layer, name, default) for name, default in CARRIED.items()},
    )


def _carried(layer: nn.Module, name: str, default: Any) -> Any:
    return getattr(layer, name, vars(layer).get(NOTE, {}).get(name, default))


def _which_train(layer: nn.Module, parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Return which parameters train, or would if they were not buffers."""
    noted = vars(layer).get(NOTE, {}).get("trains", {})
    return {
        name: p.requires_grad if isinstance(p, nn.Parameter) else noted.get(name, True)
        for name, p in parameters.items()
    }


def _statistics_of_domains(layer: nn.Module) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name in layer.domains if isinstance(layer, DomainBatchNorm) else ():
        with domain(layer, name):
            found[name] = {key: getattr(layer, key) for key in STATISTICS}
    return found


def _features_of(layer: Any) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    return int(getattr(layer, "num_features", 0) or len(layer.weight))
