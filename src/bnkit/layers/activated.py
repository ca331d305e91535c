"""`ActivatedNorm`: a normalisation, then a residual and an activation, in one pass where it can be.

What computes more than a batch norm must not be one: tools that replace batch norms by their class
(torch's SyncBatchNorm.convert_sync_batchnorm is one) would drop the activation in silence. So an
`ActivatedNorm` is not a batch norm but contains one, `norm`, which such tools find, and replace.
"""

import inspect
from collections.abc import Callable
from inspect import Signature
from typing import Any, ClassVar

from torch import Tensor, nn

from bnkit.internals import child_of, children_of, has_hooks, move_call_hooks
from bnkit.kernels.activations import find_activation
from bnkit.layers.affine import finish
from bnkit.layers.leaves import TracedAsLeaf, is_proxy


class Activatable(type):
    """The metaclass of bnkit's batch norms: with `activation=` a class makes an `ActivatedNorm`.

    That one is an instance of the class for `isinstance`, too, but of no class of torch's.
    """

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        activation = vars(made).pop("_activation", None)
        return made if activation is None else ActivatedNorm(made, activation)

    @property
    def __signature__(cls) -> Signature:
        """That of the constructor, which `inspect.signature` would not find behind `__call__`."""
        _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return Signature(parameters)

    def __instancecheck__(cls, instance: object) -> bool:
        if super().__instancecheck__(instance):
            return True
        return type(instance) is ActivatedNorm and super().__instancecheck__(instance.norm)


