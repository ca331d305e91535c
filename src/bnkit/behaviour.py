"""What a batch norm computes, whatever its class: by its state where that says it, else by a trial.

`behaviour_of(layer)` is the one place that knows. Torch's classes and bnkit's are read off their
state. Any other class is tried on a copy, in both modes: is it an affine map of each channel in
eval mode, what follows that map, does a row depend on its companions, and which share of a
mini-batch's statistics enters the running ones? Names of classes and attributes decide nothing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.dataflow.recording import Precisions
from bnkit.dataflow.tensors import tensors_in
from bnkit.internals import AnyBatchNorm
from bnkit.kernels.activations import ACTIVATIONS
from bnkit.layers.affine import activation_module
from bnkit.layers.batch_norm import GuardedBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.observation import on_the_side, set_mode
from bnkit.roles import Role, role_of_module

OTHER_AXIS = "what it normalises is not axis 1 of its input, where channels are"
NO_STATISTICS = "it has no running statistics: even in eval mode it uses those of the mini-batch"
BY_BATCH = "even in eval mode it normalises by the statistics of the mini-batch"
_OWN_FORWARD = "its class has a forward of its own"


@dataclass(frozen=True, eq=False)
class Affine:
    """The map scale · (x − center) + offset of each channel; all are (C,), in float64."""

    scale: Tensor
    center: Tensor
    offset: Tensor

    @property
    def shift(self) -> Tensor:
        """What becomes of 0, (C,)."""
        return self.offset - self.scale * self.center

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return bool(torch.cat([self.scale, self.center, self.offset]).isfinite().all())

    def take(self, channels: Tensor, *, like: Tensor) -> "Affine":
        """Return the map of which feature i is channel `channels[i]` of this one; −1 is identity.

        It is on the device of `like`.

        >>> two = Affine(torch.tensor([2.0, 3.0]), torch.zeros(2), torch.tensor([0.5, 0.0]))
        >>> two.take(torch.tensor([0, -1]), like=two.scale).shift
        tensor([0.5000, 0.0000])
        """
        chosen, kept = channels.to(like.device), (channels >= 0).to(like.device)
        scale, center, offset = (
            t.to(like.device)[chosen] for t in (self.scale, self.center, self.offset)
        )
        scale = torch.where(kept, scale, 1.0)
        return Affine(scale, *(torch.where(kept, t, 0.0) for t in (center, offset)))

    def of(self, x: Tensor) -> Tensor:
        """Return the map of `x`, whose channels are axis 1.

        >>> Affine(*torch.tensor([[2.0], [1.0], [0.5]])).of(torch.tensor([[3.0]]))
        tensor([[4.5000]])
        """
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale, center, offset = (t.view(shape) for t in (self.scale, self.center, self.offset))
        return scale * (x - center) + offset


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What a batch norm computes.

    In eval mode that is `activation(affine(x))`: `affine` is None where the trial did not show one,
    and `why_not_affine` says why; `activation` is a module, None where nothing follows. The flags
    `by_batch_in_eval` and `by_batch_in_training` say whether what a row becomes depends on the
    other rows of its mini-batch. In training mode `share` of a mini-batch's statistics enters the
    running ones (torch's momentum; 0 where nothing enters). `keeps_moments` says whether these are
    a mean and a variance of each channel, axis 1, of its inputs. Each of the four is None where
    that is unknown. `is_plain` says whether training, too, is as torch's batch norm does it, with
    this share and followed by this activation; `eps` is the number in √(σ² + ε), where there is
    one.
    """

    affine: Affine | None = None
    activation: nn.Module | None = None
    share: float | None = None
    by_batch_in_eval: bool | None = None
    by_batch_in_training: bool | None = None
    keeps_moments: bool | None = None
    is_plain: bool = False
    eps: float | None = None
    why_not_affine: str | None = None

    @property
    def activation_name(self) -> str | None:
        """The name that bnkit's batch norms know the activation by, None for none or another."""
        return None if self.activation is None else name_of_activation(self.activation)


