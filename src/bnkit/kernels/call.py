"""`Call`: one batch norm to compute, as it goes whole from `functional` to a kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """All that decides a result: seven tensors, of which most may be missing, and how.

    `mean` and `variance`, (C,), are the statistics that x is normalised by; None in a training
    forward, which takes them from x. The rest is what `kernels.reference` calls so, and `kernel`
    is the one that does the work.
    """

    x: Tensor  # (N, C, ...)
    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    residual: Tensor | None  # as x
    eps: float
    activation: str | None
    training: bool
    kernel: str

    @property
    def ending(self) -> dict[str, Any]:
        """What the functions of the specification take by keyword."""
        return {"eps": self.eps, "activation": self.activation, "residual": self.residual}


# torch's operators and autograd functions take and see single values: this is their signature, and
# `flat` the only way from there to a call.
SCHEMA = (
    "Tensor x, Tensor? mean, Tensor? variance, Tensor? weight, Tensor? bias, Tensor? residual, "
    "float eps, str? activation, bool training, str kernel"
)


def flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, whose last argument is a call, as one that takes the call's values singly.

    >>> flat(lambda dy, call: call.kernel)("dy", *[None] * 9, "cpu")
    'cpu'
    """
    fields = len(Call._fields)

    def flattened(*arguments: Any) -> Any:
        return function(*arguments[:-fields], Call(*arguments[-fields:]))

    return flattened
