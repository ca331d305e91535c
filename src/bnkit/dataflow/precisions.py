"""`Precisions`: the dtypes in which a model computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(eq=False)
class Precisions(TorchFunctionMode):
    """Notes in `seen` the dtypes of all floating-point numbers that torch functions make.

    >>> with Precisions() as precisions:
    ...     _ = torch.ones(2).double().argmax()
    >>> precisions.seen == {torch.float32, torch.float64}
    True
    """

    seen: set[torch.dtype] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.note(output)
        return output

    def note(self, output: Any) -> None:
        """Note the dtypes of what a torch function made."""
        for made in output if isinstance(output, tuple | list) else (output,):
            if isinstance(made, Tensor) and (made.is_floating_point() or made.is_complex()):
                self.seen.add(made.dtype)
