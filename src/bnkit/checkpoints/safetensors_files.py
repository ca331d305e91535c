"""Checkpoints as files of safetensors: the plan, and names that repeat others, in the metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnkit.checkpoints.messages import damaged, listed
from bnkit.checkpoints.plans import PLAN


def write(path: Path, state: Mapping[str, Any], document: str) -> None:
    """Write the state and the plans' text; ValueError for what safetensors cannot hold.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write(Path(file.name), {"a": torch.ones(2), "b": torch.zeros(1)}, "[]")
    ...     state, document = read(Path(file.name))
    >>> sorted(state), document
    (['a', 'b'], '[]')
    """
    from safetensors.torch import save_file  # noqa: PLC0415  only for files of this kind

    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if others:
        raise ValueError(
            f"{listed(others)} of the model's state is not a tensor, and safetensors holds nothing "
            f"else: write a .pt"
        )
    tensors, repeated = _apart(state)
    try:
        save_file(tensors, path, metadata={PLAN: document, **repeated})
    except KeyError as error:
        raise ValueError(f"safetensors has no dtype {error.args[0]}: write a .pt") from error


def _apart(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors once each, in memory of their own, and for other names which it repeats.

    safetensors refuses tensors that share memory; its own `load_model` looks for repeated names in
    the metadata in the same form.
    """
    tensors: dict[str, Tensor] = {}
    repeated: dict[str, str] = {}
    names: dict[object, str] = {}
    storages = set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr(), tensor.device
        place = storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        if tensor.numel() and names.setdefault(place, name) != name:
            repeated[name] = names[place]
        elif storage in storages or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            tensors[name] = tensor
        storages.add(storage)
    return tensors, repeated


def read(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Return the state in the file, on the CPU, and the plans' text, None where there is none.

    Raises ValueError for a file that is damaged.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  as above

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        raise ValueError(damaged(path, error)) from error
    repeated = {name: state[kept] for name, kept in metadata.items() if kept in state}
    return repeated | state, metadata.get(PLAN)
