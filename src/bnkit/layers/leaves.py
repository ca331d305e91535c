"""`TracedAsLeaf`: modules that torch.fx writes down as one call, as it does torch's own layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bnkit.internals import is_scripting


def is_proxy(value: Any) -> bool:
    """Return whether torch.fx traces: `value` stands for what the module will be called with.

    >>> is_proxy(1)
    False
    """
    return False if is_scripting() else isinstance(value, Proxy)  # TorchScript has no Proxy


class TracedAsLeaf(nn.Module):
    """A module whose forward hands proxies to `as_leaf`: torch.fx takes only torch's for leaves."""

    __jit_unused_properties__ = ("itself",)

    @property
    def itself(self) -> "TracedAsLeaf":
        """The module: a graph whose root it is needs a name by which to call it."""
        return self

    @torch.jit.unused
    def as_leaf(self, input: Any, residual: Any, mask: Any) -> Tensor:
        """Return `call_of` these, which torch.jit.script need not compile."""
        return self.call_of(input, residual=residual, mask=mask)  # type: ignore[no-any-return]

    def call_of(self, *args: Any, **options: Any) -> Any:
        """Return the proxy of a call of this module, in which one of the arguments is a proxy.

        >>> from torch.fx import symbolic_trace
        >>> import bnkit
        >>> [node.op for node in symbolic_trace(bnkit.BatchNorm1d(2)).graph.nodes]
        ['placeholder', 'placeholder', 'call_module', 'output']
        """
        tracer = next(v for v in (*args, *options.values()) if isinstance(v, Proxy)).tracer
        path = tracer.path_of_module(self)  # type: ignore[attr-defined]  # of tracers of modules
        given = {name: value for name, value in options.items() if value is not None}
        return tracer.create_proxy("call_module", path or "itself", args, given)