def behaviour_of(
    layer: nn.Module, values: Tensor | None = None, *, shape: tuple[int, ...] = ()
) -> Behaviour:
    """Return what `layer`, a normalisation of any class, computes.

    `values`, an input that it gets in a model, or the `shape` of one, serves a trial where its rank
    or dtype matters. The layer stays as it is. A class is tried once for each setting of its plain
    attributes.

    >>> class Clipped(nn.BatchNorm1d):  # as other libraries write a batch norm with an activation
    ...     def forward(self, x):
    ...         return super().forward(x).relu()
    >>> found = behaviour_of(Clipped(2, momentum=0.3))
    >>> found.affine.scale, found.activation, found.share, found.is_plain
    (tensor([1.0000, 1.0000], dtype=torch.float64), ReLU(), 0.3, True)
    """
    if has_known_forward(layer):
        return _by_state(layer)
    form = _form_of(layer, values, shape if values is None else tuple(values.shape))
    affine, why = form.affine, form.why
    if form.eps is not None:
        affine = _affine_by_state(layer, form.eps)
    if affine is not None and not affine.is_finite:
        why = "its statistics or parameters are not finite numbers, or its variance is negative"
    return Behaviour(
        affine if why is None else None,
        form.activation_of(layer),
        form.share,
        form.by_batch_in_eval,
        form.by_batch_in_training,
        form.keeps_moments,
        form.is_plain,
        form.eps,
        why,
    )


def affine_of(batch_norm: nn.Module) -> Affine:
    """Return the affine map that `batch_norm` is in eval mode, before its activation.

    The scale is γ/√(σ² + ε), the center μ and the offset β (Ioffe and Szegedy 2015, algorithm 2,
    line 11). Raises ValueError for one that is no such map.

    >>> affine_of(nn.BatchNorm1d(1, eps=3.0)).scale
    tensor([0.5000], dtype=torch.float64)
    """
    if has_known_forward(batch_norm) and getattr(batch_norm, "running_mean", None) is not None:
        return _affine_by_state(batch_norm, batch_norm.eps)  # type: ignore[arg-type]  # a float
    found = behaviour_of(batch_norm)
    if found.affine is None:
        raise ValueError(f"{type(batch_norm).__name__} is not affine: {found.why_not_affine}")
    return found.affine


def activation_of(batch_norm: nn.Module) -> nn.Module | None:
    """Return what follows the affine map of `batch_norm` inside it, a module; None for nothing.

    bnkit's layers have none: one with an activation is inside an `ActivatedNorm`.

    >>> class Clipped(nn.BatchNorm1d):
    ...     def forward(self, x):
    ...         return super().forward(x).relu()
    >>> activation_of(Clipped(3)), activation_of(nn.BatchNorm2d(3))
    (ReLU(), None)
    """
    return None if has_known_forward(batch_norm) else _form_of(batch_norm).activation_of(batch_norm)


def name_of_activation(activation: nn.Module) -> str | None:
    """Return the name by which bnkit's batch norms know `activation`, None if they do not.

    >>> name_of_activation(nn.Hardswish()), name_of_activation(nn.LeakyReLU(0.2))
    ('hardswish', None)
    """
    z = torch.linspace(-8, 8, 33, dtype=torch.float64)
    for name, known in ACTIVATIONS.items():
        if name is not None and type(activation_module(name)) is type(activation):
            with torch.no_grad():
                return name if torch.equal(activation(z.clone()), known.function(z)) else None
    return None


def has_known_forward(layer: nn.Module) -> bool:
    """Return whether the class of `layer` computes what torch's or bnkit's batch norms do.

    >>> has_known_forward(nn.BatchNorm2d(3)), has_known_forward(nn.LayerNorm(3))
    (True, False)
    """
    kind: Any = type(layer)
    if not isinstance(layer, AnyBatchNorm) or "forward" in vars(layer):
        return False
    if isinstance(layer, GuardedBatchNorm):
        in_eval = getattr(kind, "normalise_by_running_statistics", None)
        known = in_eval is GuardedBatchNorm.normalise_by_running_statistics
        known &= kind.activated in (GuardedBatchNorm.activated, FrozenBatchNorm.activated)
        return known and kind.forward is GuardedBatchNorm.forward
    return kind.forward in (AnyBatchNorm.forward, nn.SyncBatchNorm.forward)


# --- by the state


