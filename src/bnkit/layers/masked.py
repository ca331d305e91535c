"""`MaskedBatchNorm1d/2d/3d`: padding stays out of the statistics."""

from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from bnkit.functional import check_residual, is_recomputing
from bnkit.internals import assume, check_rank
from bnkit.layers.batch_norm import BatchNormOptions, GuardedBatchNorm, showing_options
from bnkit.layers.leaves import is_proxy
from bnkit.layers.masks import check_mask, current_mask, fit


class MaskedBatchNorm(GuardedBatchNorm):
    """What the masked layers share: who gives the mask, and what becomes of the padding."""

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        default: Literal["all"] | None = None,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        if default not in (None, "all"):
            raise ValueError(
                f'`default` is {default!r}: choose "all" to treat every value as real where no '
                f"mask is given, or None to raise an error there"
            )
        super().__init__(num_features, *arguments, **options)
        self.default = default
        self._had_mask_of_block = False

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return batch_norm(input) + residual where values are real, 0 elsewhere.

        `mask` has the shape of `input` without its channel axis: (N, L), (N, H, W), (N, D, H, W),
        or (N,) for rows. Without it that of the block `with bnkit.mask(...)` holds.
        """
        if is_proxy(input):
            return self.as_leaf(input, residual, mask)
        return self.activated(input, residual, None, mask=mask)

    def activated(
        self,
        input: Tensor,
        residual: Tensor | None,
        activation: str | None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return activation(batch_norm(input) + residual) where values are real, 0 elsewhere."""
        check_rank(self, input)
        real = self._mask_of(input, mask)
        takes_statistics = self.training or self.running_mean is None
        if real is None:
            if takes_statistics:
                self._check_default()
            return super().activated(input, residual, activation)
        if residual is not None:
            check_residual(input, residual)
        if takes_statistics:
            return self._normalise_real_values(input, residual, activation, real)
        return self._hide_padding(input, residual, activation, real)

    def activate(self, y: Tensor, activation: str | None, *, mask: Tensor | None = None) -> Tensor:
        """Return activation(y) where values are real, 0 elsewhere."""
        activated, real = super().activate(y, activation), self._mask_of(y, mask)
        return activated if real is None else torch.where(real[:, None], activated, 0)

    def _mask_of(self, input: Tensor, mask: Tensor | None) -> Tensor | None:
        return self._mask_of_block(input) if mask is None else self._mask_as_given(input, mask)

    def _mask_as_given(self, input: Tensor, mask: Tensor) -> Tensor:
        check_mask(mask)
        positions = _positions(input)
        if mask.shape != positions:
            raise ValueError(
                f"`mask` has shape {tuple(mask.shape)} and `input` {tuple(input.shape)}: pass one "
                f"value for each position, {tuple(positions)}"
            )
        return mask.to(input.device)

    def _mask_of_block(self, input: Tensor) -> Tensor | None:
        mask = current_mask()
        if not is_recomputing():
            self._had_mask_of_block = mask is not None
        elif mask is None and self._had_mask_of_block:
            raise ValueError(
                f"{self._called} runs again inside backward(), as activation checkpointing does, "
                f"outside the block `with mask(...)` of its first run: give "
                f"`mask` to the checkpointed function as an argument, and open the block there"
            )
        return None if mask is None else self._fit(mask, input)

    def _fit(self, mask: Tensor, input: Tensor) -> Tensor:
        real = fit(mask.to(input.device), _positions(input))
        if real is None:
            raise ValueError(
                f"the mask of shape {tuple(mask.shape)} does not fit {self._called}, whose input "
                f"has shape {tuple(input.shape)}: masks are resized to other lengths, but not to "
                f"other batch sizes or numbers of axes; give this layer `mask` of shape "
                f"{tuple(_positions(input))} as an argument"
            )
        return real

    def _check_default(self) -> None:
        if self.default is None:
            raise ValueError(
                f"{self._called} got no mask, so padding would enter its statistics: run the model "
                f"in a block `with bnkit.mask(real):`, give the layer `mask`, or make it with "
                f'default="all" if every value is real'
            )

    def _normalise_real_values(
        self, input: Tensor, residual: Tensor | None, activation: str | None, real: Tensor
    ) -> Tensor:
        where = real.nonzero(as_tuple=True)
        if not self._has_padding(len(where[0]), real):
            return self.normalise_by_batch(input, residual, activation)
        rows = None if residual is None else _channels_last(residual)[where]
        y = torch.zeros_like(input)
        values = _channels_last(input)[where]
        _channels_last(y)[where] = self.normalise_by_batch(values, rows, activation)
        return y

    def _has_padding(self, number: int, real: Tensor) -> bool:
        if torch.compiler.is_compiling():  # the number is known when the graph runs
            assume(number >= 2)
            return True
        if number < 2:
            raise ValueError(
                f"the mask, of shape {tuple(real.shape)} at {self._called}, marks {number} real "
                f"values, and a variance takes 2: is True real and False padding? If so, leave "
                f"mini-batches without real values out"
            )
        return number < real.numel()

    def _hide_padding(
        self, input: Tensor, residual: Tensor | None, activation: str | None, real: Tensor
    ) -> Tensor:
        beside = real[:, None]  # (N, 1, ...)
        # What padding holds, NaN for one, would else enter the gradient of the weight, as 0 · NaN.
        values = torch.where(beside, input, 0)
        residual = None if residual is None else torch.where(beside, residual, 0)
        y = self.normalise_by_running_statistics(values, residual, activation)
        return torch.where(beside, y, 0)

    @property
    def _called(self) -> str:
        return f"{type(self).__name__}({self.num_features})"

    def extra_repr(self) -> str:
        """Return the line of the other layers, and the default if there is one."""
        default = "" if self.default is None else f", default={self.default!r}"
        return f"{super().extra_repr()}{default}"