class ActivatedNorm(TracedAsLeaf):
    """activation(norm(x) + residual): what `bnkit.BatchNorm2d(8, activation="relu")` makes.

    `norm` is any normalisation. A batch norm of bnkit computes all of it in one pass; what others
    put in its place, and one that hooks look at, is called, and the rest follows. The state dict
    is that of `norm`, without its name, so checkpoints are torch's. Attributes that it does not
    have itself are those of `norm`, to read and to write.

    >>> import torch
    >>> layer = ActivatedNorm(nn.BatchNorm1d(2), "relu")
    >>> layer(torch.randn(8, 2)).min().item(), list(layer.state_dict())[:2], layer.num_features
    (0.0, ['weight', 'bias'], 2)
    """

    norm: nn.Module
    # Where the activation was a module before, and that module; not children of this one.
    came_from: tuple[nn.Module, nn.Module] | None = None

    def __init__(self, norm: nn.Module, activation: str | None = None) -> None:
        find_activation(activation)
        super().__init__()
        self.activation = activation
        self.norm = norm
        vars(self)["training"] = norm.training  # as it is made: no mode is switched

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return activation(norm(input) + residual); a `mask` is for `norm`."""
        if is_proxy(input):
            return self.as_leaf(input, residual, mask)
        options = {} if mask is None else {"mask": mask}
        norm = self.norm
        if not isinstance(norm, OnePass):
            return finish(norm(input, **options), residual, self.activation)
        if norm.one_pass and "forward" not in vars(norm) and not has_hooks(norm):
            return norm.activated(input, residual, self.activation, **options)
        given = (input,) if residual is None else (input, residual)
        return norm.activate(norm(*given, **options), self.activation, **options)

    # --- the state dict of `norm`

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return that of `norm`."""
        return self.norm.state_dict(*args, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *details: Any) -> None:
        inside = f"{prefix}norm."
        for key in [key for key in state_dict if key.startswith(inside)]:  # names of parameters
            state_dict[prefix + key.removeprefix(inside)] = state_dict.pop(key)
        self.norm._load_from_state_dict(state_dict, prefix, *details)  # noqa: SLF001  as torch calls it
        # Torch will now ask `norm` to load what is called so: itself, which changes nothing,
        loaded = self.norm.state_dict(prefix=inside, keep_vars=True)
        state_dict.update((k, v) for k, v in loaded.items() if "." not in k.removeprefix(inside))
        # and then each child of `norm`, such as its parametrizations.
        for child in children_of(self.norm):
            for key in [key for key in state_dict if key.startswith(f"{prefix}{child}.")]:
                state_dict[inside + key.removeprefix(prefix)] = state_dict[key]

    # --- what is registered later is registered on `norm`, so that the state dict has it

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register it on `norm`."""
        self.norm.register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register it on `norm`."""
        self.norm.register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Put another module in the place of `norm`; under any other name, into it."""
        if name == "norm":
            super().add_module(name, module)
        else:
            self.norm.add_module(name, module)

    # --- the attributes of `norm`

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            norm = child_of(self, "norm")
            if norm is None or name.startswith("_"):
                raise
            return getattr(norm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        norm = child_of(self, "norm")
        own = name == "norm" or name in vars(self) or hasattr(type(self), name)
        if norm is None or own or not (hasattr(norm, name) or isinstance(value, nn.Module)):
            super().__setattr__(name, value)
        else:
            setattr(norm, name, value)

    def __repr__(self) -> str:
        """Return the line that makes it, where a class of bnkit is inside."""
        norm = self.norm
        if self.activation is None or not isinstance(norm, OnePass):
            return super().__repr__()
        return f"{type(norm).__name__}({norm.extra_repr()}, activation={self.activation!r})"

    def extra_repr(self) -> str:
        """Return the activation."""
        return f"activation={self.activation!r}"


class OnePass(TracedAsLeaf):
    """A normalisation that computes a residual and an activation in the same pass."""

    # Not of subclasses with a forward of their own, which `activated` would pass by.
    one_pass: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "activated" in vars(cls):
            cls.one_pass = True
        elif "forward" in vars(cls):
            cls.one_pass = False

    activated: Callable[..., Tensor]  # (input, residual, activation, and forward's keywords)

    def activate(
        self,
        y: Tensor,
        activation: str | None,
        *,
        mask: Tensor | None = None,  # noqa: ARG002  of masked layers
    ) -> Tensor:
        """Return activation(y), of what forward returned."""
        return find_activation(activation).function(y)


def key_of(model: nn.Module, name: str) -> str:
    """Return the key in the state dict of `model` that its parameter or buffer `name` has.

    >>> model = nn.Sequential(ActivatedNorm(nn.BatchNorm1d(2), "relu"))
    >>> [key_of(model, name) for name, _ in model.named_parameters()]
    ['0.weight', '0.bias']
    """
    path, _, own = name.rpartition(".")
    outside, _, child = path.rpartition(".")
    if child != "norm" or type(model.get_submodule(outside)) is not ActivatedNorm:
        return name
    return f"{outside}.{own}" if outside else own


def path_of_norm(model: nn.Module, path: str) -> str:
    """Return the path of the normalisation in the `ActivatedNorm` at `path`, or the `path` itself.

    Plans of bnkit 0.1 name such a layer by its own path.

    >>> path_of_norm(nn.Sequential(ActivatedNorm(nn.BatchNorm1d(2))), "0")
    '0.norm'
    """
    return f"{path}.norm" if type(model.get_submodule(path)) is ActivatedNorm else path


def enclose(layer: nn.Module, activation: str | None = None) -> None:
    """Make `layer` an `ActivatedNorm` in place: what it was is inside, hooks on calls stay outside.

    >>> layer = nn.BatchNorm1d(2)
    >>> enclose(layer, "relu")
    >>> type(layer).__name__, type(layer.norm).__name__
    ('ActivatedNorm', 'BatchNorm1d')
    """
    inside, outside = type(layer).__new__(type(layer)), ActivatedNorm(nn.Identity(), activation)
    vars(inside).update(vars(layer))
    move_call_hooks(inside, outside)
    vars(layer).clear()
    vars(layer).update(vars(outside))
    layer.__class__ = ActivatedNorm
    layer.norm = inside
    vars(layer)["training"] = inside.training


def disclose(layer: ActivatedNorm, made: nn.Module) -> None:
    """Make `layer` in place what `made` is; hooks on its calls stay.

    >>> layer = ActivatedNorm(nn.BatchNorm1d(2), "relu")
    >>> disclose(layer, layer.norm)
    >>> layer
    BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    hooked = nn.Module()
    move_call_hooks(layer, hooked)
    vars(layer).clear()
    vars(layer).update(vars(made))
    layer.__class__ = type(made)  # type: ignore[assignment]  # from now on it is of another class
    move_call_hooks(hooked, layer)