def _by_state(layer: Any) -> Behaviour:
    mean, variance = layer.running_mean, layer.running_var
    frozen = isinstance(layer, FrozenBatchNorm)
    by_batch = getattr(type(layer), "normalise_by_batch", None)
    found = Behaviour(
        activation=activation_of(layer),
        share=0.0 if frozen else _share(layer),
        by_batch_in_eval=mean is None and variance is None,
        by_batch_in_training=not frozen,
        keeps_moments=None if mean is None or variance is None else True,
        is_plain=by_batch in (None, GuardedBatchNorm.normalise_by_batch),
        eps=layer.eps,
    )
    if mean is None or variance is None:
        return replace(found, why_not_affine=NO_STATISTICS)
    affine = _affine_by_state(layer, layer.eps)
    if affine.is_finite:
        return replace(found, affine=affine)
    why = "its statistics or parameters are not finite numbers, or its variance is negative"
    return replace(found, why_not_affine=why)


def _share(layer: Any) -> float:
    if not layer.track_running_stats or layer.running_mean is None:
        return 0.0
    if layer.momentum is not None:
        return float(layer.momentum)
    count = layer.num_batches_tracked
    return 1.0 / (float(count) + 1.0) if count is not None else 0.0


def _affine_by_state(layer: Any, eps: float) -> Affine:
    center, variance = _wide(layer.running_mean).flatten(), _wide(layer.running_var).flatten()
    scale = (variance + eps).rsqrt()
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is not None:
        scale = scale * _wide(weight).flatten()
    offset = torch.zeros_like(center) if bias is None else _wide(bias).flatten()
    return Affine(scale, center, offset)


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(dtype_of_sums(values))


# --- by a trial


@dataclass(frozen=True, eq=False)
class _Form:
    """How a class computes: what a trial shows.

    `eps` is that of the formula of its state, `affine` the map where only measuring shows one.
    """

    eps: float | None = None
    affine: Affine | None = None
    child: str | None = None  # the path of the activation inside it
    function: str | None = None  # the name of an activation that its forward computes
    share: float | None = None
    by_batch_in_eval: bool | None = None
    by_batch_in_training: bool | None = None
    keeps_moments: bool | None = None
    is_plain: bool = False
    why: str | None = None

    def activation_of(self, layer: nn.Module) -> nn.Module | None:
        if self.child is not None:
            return layer.get_submodule(self.child)
        return None if self.function is None else activation_module(self.function)


_PLAIN = (bool, int, float, str, type(None))
_STATE = ("weight", "bias", "running_mean", "running_var")
_USUAL = frozenset([*_STATE, "num_batches_tracked"])
_forms: "WeakKeyDictionary[type[nn.Module], dict[Any, _Form]]" = WeakKeyDictionary()


def _form_of(layer: nn.Module, values: Tensor | None = None, shape: tuple[int, ...] = ()) -> _Form:
    held = {
        name: t
        for tensors in (layer.named_parameters, layer.named_buffers)
        for name, t in tensors()
    }
    plain = tuple(
        (path, type(part), name, value)
        for path, part in layer.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, _PLAIN) and name != "training"
    )
    rank = len(shape), values is not None and values.is_quantized
    key = plain, tuple((name, t.shape) for name, t in held.items()), rank
    known = _forms.setdefault(type(layer), {})
    if key not in known:
        form = _try(layer, values, shape)
        counts = "num_batches_tracked" in held and getattr(layer, "momentum", 0) is None
        if form.affine is not None or counts or held.keys() - _USUAL or "forward" in vars(layer):
            return form  # it depends on more than the key holds
        known[key] = form
    return known[key]


def _try(layer: nn.Module, values: Tensor | None, shape: tuple[int, ...]) -> _Form:
    """Return what a trial of a copy of `layer` shows."""
    why = ""
    for widen in (True, False):
        try:
            trial = _Trial(duplicate(layer), widen=widen)
        except (TypeError, ValueError) as error:
            return _Form(why=f"it cannot be tried: {error}")
        for x in trial.probes(values, shape):
            try:
                return trial.form(x)
            except Exception as error:  # noqa: BLE001  whatever a class of another library raises
                said = f"{type(error).__name__}: {error}".partition("\n")[0][:100]
                why = why or f"{_OWN_FORWARD}, which fails in a trial ({said})"
    return _Form(why=why or f"{_OWN_FORWARD}, and nothing says how many channels it has")


