"""Gradients of any order around the kernels.

In a plain program, and inside of torch.func, by `torch.autograd.Function`, whose calls cost a third
of an operator's; where a compiler traces, by the operators, which get the same rules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.kernels import batching, operators
from bnkit.kernels.choice import is_traced, is_transformed
from bnkit.kernels.second_order import gradients_of_backward


def batch_norm_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `operators.run_forward` returns, with gradients."""
    compute = _way(x, operators.forward, _Forward, _PlainForward)
    return compute(x, *arguments)  # type: ignore[no-any-return]


def batch_norm_inference(x: Tensor, *arguments: Any) -> Tensor:
    """Return what `operators.run_inference` returns, with gradients."""
    compute = _way(x, operators.inference, _Inference, _PlainInference)
    return compute(x, *arguments)  # type: ignore[no-any-return]


def batch_norm_backward(dy: Tensor, *arguments: Any) -> operators.Four:
    """Return what `operators.run_backward` returns, with gradients where somebody may ask."""
    if is_traced(dy):
        return operators.backward(dy, *arguments)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() or is_transformed():
        return _Backward.apply(dy, *arguments)  # type: ignore[no-any-return, no-untyped-call]
    return operators.run_backward(dy, *arguments)


def _way(
    x: Tensor, operator: Callable[..., Any], transformed: type[Function], plain: type[Function]
) -> Callable[..., Any]:
    if is_traced(x):
        return operator
    return transformed.apply if is_transformed() else plain.apply


class _Forward(Function):
    forward = staticmethod(operators.run_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, residual, *options = inputs
        y, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        _keep(ctx, (x, mean, variance, weight, bias), residual, y, options)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        return *_gradients(ctx, dy, training=True), None, None, None

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        return batching.forward(_Forward.apply, info.batch_size, dims, arguments)


class _Inference(Function):
    forward = staticmethod(operators.run_inference)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        *tensors, residual, eps, activation, kernel = inputs
        _keep(ctx, tensors, residual, output, (eps, activation, kernel))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dx, *others = _gradients(ctx, dy, training=False)
        return dx, None, None, *others, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        return batching.inference(_Inference.apply, info.batch_size, dims, arguments)


class _PlainForward(Function):
    """`_Forward` without what torch.func needs, for which torch inspects each call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = operators.run_forward(*arguments)
        _Forward.setup_context(ctx, arguments, output)
        return output

    backward = _Forward.backward


class _PlainInference(Function):
    """`_Inference` without what torch.func needs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y = operators.run_inference(*arguments)
        _Inference.setup_context(ctx, arguments, y)
        return y

    backward = _Inference.backward


class _Backward(Function):
    forward = staticmethod(operators.run_backward)

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: Sequence[Any],
        output: operators.Four,  # noqa: ARG004  torch passes it by name
    ) -> None:
        *tensors, ctx.eps, ctx.activation, ctx.training, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        dy, x, mean, variance, *others = ctx.saved_tensors
        given = None if ctx.training else (mean, variance)
        d_dy, dx, *rest = gradients_of_backward(
            cotangents, dy, (x, *others), given, eps=ctx.eps, activation=ctx.activation
        )
        return d_dy, dx, None, None, *rest, None, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        return batching.backward(_Backward.apply, info.batch_size, dims, arguments)


def _keep(
    ctx: Any, tensors: Sequence[Any], residual: Tensor | None, y: Tensor, options: Sequence[Any]
) -> None:
    ctx.options, ctx.has_residual = options, residual is not None
    # Somebody keeps y anyway, but perhaps nobody the residual; of ReLU either shows the gradient.
    ctx.keeps_output = ctx.has_residual and options[1] == "relu"
    ctx.save_for_backward(*tensors, y if ctx.keeps_output else residual)


def _gradients(ctx: Any, dy: Tensor, *, training: bool) -> tuple[Tensor | None, ...]:
    *tensors, residual = ctx.saved_tensors
    eps, activation, kernel = ctx.options
    if ctx.keeps_output:
        dy = torch.ops.aten.threshold_backward(dy, residual, 0)
        residual = activation = None
    dx, dweight, dbias, dresidual = batch_norm_backward(
        dy, *tensors, residual, eps, activation, training, kernel
    )
    *_, weight, bias = tensors
    return (
        dx,
        None if weight is None else dweight,
        None if bias is None else dbias,
        None if not ctx.has_residual else dy if activation is None else dresidual,
    )


operators.forward.register_autograd(_Forward.backward, setup_context=_Forward.setup_context)
operators.inference.register_autograd(_Inference.backward, setup_context=_Inference.setup_context)
operators.backward.register_autograd(_Backward.backward, setup_context=_Backward.setup_context)
