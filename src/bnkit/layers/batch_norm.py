"""`BatchNorm1d/2d/3d`: drop-in for torch's, with an activation, a residual and a guard."""

import inspect
import math
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn

from bnkit.functional import (
    batch_norm,
    is_recomputing,
    train_in_one_call,
    update_running_statistics,
)
from bnkit.internals import AnyBatchNorm, check_rank
from bnkit.kernels.activations import find_activation
from bnkit.kernels.choice import is_traced, is_transformed
from bnkit.layers.activated import Activatable, OnePass, enclose
from bnkit.layers.leaves import is_proxy

_Pair = tuple[Tensor | None, Tensor | None]
Constructor = TypeVar("Constructor", bound=Callable[..., None])


class KeywordOptions(TypedDict, total=False):
    """The options that every batch norm of bnkit takes by keyword; `GuardedBatchNorm` has them.

    `activation` follows, by its name; `guard` keeps statistics that are not finite out.
    """

    device: torch.device | str | int | None
    dtype: torch.dtype | None
    bias: bool
    activation: str | None
    guard: bool


class StatisticsOptions(KeywordOptions, total=False):
    """What every kind of batch norm takes of torch's arguments, but for `affine`."""

    eps: float
    momentum: float | None
    track_running_stats: bool


class BatchNormOptions(StatisticsOptions, total=False):
    """What every kind of batch norm takes beside its own options: torch's, by position or keyword.

    In torch's order `eps`, `momentum`, `affine` and `track_running_stats` follow `num_features`.
    """

    affine: bool


