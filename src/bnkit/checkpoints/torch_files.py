"""Checkpoints as files of torch: read with weights_only=True, so that no code of theirs runs."""

import io
import pickle  # its error only
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnkit.checkpoints.messages import damaged
from bnkit.checkpoints.plans import PLAN

_STATE = "state_dict"


def write(path: Path, state: Mapping[str, Any], document: str) -> None:
    """Write the state and the plans' text; ValueError for objects that only code can make again.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write(Path(file.name), {"a": torch.ones(2), "step": 3}, "[]")
    ...     read(Path(file.name))
    ({'a': tensor([1., 1.]), 'step': 3}, '[]')
    """
    _refuse_pickles({name: value for name, value in state.items() if not isinstance(value, Tensor)})
    with path.open("wb") as file:
        torch.save({_STATE: state, PLAN: document}, file)


def _refuse_pickles(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        try:
            torch.load(file, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{name!r} of the model's state is a {type(value).__name__}, which could only be "
                f"read by running pickled code: let get_extra_state return tensors or plain data"
            ) from error


def read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Return the state in the file, on the CPU, and the plans' text, None where there is none.

    Raises ValueError for a file that is damaged, that holds pickled objects, or no state dict.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run any code when read, or is damaged: load "
            f"it where it comes from, and save model.state_dict() alone"
        ) from error
    except Exception as error:  # what it raises for damaged files is of many types
        raise ValueError(damaged(path, error)) from error
    state = content.get(_STATE, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{path} holds a {type(state).__name__} and no state dict: save model.state_dict()"
        )
    return state, content.get(PLAN) if state is not content else None
