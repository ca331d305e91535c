"""`Standardized`: a model behind a layer that standardises one of its inputs."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.layers.leaves import TracedAsLeaf, is_proxy
from bnkit.observation import follow_mode


class Standardize(TracedAsLeaf):
    """(x − mean) / std of each feature, by constants that are in the state dict.

    `mean` and `std` are buffers, (num_features,); they begin as 0 and 1. Features lie on
    `channel_axis` of the input. The result has the input's shape and dtype, that of `mean` for
    integers; it is computed in float32 at least. Raises ValueError for another number of features.

    >>> layer = Standardize(2)
    >>> layer.mean.copy_(torch.tensor([1.0, 2.0])), layer.std.copy_(torch.tensor([1.0, 4.0]))
    (tensor([1., 2.]), tensor([1., 4.]))
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[2.0000, 0.5000]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        channel_axis: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.channel_axis = channel_axis
        self.register_buffer("mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(num_features, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Return (input − mean) / std, feature by feature."""
        if is_proxy(input):
            return self.as_leaf(input, None, None)
        axis = self.channel_axis
        if not -input.dim() <= axis < input.dim() or input.shape[axis] != self.num_features:
            raise ValueError(
                f"`input` of shape {list(input.shape)} must have {self.num_features} features on "
                f"axis {axis}, as the inputs had by which it is standardised"
            )
        shape = [1] * input.dim()
        shape[axis] = self.num_features
        in_float = torch.promote_types(torch.float32, input.dtype)
        wide = input.to(torch.promote_types(in_float, self.mean.dtype))
        standardised = (wide - self.mean.view(shape)) / self.std.view(shape)
        return standardised.to(input.dtype if input.is_floating_point() else self.mean.dtype)

    def extra_repr(self) -> str:
        """Return what the layer was made with."""
        return f"{self.num_features}, channel_axis={self.channel_axis}"


class Standardized(nn.Module):
    """A model whose inputs are standardised first: what `standardize` returns.

    Its children are `standardize` and `model`. It is called as the model is; the argument of the
    name `argument`, or at that position, is standardised, the others pass. Integers become floats
    of the dtype in which the model has its parameters.

    >>> net = Standardized(Standardize(4), nn.Linear(4, 2), argument="input", position=0)
    >>> net(torch.zeros(3, 4, dtype=torch.uint8)).dtype, list(net.state_dict())[:3]
    (torch.float32, ['standardize.mean', 'standardize.std', 'model.weight'])
    """

    def __init__(
        self,
        standardize: Standardize,
        model: nn.Module,
        *,
        argument: str | None,
        position: int | None,
    ) -> None:
        super().__init__()
        self.standardize = standardize
        self.model = model
        self.argument = argument
        self.position = position
        follow_mode(self, model)
        follow_mode(standardize, model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model makes of its arguments, one of them standardised."""
        if is_proxy(args):  # torch.fx traces the whole, and hands all arguments in as one
            return self.model(self._standardised(self._only_argument(args)))
        if self.argument in kwargs:
            kwargs = {**kwargs, self.argument: self._standardised(kwargs[self.argument])}
        elif self.position is not None and self.position < len(args):
            standardised = self._standardised(args[self.position])
            args = (*args[: self.position], standardised, *args[self.position + 1 :])
        return self.model(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what torch.jit.script compiles in place of this."""
        self._only_argument([None])
        return _OfOneArgument(self.standardize, self.model, self._dtype_of_floats())

    def _only_argument(self, arguments: Any) -> Any:
        taken = len(inspect.signature(self.model.forward).parameters)
        if taken != 1:
            raise TypeError(
                f"torch.fx and torch.jit take a standardised model of one argument, and "
                f"{type(self.model).__name__} takes {taken}: give them its `model`, and "
                f"standardise by `standardize`"
            )
        return arguments[0]

    def _standardised(self, input: Tensor) -> Tensor:
        standardised: Tensor = self.standardize(input)
        if is_proxy(input) or input.is_floating_point():
            return standardised
        return standardised.to(self._dtype_of_floats())

    def _dtype_of_floats(self) -> torch.dtype:
        dtypes = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(dtypes, torch.get_default_dtype())

    def extra_repr(self) -> str:
        """Return which argument is standardised."""
        return f"argument={self.argument!r}, position={self.position}"


class _OfOneArgument(nn.Module):
    """A standardised model for torch.jit.script, which compiles no `*args`."""

    def __init__(self, standardize: Standardize, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.standardize = standardize
        self.model = model
        self.dtype_of_floats = dtype
        follow_mode(self, model)

    def forward(self, input: Tensor) -> Any:
        standardised = self.standardize(input)
        if not input.is_floating_point():
            standardised = standardised.to(self.dtype_of_floats)
        return self.model(standardised)
