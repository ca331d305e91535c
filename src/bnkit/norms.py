"""Which modules of a model are its batch norms, and why one is left alone: the same for every verb.

A verb asks `batch_norms` for those to work on. What can stand against a layer, and is not a verb's
own affair, is said here, in the same words for all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from bnkit.behaviour import BY_BATCH, NO_STATISTICS, behaviour_of, has_known_forward
from bnkit.internals import AnyBatchNorm, inside_compiled
from bnkit.layers.batch_norm import GuardedBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.roles import is_batch_norm
from bnkit.tables import first_few

Where = Callable[[str, nn.Module], bool]
Objection = Callable[[str, nn.Module], str | None]

NOT_CHOSEN = "`where` did not choose it"
NOT_MOMENTS = (
    "its running statistics are not the mean and the variance of each channel (axis 1) of its "
    "input, as a trial of its class shows"
)
PER_STEP = "it has statistics for each time step of a recurrent layer"


@dataclass(frozen=True)
class Chosen:
    """The batch norms to work on by their paths, and the reasons for the others by theirs."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the layers to work on, in the order of the model."""
        return tuple(self.layers)

    def why_none(self, model: nn.Module) -> str:
        """Return why there is no layer to work on: what was left alone, if anything was.

        >>> batch_norms(nn.Linear(2, 2)).why_none(nn.Linear(2, 2))
        'Linear has no batch norm'
        """
        reasons = [f"{path or 'the model'}: {why}" for path, why in self.left_alone.items()]
        return first_few(reasons) or f"{type(model).__name__} has no batch norm"


def batch_norms(
    model: nn.Module, where: Where | None = None, *, objection: Objection | None = None
) -> Chosen:
    """Return the batch norms of `model` that `where` chooses, but for those with an `objection`.

    They are those of `bnkit.roles.is_batch_norm`, each once, under the first of its paths.
    `objection(path, layer)`, of the layers that `where` chose, says why one is left alone.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2))
    >>> chosen = batch_norms(model, lambda path, layer: path == "0")
    >>> chosen.paths, chosen.left_alone
    (('0',), {'2': '`where` did not choose it'})
    """
    chosen = Chosen()
    for path, layer in model.named_modules():
        if not is_batch_norm(layer):
            continue
        if where is not None and not where(path, layer):
            why: str | None = NOT_CHOSEN
        else:
            why = None if objection is None else objection(path, layer)
        if why is None:
            chosen.layers[path] = layer
        else:
            chosen.left_alone[path] = why
    return chosen


def why_incomparable(layer: nn.Module, shape: tuple[int, ...] = ()) -> str | None:
    """Return why the moments of a layer's input say nothing about its statistics, None if they do.

    What a class of another library normalises may depend on the `shape` of its input.

    >>> why_incomparable(nn.BatchNorm1d(2, track_running_stats=False))
    'it has no running statistics: even in eval mode it uses those of the mini-batch'
    """
    if not isinstance(layer, AnyBatchNorm):
        return f"{type(layer).__name__} is of another library: what its buffers mean is unknown"
    if layer.running_mean is None or layer.running_var is None:
        return NO_STATISTICS
    if layer.running_mean.dim() != 1:
        return PER_STEP
    if isinstance(layer, MaskedBatchNorm):
        return "it is masked: what it leaves out of its input cannot be seen from outside"
    if is_to_be_tried(layer) and behaviour_of(layer, shape=shape).by_batch_in_eval:
        return BY_BATCH
    return NOT_MOMENTS if keeps_something_else(layer, shape) else None


def keeps_something_else(layer: nn.Module, shape: tuple[int, ...] = ()) -> bool:
    """Return whether a trial shows that its statistics are no mean and variance of its input.

    >>> keeps_something_else(nn.BatchNorm1d(2))
    False
    """
    return is_to_be_tried(layer) and behaviour_of(layer, shape=shape).keeps_moments is False


def has_other_channels(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a trial shows that `layer` does not normalise the channels of such an input.

    Neither is it a map of each of them in eval mode, nor are its statistics theirs: one that turns
    its input around, for one.

    >>> has_other_channels(nn.BatchNorm1d(2), (8, 2))
    False
    """
    return keeps_something_else(layer, shape) and behaviour_of(layer, shape=shape).affine is None


def why_frozen(model: nn.Module, layer: nn.Module) -> str | None:
    """Return why no mini-batch enters the running statistics of `layer`, a module of `model`.

    That is while the model trains; None where they are updated.

    >>> why_frozen(nn.Sequential(), nn.BatchNorm1d(2, momentum=0.0))
    'frozen: its momentum is 0'
    """
    why = why_same_in_both_modes(model, layer)
    if why is None and is_to_be_tried(layer):
        still = behaviour_of(layer).share == 0
        return "frozen: no mini-batch enters its running statistics" if still else None
    if why is None and getattr(layer, "momentum", None) == 0:
        why = "frozen: its momentum is 0"
    if why is None and not getattr(layer, "track_running_stats", True):
        why = "frozen: its track_running_stats is False"
    return why


def why_same_in_both_modes(model: nn.Module, layer: nn.Module) -> str | None:
    """Return why `layer` normalises by its running statistics while `model` trains, too.

    This is the narrower meaning of "frozen": with momentum 0 the statistics stay, but training
    normalises by those of the mini-batch, so the two modes differ (None).

    >>> why_same_in_both_modes(nn.Sequential(), nn.BatchNorm1d(2, momentum=0.0)) is None
    True
    """
    kind = type(layer).__name__
    frozen = isinstance(layer, FrozenBatchNorm)
    if is_to_be_tried(layer):
        by_batch = behaviour_of(layer).by_batch_in_training
        frozen = "frozen" in kind.lower() if by_batch is None else not by_batch
    if frozen:
        return f"frozen: it is a {kind}"
    if model.training and not layer.training:
        return "frozen: it is in eval mode inside a model in training mode"
    return None


def is_to_be_tried(layer: nn.Module) -> bool:
    """Return whether only a trial says what the layer computes: it is not torch's or bnkit's.

    >>> is_to_be_tried(nn.BatchNorm1d(2))
    False
    """
    return not (isinstance(layer, GuardedBatchNorm) or has_known_forward(layer))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DistributedDataParallel and torch.compile.

    It shares all parameters and buffers with what is around it.

    >>> layer = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside: nn.Module | None = model.module
        else:
            inside = inside_compiled(model)
        if inside is None:
            return model
        model = inside