class _Trial:
    """A copy of a layer that is run on probes, always from the same state."""

    def __init__(self, layer: nn.Module, *, widen: bool) -> None:
        self.layer = layer.double() if widen else layer
        self.widened = widen
        self.own = {name: t.detach().clone() for name, t in self._held().items()}
        self.channels = self._channels()
        self.state = dict(self.own)  # from which each run begins
        self.precisions: set[torch.dtype] = set()

    def _held(self) -> dict[str, Tensor]:
        return {**dict(self.layer.named_parameters()), **dict(self.layer.named_buffers())}

    def _channels(self) -> int:
        """Return how many channels it has: as many as its vectors have values, 0 if unsure."""
        sizes = [t.numel() for t in self.own.values() if t.is_floating_point() and t.dim()]
        return max(set(sizes), key=sizes.count, default=0)

    def probes(self, values: Tensor | None, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield inputs of any rank in which it may be run, in the dtype of its state."""
        floats = [t for t in self.own.values() if t.is_floating_point()]
        like = floats[0] if floats else torch.empty(0)
        if values is None or not values.is_quantized:
            channels = self.channels or (shape[1] if len(shape) > 1 else 0)
            for rank in (len(shape),) if shape else (4, 2, 3, 5):
                if channels and rank > 1:
                    yield _probe((6, channels, *[2] * (rank - 2))).to(like)
        if values is None and len(shape) > 1:
            yield _probe((6, *shape[1:])).to(like)
        if values is not None and len(values) > 1:
            yield values.to(like) if values.is_floating_point() else values
        if self.channels and not self.widened:  # of classes for quantised tensors
            maps = _probe((6, self.channels, 2, 2)).float()
            yield torch.quantize_per_tensor(maps, 0.05, 64, torch.quint8)

    def form(self, x: Tensor) -> _Form:
        """Return what runs on `x` in both modes show."""
        if not x.is_floating_point():  # quantised: no more than who depends on whom
            return _Form(
                by_batch_in_eval=self._is_by_batch(x, training=False),
                by_batch_in_training=self._is_by_batch(x, training=True),
                why=f"{_OWN_FORWARD}, for inputs of {x.dtype}",
            )
        self._take_usual_state()
        in_eval = self._is_by_batch(x, training=False)
        mean = self.own.get("running_mean")
        if mean is not None and mean.numel() != x.shape[1]:
            return _Form(by_batch_in_eval=in_eval, keeps_moments=False, why=OTHER_AXIS)
        found = _Form(by_batch_in_eval=in_eval, why=BY_BATCH) if in_eval else self._eval_mode(x)
        return replace(found, by_batch_in_eval=in_eval, **self._training_mode(x, found))

    # --- eval mode

    def _eval_mode(self, x: Tensor) -> _Form:
        made = self._run(x)
        if not isinstance(made, Tensor) or made.shape != x.shape:
            return _Form(why=f"{_OWN_FORWARD}, which returns more than its input normalised")
        eps = self._eps(x)
        if eps is not None:
            affine = _affine_by_state(self.layer, eps)
            ending = self._ending(x, made, affine)
            if ending is not None:
                return _Form(eps=eps, child=ending[0], function=ending[1])
        self.state = dict(self.own)
        return self._measured(x)

    def _take_usual_state(self) -> None:
        """Begin with a state in which each channel, and each number of it, shows."""
        vectors = {n: t for n, t in self.own.items() if n in _STATE and t.is_floating_point()}
        ends = {"weight": (0.5, 1.5), "bias": (-1.0, 1.0)}
        ends |= {"running_mean": (-2.0, 2.0), "running_var": (0.5, 2.5)}
        for name, tensor in vectors.items():
            values = torch.linspace(*ends[name], tensor.numel()).to(tensor)
            self.state[name] = values.view(tensor.shape)

    def _eps(self, x: Tensor) -> float | None:
        """Return the ε with which the formula of the state may hold: its own, or a solution."""
        held = self._held()
        if not {"running_mean", "running_var"} <= held.keys():
            return None
        own = getattr(self.layer, "eps", None)
        if isinstance(own, float | int) and not isinstance(own, bool):
            return float(own)
        # With γ/√(σ² + ε) for the slope s of one channel, ε = (γ/s)² − σ². A slope is that of
        # the map where it is steepest, in case an activation follows.
        slope = self._slopes(x).abs().amax(0)
        weight = held.get("weight", torch.ones_like(slope)).detach().flatten().abs()
        found = ((weight / slope).square() - held["running_var"].flatten()).median().item()
        nearest = min((1e-5, 1e-3, 1e-6, 1e-4, 1e-12, 0.0), key=lambda eps: abs(eps - found))
        return nearest if abs(nearest - found) < 1e-2 * nearest + 1e-9 else max(found, 0.0)

    def _slopes(self, x: Tensor) -> Tensor:
        """Return how steep each channel is at several places, (places, C).

        Far out, where most activations are straight; for those that saturate, near zero.
        """
        far, near = torch.tensor([-2000.0, -1000.0, 1000.0, 2000.0]), torch.linspace(-8, 8, 161)
        for places in (far, near):
            at = places.to(x)
            made = [self._run(torch.full_like(x, place.item())) for place in at]
            means = [y.movedim(1, 0).flatten(1).mean(1) for y in made]
            slopes = torch.stack(means).diff(dim=0) / at.diff()[:, None]
            if slopes.any():
                break
        return slopes

    def _ending(
        self, x: Tensor, made: Tensor, affine: Affine
    ) -> tuple[str | None, str | None] | None:
        """Return the child or the function that makes `made` of the map; None if none does."""
        y = affine.of(x.to(affine.scale))
        bound = self._bound(affine, x, y)
        if _is_near(made, y, bound):
            return None, None
        for path, child in self.layer.named_modules():
            if path and role_of_module(child) is Role.ACTIVATION:
                after = self._apart(child, y.to(x))
                if after is not None and _is_near(made, after, bound):
                    return path, None
        for name, activation in ACTIVATIONS.items():
            if _is_near(made, activation.function(y), bound):
                return None, name
        return None

    def _apart(self, child: nn.Module, y: Tensor) -> Tensor | None:
        try:
            with on_the_side(child):
                made = child(y.clone())
        except Exception:  # noqa: BLE001  a child that is not given what the layer gives it
            return None
        return made if isinstance(made, Tensor) else None

    def _measured(self, x: Tensor) -> _Form:
        """Return the form with the map that is measured, whatever the state is called."""
        children = [
            path
            for path, child in self.layer.named_modules()
            if path and role_of_module(child) is Role.ACTIVATION
        ]
        for path in (None, *children):
            with _without(self.layer, path):
                affine = self._measure(x)
                made = self._run(x)
            y = affine.of(x.to(affine.scale))
            bound = self._bound(affine, x, y)
            if not affine.is_finite or not _is_near(made, y, bound):
                continue
            if path is None:
                return _Form(affine=affine)
            after = self._apart(self.layer.get_submodule(path), y.to(x))
            if after is not None and _is_near(self._run(x), after, bound):
                return _Form(affine=affine, child=path)
        return _Form(
            why=f"{_OWN_FORWARD}, which a trial does not show to be an affine map of each channel, "
            f"alone or with an activation after it"
        )

    def _measure(self, x: Tensor) -> Affine:
        at_zero, at_one = (
            self._run(torch.full_like(x, place)).movedim(1, 0).flatten(1)[:, 0].to(torch.float64)
            for place in (0.0, 1.0)
        )
        scale = at_one - at_zero
        # Where it passes through 0: so the digits of a large mean are kept.
        root = torch.where(scale != 0, -at_zero / scale, 0.0)
        return Affine(scale, root, torch.where(scale != 0, 0.0, at_zero))

    def _bound(self, affine: Affine, x: Tensor, y: Tensor) -> float:
        precision = max(torch.finfo(dtype).eps for dtype in {*self.precisions, x.dtype})
        scaled = affine.scale.view(1, -1, *[1] * (x.dim() - 2)) * x
        return float(8 * precision**0.75 * (1 + scaled.abs() + y.abs()).max())

    # --- training mode

    def _training_mode(self, x: Tensor, found: _Form) -> dict[str, Any]:
        try:
            by_batch = self._is_by_batch(x, training=True)
            made = self._run(x, training=True)
        except Exception:  # noqa: BLE001  whatever it raises
            return {}
        moved = {
            name: t.detach()
            for name, t in self._held().items()
            if t.is_floating_point() and not torch.equal(t, self.state[name])
        }
        followed = self._followed(x, moved)
        shares = dict(followed.values())
        share = shares.get("mean", next(iter(shares.values()), None if moved else 0.0))
        (of_mean, _), (of_variance, other) = (
            followed.get(name, ("", 0.0)) for name in ("running_mean", "running_var")
        )
        shown: dict[str, Any] = {"by_batch_in_training": by_batch, "share": share}
        if {"running_mean", "running_var"} & moved.keys():
            variances = "variance", "biased variance"
            shown["keeps_moments"] = of_mean == "mean" and of_variance in variances
        same = share is not None and abs(other - share) < 1e-3 * abs(share)
        as_torch = not moved or (of_mean == "mean" and of_variance == "variance" and same)
        if share is None or found.eps is None or not as_torch:
            return shown
        moments = Moments.of(x)
        if by_batch:
            variance = moments.variance + found.eps
            weight, bias = (self.state.get(name) for name in ("weight", "bias"))
            scale = variance.rsqrt() if weight is None else variance.rsqrt() * weight.flatten()
            offset = torch.zeros_like(scale) if bias is None else bias.flatten().to(scale)
            affine = Affine(scale, moments.mean, offset)
        else:
            affine = _affine_by_state(self._restored(), found.eps)
        ending = isinstance(made, Tensor) and self._ending(x, made, affine)
        return {**shown, "is_plain": ending == (found.child, found.function)}

    def _followed(self, x: Tensor, moved: dict[str, Tensor]) -> dict[str, tuple[str, float]]:
        """Return which statistic of the mini-batch each name that moved follows, by which share."""
        moments = Moments.of(x)
        followed: dict[str, tuple[str, float]] = {}
        for name, after in moved.items():
            before = self.state[name].flatten().to(moments.mean)
            if before.shape != moments.mean.shape:
                continue
            for what, drawn_to in (
                ("mean", moments.mean),
                ("variance", moments.unbiased_variance),
                ("biased variance", moments.variance),
            ):
                shares = (after.flatten().to(before) - before) / (drawn_to - before)
                share = float(shares.median())
                if shares.isfinite().all() and bool(
                    (shares - share).abs().max() <= 1e-3 * abs(share)
                ):
                    followed[name] = what, float(f"{share:.6g}")
                    break
        return followed

    # --- one run

    def _is_by_batch(self, x: Tensor, *, training: bool) -> bool:
        """Return whether what the first rows become depends on the others."""
        some = max(len(x) // 2, 1)
        whole = self._first(self._run(x, training=training))[:some]
        if x.is_floating_point():
            other = torch.cat([x[:some], 2 * x[some:] + 1])
            return not _is_equal(whole, self._first(self._run(other, training=training))[:some])
        return not _is_equal(whole, self._first(self._run(x[:some], training=training)))

    def _first(self, made: Any) -> Tensor:
        first = tensors_in(made)[0]
        return first.dequantize() if first.is_quantized else first

    def _restored(self) -> nn.Module:
        with torch.no_grad():
            for name, tensor in self._held().items():
                tensor.copy_(self.state[name])
        return self.layer

    def _run(self, x: Tensor, *, training: bool = False) -> Any:
        with torch.inference_mode(mode=False):
            set_mode(self._restored(), training=training)
            with on_the_side(self.layer, mode=lambda _: nullcontext()), Precisions() as seen:
                made = self.layer(x.clone())
        self.precisions |= {dtype for dtype in seen.seen if dtype.is_floating_point}
        return made


def _probe(shape: tuple[int, ...]) -> Tensor:
    """Return a mini-batch of this shape, with values up to 3 and some up to 100, in float64."""
    last = (*shape[:1], *shape[2:], *shape[1:2])  # numbered with the channels last
    numbers = torch.arange(1, 1 + math.prod(last), dtype=torch.float64)
    values = torch.sin(1.7 * numbers) * torch.where(numbers % 5 == 0, 100.0, 3.0)
    return values.view(last).movedim(-1, min(1, len(last) - 1)).contiguous()


@contextmanager
def _without(layer: nn.Module, path: str | None) -> Iterator[None]:
    """Put an identity in place of a child of `layer` while the block runs; None for no child."""
    if path is None:
        yield
        return
    child = layer.get_submodule(path)
    layer.set_submodule(path, nn.Identity())
    try:
        yield
    finally:
        layer.set_submodule(path, child)


def _is_near(a: Tensor, b: Tensor, bound: float) -> bool:
    return a.shape == b.shape and bool(((a.to(b) - b).abs() <= bound).all())


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