class GuardedBatchNorm(OnePass, AnyBatchNorm, metaclass=Activatable):
    """What all layers share: torch's arguments and state, an activation, a residual, the guard.

    The three layers of this file differ in the shapes that torch's classes accept. Another kind of
    batch norm derives from one of them and says in `normalise_by_batch` how it normalises while it
    trains; statistics of its own go to `track`. With an `activation` the class makes an
    `ActivatedNorm`, which contains the layer. `guard=True` keeps a mini-batch whose statistics are
    not finite out of the running statistics and counts it in `non_finite_batches`, a tensor that
    is neither a buffer nor in the state dict; `guard=False` is torch's behaviour.
    """

    non_finite_batches: Tensor
    own_options: ClassVar[tuple[str, ...]] = ()  # of this kind, which its line shows

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        guard: bool = True,
    ) -> None:
        find_activation(activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if affine and not bias:
            self.register_parameter("bias", None)  # torch 2.9 has no `bias=`
        self._activation = activation  # until the class takes it out again
        self.guard = guard
        self.begin_count()

    @property
    def activation(self) -> str | None:
        """None: a layer that is given one becomes an `ActivatedNorm`, which contains the layer."""
        return None

    @activation.setter
    def activation(self, activation: str | None) -> None:
        if activation is not None:
            enclose(self, activation)

    def __init_subclass__(cls, **options: Any) -> None:
        """Note kinds of others that know of no activation: what follows them is computed after."""
        super().__init_subclass__(**options)
        own = vars(cls).get("normalise_by_batch")
        if own is not None and "activation" not in inspect.signature(own).parameters:
            cls.one_pass = False

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return batch_norm(input) + residual, in the shape and dtype of `input`."""
        if is_proxy(input):
            return self.as_leaf(input, residual, None)
        return self.activated(input, residual, None)

    def activated(self, input: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """Return activation(batch_norm(input) + residual), in the shape and dtype of `input`."""
        check_rank(self, input)
        if (self.running_mean is None) != (self.running_var is None):
            raise (ValueError if self.training else RuntimeError)(  # torch's types
                f"of `running_mean` and `running_var` of this {type(self).__name__} one is None: a "
                f"layer has both, or neither and then normalises by the mini-batch in both modes"
            )
        if self.training or self.running_mean is None:
            ending = (residual,) if activation is None else (residual, activation)
            return self.normalise_by_batch(input, *ending)
        return self.normalise_by_running_statistics(input, residual, activation)

    def normalise_by_batch(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise by the statistics of `input`, and track them where the layer trains."""
        return self._normalise_and_track(input, residual, activation, (self.weight, self.bias))

    def _normalise_and_track(
        self, input: Tensor, residual: Tensor | None, activation: str | None, affine: _Pair
    ) -> Tensor:
        tracks = self.tracks
        share = self._share_of_next_batch() if tracks else 0.0
        if tracks:
            counts = self.num_batches_tracked, self.non_finite_batches
            done = train_in_one_call(
                input,
                (self.running_mean, self.running_var, *counts),
                affine,
                residual,
                momentum=share,
                eps=self.eps,
                activation=activation,
                guard=self.guard,
            )
            if done is not None:
                return done
        mean, variance = self._candidates() if tracks else (None, None)
        y = self._normalised(input, residual, activation, affine, (mean, variance), share)
        if mean is not None and variance is not None:
            self._accept(mean, variance)
        return y

    def normalise_by_running_statistics(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise by the running statistics, as every kind does in eval mode."""
        statistics = self.running_mean, self.running_var
        return self._normalised(input, residual, activation, (self.weight, self.bias), statistics)

    def _normalised(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        affine: _Pair,
        statistics: _Pair,
        share: float | None = None,
    ) -> Tensor:
        """Normalise by the mini-batch, which gets this share in `statistics`; by them without."""
        return batch_norm(
            input,
            *statistics,
            *affine,
            share is not None,
            share or 0.0,
            self.eps,
            activation=activation,
            residual=residual,
        )

    def reset_parameters(self) -> None:
        """Begin anew: weight and running variance 1, bias and running mean 0, nothing counted."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:  # torch 2.9 takes it for there
            nn.init.zeros_(self.bias)

    @property
    def tracks(self) -> bool:
        """Whether the layer has running statistics and a mini-batch would enter them now."""
        return self.training and self.track_running_stats and self.running_mean is not None

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a mini-batch's mean and unbiased variance, (C,).

        Does nothing where the layer does not track and where activation checkpointing runs the
        forward for the second time; only counts where they are not finite.
        """
        if self.tracks and not is_recomputing():
            candidates = self._candidates()
            update_running_statistics(*candidates, mean, variance, self._share_of_next_batch())
            self._accept(*candidates)

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Return what a mini-batch may change in place: copies, where a guard looks at them."""
        running = self._running_statistics()
        return (running[0].clone(), running[1].clone()) if self.guard else running

    def _accept(self, mean: Tensor, variance: Tensor) -> None:
        """Take candidates as running statistics if they are finite, and count the mini-batch."""
        if is_recomputing():
            return
        if not self.guard:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            return
        running_mean, running_var = self._running_statistics()
        finite = _are_finite(mean, variance)
        if finite is not True:  # a tensor, so that nothing waits for a GPU and it compiles
            mean = torch.where(finite, mean, running_mean)
            variance = torch.where(finite, variance, running_var)
            self._count_non_finite(~finite)
        running_mean.copy_(mean)
        running_var.copy_(variance)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(finite)

    def _count_non_finite(self, left_out: Tensor) -> None:
        """Add 1 where the mini-batch was left out; inside torch.func nothing can be counted."""
        if not is_transformed() and not torch.compiler.is_exporting():
            self.non_finite_batches.add_(left_out)

    def _apply(self, *args: Any, **options: Any) -> "GuardedBatchNorm":
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        self._count_beside_statistics()
        return self

    def _load_from_state_dict(self, *details: Any) -> None:
        super()._load_from_state_dict(*details)
        self._count_beside_statistics()  # with assign=True the statistics may be on another device

    def begin_count(self) -> None:
        """Set `non_finite_batches` to 0, on the device of the statistics."""
        self.non_finite_batches = torch.zeros((), dtype=torch.long, device="cpu")
        self._count_beside_statistics()

    def _count_beside_statistics(self) -> None:
        """Keep the count on the device of the statistics, but where these have no memory yet."""
        mean = self.running_mean
        if mean is not None and not mean.is_meta:
            self.non_finite_batches = self.non_finite_batches.to(mean.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle; of bnkit 0.1 it has the count and the activation in it."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        activation = vars(self).pop("activation", None)
        if "non_finite_batches" in dict(self.named_buffers()):
            count = self.non_finite_batches
            del self.non_finite_batches
            self.non_finite_batches = count
        if activation is not None:
            enclose(self, activation)

    def _running_statistics(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def _share_of_next_batch(self) -> float:
        """Return the share that the next mini-batch gets in the running statistics."""
        if self.momentum is None:  # the average over all batches so far
            if self.num_batches_tracked is None:  # without a count they stay, as in torch
                return 0.0
            return 1.0 / (float(self.num_batches_tracked) + 1.0)
        return self.momentum

    def extra_repr(self) -> str:
        """Return torch's line, and what the layer has beyond torch's."""
        own = [f", {name}={getattr(self, name)!r}" for name in self.own_options]
        guard = "" if self.guard else ", guard=False"
        return f"{super().extra_repr()}{guard}{''.join(own)}"  # type: ignore[no-untyped-call]


def _are_finite(mean: Tensor, variance: Tensor) -> Tensor | Literal[True]:
    """Return whether all values are finite: True, or a tensor that says it."""
    # One operation for what is nearly always so, on the CPU, where reading its result is free.
    plain = mean.is_cpu and not is_traced(mean) and not is_transformed()
    if plain and math.isfinite(torch.dot(mean, variance)):
        return True
    return torch.isfinite(mean).logical_and(torch.isfinite(variance)).all()


def refuse_empty(shape: torch.Size) -> None:
    """Raise ValueError for an input of this shape where it has no values to take statistics of."""
    if not shape.numel():
        raise ValueError(
            f"`input` of shape {tuple(shape)} is empty, and training takes statistics from it: "
            f"leave empty mini-batches out, or call .eval() on the layer"
        )


def showing_options(*constructors: Callable[..., None]) -> Callable[[Constructor], Constructor]:
    """Give a constructor with `**options` the signature in which each of these stands by name.

    For `help`, `inspect.signature` and editors. The names are those of the TypedDict behind
    `**options`; order and defaults are those of the `constructors`, by default that of
    `GuardedBatchNorm`. The options of the first one go by position where `*arguments` are taken.

    >>> from typing import Unpack
    >>> @showing_options()
    ... def init(self, num_features: int, *, own: int = 3, **options: Unpack[KeywordOptions]):
    ...     pass
    >>> list(inspect.signature(init).parameters)
    ['self', 'num_features', 'own', 'device', 'dtype', 'bias', 'activation', 'guard']
    """

    def show(init: Constructor) -> Constructor:
        own = inspect.signature(init).parameters.values()
        (options,) = get_args(get_type_hints(init)["options"])
        types, shown = get_type_hints(options), {p.name: p for p in own if p.kind not in _REST}
        by_position = Parameter.VAR_POSITIONAL in {p.kind for p in own}
        for constructor in constructors or (GuardedBatchNorm.__init__,):
            for name, parameter in inspect.signature(constructor).parameters.items():
                if name in types and name not in shown:
                    kind = parameter.kind if by_position else Parameter.KEYWORD_ONLY
                    shown[name] = parameter.replace(kind=kind, annotation=types[name])
            by_position = False
        # Sorting is stable: what goes by position first, then the layer's own, then what is shared.
        signature = Signature(sorted(shown.values(), key=lambda p: p.kind), return_annotation=None)
        init.__signature__ = signature  # type: ignore[attr-defined]
        return init

    return show


_REST = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}


class BatchNorm1d(GuardedBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with `activation=` and a residual: inputs (N, C) or (N, C, L).

    Same arguments, state and results as torch's, so checkpoints load both ways. `activation` is
    one of those of `bnkit.functional.batch_norm`, which says what is computed and which errors
    are raised; forward takes an optional `residual`, added before the activation. A mini-batch
    whose statistics are not finite is kept out of the running statistics and counted in
    `non_finite_batches`; `guard=False` lets it in, as torch does.

    Where nothing is fused it is an instance of torch's class. With an activation it contains one
    (`ActivatedNorm`): else tools that replace torch's layers would drop the activation.

    >>> layer = BatchNorm1d(3, activation="relu")
    >>> isinstance(BatchNorm1d(3), nn.BatchNorm1d), isinstance(layer, nn.BatchNorm1d)
    (True, False)
    >>> isinstance(layer, BatchNorm1d), layer(torch.randn(8, 3)).min().item()
    (True, 0.0)
    """


class BatchNorm2d(GuardedBatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with `activation=` and a residual: inputs (N, C, H, W).

    >>> layer = BatchNorm2d(3, activation="relu")
    >>> x = torch.randn(8, 3, 5, 5)
    >>> expected = torch.relu(torch.nn.BatchNorm2d(3)(x) + x)
    >>> torch.allclose(layer(x, residual=x), expected, atol=1e-6)
    True
    """


class BatchNorm3d(GuardedBatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d with `activation=` and a residual: inputs (N, C, D, H, W).

    >>> BatchNorm3d(3, activation="silu")
    BatchNorm3d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, \
activation='silu')
    """