def _positions(input: Tensor) -> torch.Size:
    return torch.Size((input.shape[0], *input.shape[2:]))


def _channels_last(values: Tensor) -> Tensor:
    return values.movedim(1, -1)  # a view, (N, ..., C)


class MaskedBatchNorm1d(MaskedBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d whose statistics leave padding out: inputs (N, C, L) or (N, C).

    In training the real values alone, whatever the lengths of their sequences, are the mini-batch:
    outputs, gradients and running statistics are those of torch's layer on the unpadded sequences,
    laid end to end as rows (M, C). At padding the output is 0, after the activation too, in
    training and in eval mode; its gradient to `input` and `residual` is 0, and NaN there does no
    harm. The mask is bool with True for real values, given to forward, (N, L) or (N,), or to the
    whole model by `with bnkit.mask(real):`.

    Without a mask training raises ValueError, unless default="all" takes every value for real;
    eval mode needs none. A mask that fits no shape, or in training marks fewer than 2 real values,
    raises ValueError, one of another dtype TypeError. Further arguments are those of
    `bnkit.BatchNorm1d`.

    torch.compile(fullgraph=True) takes both modes, with the mask as an argument (one of too few
    real values is a RuntimeError there) or without; a block is not part of a graph, so models that
    run in one need fullgraph=False. Under activation checkpointing call the model in a block inside
    of the checkpointed function.

    >>> layer = MaskedBatchNorm1d(1)
    >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, 99.0]]])
    >>> real = torch.tensor([[True, True], [True, False]])
    >>> layer(x, mask=real)[1, 0].detach()
    tensor([1.2247, 0.0000])
    >>> layer.running_mean  # 0.1 of the mean 3
    tensor([0.3000])
    """


class MaskedBatchNorm2d(MaskedBatchNorm, nn.BatchNorm2d):
    """`MaskedBatchNorm1d` for inputs (N, C, H, W) and masks (N, H, W).

    >>> x, real = torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    >>> real[0, :, 2:] = False  # the first image is only two pixels wide
    >>> MaskedBatchNorm2d(3)(x, mask=real)[0, :, :, 2:].count_nonzero()
    tensor(0)
    """


class MaskedBatchNorm3d(MaskedBatchNorm, nn.BatchNorm3d):
    """`MaskedBatchNorm1d` for inputs (N, C, D, H, W) and masks (N, D, H, W).

    >>> MaskedBatchNorm3d(3, default="all")
    MaskedBatchNorm3d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, \
track_running_stats=True, default='all')
    """
