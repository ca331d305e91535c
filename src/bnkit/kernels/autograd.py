"""Gradients of any order around the kernels.

In a plain program, and inside torch.func, by `torch.autograd.Function`, whose calls cost a third
of an operator's; where a compiler traces, by the operators, which get the same rules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.kernels import batching, operators
from bnkit.kernels.call import Call, flat
from bnkit.kernels.choice import is_traced, is_transformed
from bnkit.kernels.second_order import gradients_of_backward


def batch_norm_forward(call: Call) -> operators.Three:
    """Return what `operators.run_forward` returns, with gradients."""
    compute = _way(call.x, operators.forward, _Forward, _PlainForward)
    return compute(*call)  # type: ignore[no-any-return]


def batch_norm_inference(call: Call) -> Tensor:
    """Return what `operators.run_inference` returns, with gradients."""
    compute = _way(call.x, operators.inference, _Inference, _PlainInference)
    return compute(*call)  # type: ignore[no-any-return]


def batch_norm_backward(dy: Tensor, call: Call) -> operators.Four:
    """Return what `operators.run_backward` returns, with gradients where they may be asked for."""
    if is_traced(dy):
        return operators.backward(dy, *call)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() or is_transformed():
        return _Backward.apply(dy, *call)  # type: ignore[no-any-return, no-untyped-call]
    return operators.run_backward(dy, call)


def _way(
    x: Tensor, operator: Callable[..., Any], transformed: type[Function], plain: type[Function]
) -> Callable[..., Any]:
    if is_traced(x):
        return operator
    return transformed.apply if is_transformed() else plain.apply


class _Forward(Function):
    forward = staticmethod(flat(operators.run_forward))

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: operators.Three) -> None:
        y, mean, variance = output
        # A loss through the statistics would need gradients that the kernels do not compute.
        ctx.mark_non_differentiable(mean, variance)
        _keep(ctx, Call(*inputs)._replace(mean=mean, variance=variance), y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        return _gradients(ctx, dy)

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        return batching.forward(_Forward.apply, info.batch_size, dims, Call(*arguments))


class _Inference(Function):
    forward = staticmethod(flat(operators.run_inference))

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        _keep(ctx, Call(*inputs), output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, dy)

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        return batching.inference(_Inference.apply, info.batch_size, dims, Call(*arguments))


class _PlainForward(Function):
    """`_Forward` without what torch.func needs, for which torch inspects each call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> operators.Three:
        output = operators.run_forward(Call(*arguments))
        _Forward.setup_context(ctx, arguments, output)
        return output

    backward = _Forward.backward


class _PlainInference(Function):
    """`_Inference` without what torch.func needs."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y = operators.run_inference(Call(*arguments))
        _Inference.setup_context(ctx, arguments, y)
        return y

    backward = _Inference.backward


class _Backward(Function):
    """The backward as a function of its own, so that it has a gradient too."""

    forward = staticmethod(flat(operators.run_backward))

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: Sequence[Any],
        output: operators.Four,  # noqa: ARG004  torch passes it by name
    ) -> None:
        dy, *values = inputs
        ctx.set_materialize_grads(False)  # None for what no loss depends on
        _save(ctx, Call(*values), dy)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        dy, call = _saved(ctx)
        d_dy, dx, *others = gradients_of_backward(cotangents, dy, call)
        return d_dy, *_by_argument(dx, *others)

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> Any:
        dy, *values = arguments
        return batching.backward(_Backward.apply, info.batch_size, dims, dy, Call(*values))


def _keep(ctx: Any, call: Call, y: Tensor) -> None:
    ctx.has_residual = call.residual is not None
    # The next layer usually keeps y alive, the residual may have no other owner; of ReLU either
    # one shows where the gradient passes: y > 0.
    ctx.keeps_output = ctx.has_residual and call.activation == "relu"
    _save(ctx, call._replace(residual=y) if ctx.keeps_output else call)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    _, call = _saved(ctx)
    if ctx.keeps_output:  # dy through the ReLU by y; what is left is linear in x̂ and the residual
        dy = torch.ops.aten.threshold_backward(dy, call.residual, 0)
        call = call._replace(residual=None, activation=None)
    dx, dweight, dbias, dresidual = batch_norm_backward(dy, call)
    return _by_argument(
        dx,
        None if call.weight is None else dweight,
        None if call.bias is None else dbias,
        None if not ctx.has_residual else dy if call.activation is None else dresidual,
    )


def _save(ctx: Any, call: Call, dy: Tensor | None = None) -> None:
    ctx.options = call[6:]
    ctx.save_for_backward(dy, *call[:6])


def _saved(ctx: Any) -> tuple[Tensor, Call]:
    dy, *tensors = ctx.saved_tensors
    return dy, Call(*tensors, *ctx.options)


def _by_argument(
    dx: Any, dweight: Any = None, dbias: Any = None, dresidual: Any = None
) -> tuple[Any, ...]:
    """Return one gradient for each value of a call: None for the statistics and the options."""
    return dx, None, None, dweight, dbias, dresidual, *[None] * 4


operators.forward.register_autograd(_Forward.backward, setup_context=_Forward.setup_context)
operators.inference.register_autograd(_Inference.backward, setup_context=_Inference.setup_context)
operators.backward.register_autograd(_Backward.backward, setup_context=_Backward.setup_context)
