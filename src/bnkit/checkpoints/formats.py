"""`format_of`: how files are written and read: those of torch, and those of safetensors.

No code of a file is run: files of torch are read with weights_only=True.
"""

import io
import pickle  # its error only
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLAN = "bnkit_plan"  # the name of the plans in a file
SHOWN = 8  # names in a message
LONGEST = 100  # characters of one


# Returns the values of a file by their names, and its plan; the second argument is a key in it.
Reader = Callable[[Path, str | None], tuple[Mapping[str, Any], str | None]]


@dataclass(frozen=True)
class Format:
    """How checkpoints of one kind are written and read."""

    write: Callable[[Path, Mapping[str, Any], str], None]
    read: Reader


def reader_of(path: Path) -> Reader:
    """Return what reads a file of this suffix: beside bnkit's own also .ckpt and .bin of others.

    >>> reader_of(Path("weights.h5"))
    Traceback (most recent call last):
    ValueError: the suffix of weights.h5 is '.h5': a checkpoint is a file of safetensors \
(.safetensors) or of torch (.pt, .pth, .ckpt, .bin)
    """
    if path.suffix in {".ckpt", ".bin"}:  # as Lightning and Hugging Face name files of torch
        return _read_torch
    if path.suffix not in _FORMATS:
        raise ValueError(
            f"the suffix of {path} is {path.suffix!r}: a checkpoint is a file of safetensors "
            f"(.safetensors) or of torch (.pt, .pth, .ckpt, .bin)"
        )
    return _FORMATS[path.suffix].read


def format_of(path: Path) -> Format:
    """Return the format that the suffix of `path` says; ValueError for any other suffix.

    >>> format_of(Path("weights.bin"))
    Traceback (most recent call last):
    ValueError: the suffix of weights.bin is '.bin': a checkpoint is a file of safetensors \
(.safetensors) or of torch (.pt, .pth)
    """
    if path.suffix not in _FORMATS:
        raise ValueError(
            f"the suffix of {path} is {path.suffix!r}: a checkpoint is a file of safetensors "
            f"(.safetensors) or of torch (.pt, .pth)"
        )
    return _FORMATS[path.suffix]


# --- torch


_STATE = "state_dict"


def _write_torch(path: Path, state: Mapping[str, Any], document: str) -> None:
    _refuse_pickles({name: value for name, value in state.items() if not isinstance(value, Tensor)})
    try:
        with path.open("wb") as file:
            torch.save({_STATE: state, PLAN: document}, file)
    except RuntimeError as error:  # torch's own for a disk that is full
        raise OSError(_first_line(error)) from error


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


def _read_torch(path: Path, key: str | None) -> tuple[Mapping[str, Any], str | None]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run any code when read, or is damaged: load "
            f"it where it comes from, and save model.state_dict() alone"
        ) from error
    except Exception as error:  # what it raises for damaged files is of many types
        raise ValueError(damaged(path, error)) from error
    if key is None and _is_state(content):
        return content, None
    states = {
        name: value
        for name, value in _members(content)
        if (_is_state(value) and len(value)) or (name == _STATE and isinstance(value, Mapping))
    }
    if key is None and (_STATE in states or len(states) == 1):
        key = _STATE if _STATE in states else next(iter(states))
    if key not in states:
        raise ValueError(_which(path, key, content, states))
    return states[key], content.get(PLAN)


def _members(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a file holds by keys, and what that holds in turn, as "model.ema"."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(name, str):
            yield name, value
            inner = value.items() if isinstance(value, Mapping) else ()
            yield from ((f"{name}.{key}", each) for key, each in inner if isinstance(key, str))


def _is_state(content: Any) -> bool:
    """Return whether it looks like a state dict: tensors, among them extra state, by names."""
    return (
        isinstance(content, Mapping)
        and all(isinstance(name, str) for name in content)
        and (not content or any(isinstance(value, Tensor) for value in content.values()))
        and not any(isinstance(value, Mapping) and _is_state(value) for value in content.values())
    )


def _which(path: Path, key: str | None, content: Any, states: Mapping[str, Any]) -> str:
    """Return the message that no state dict of a file is the one that is wanted."""
    if not states:
        return f"{path} holds a {type(content).__name__} and no state dict: save model.state_dict()"
    if key is not None:
        return (
            f"{path} holds no state dict under the key {key!r:.60}: it does under {listed(states)}"
        )
    return (
        f"{path} holds several state dicts, under {listed(states)}: choose one by `key`, on the "
        f"command line by --key"
    )


# --- safetensors


def _write_safetensors(path: Path, state: Mapping[str, Any], document: str) -> None:
    from safetensors import SafetensorError  # noqa: PLC0415  only for files of this kind
    from safetensors.torch import save_file  # noqa: PLC0415

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
    except SafetensorError as error:  # also for a disk that is full
        raise OSError(_first_line(error)) from error


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


def _read_safetensors(path: Path, key: str | None) -> tuple[Mapping[str, Any], str | None]:
    if key is not None:
        raise ValueError(f"{path} is a file of safetensors, which has no keys: leave {key!r} out")
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  as above

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        raise ValueError(damaged(path, error)) from error
    repeated = {name: state[kept] for name, kept in metadata.items() if kept in state}
    return repeated | state, metadata.get(PLAN)


# --- messages


def damaged(path: Path, error: Exception) -> str:
    r"""Return the message for a file at `path` of which reading raised `error`, in one line.

    >>> damaged(Path("a.pt"), EOFError("Ran out of input\nafter 3 bytes"))
    'a.pt is damaged or cut short (EOFError: Ran out of input): fetch it again'
    """
    reason = _first_line(error).partition(". ")[0]
    return f"{path} is damaged or cut short ({type(error).__name__}: {reason}): fetch it again"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def listed(names: Iterable[str]) -> str:
    """Return the names in quotes, a long list cut.

    >>> listed(["weight", "bias"])
    "'weight', 'bias'"
    """
    names = [f"'{name if len(name) <= LONGEST else name[:LONGEST] + '…'}'" for name in names]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


_TORCH = Format(_write_torch, _read_torch)
_FORMATS = {
    ".safetensors": Format(_write_safetensors, _read_safetensors),
    ".pt": _TORCH,
    ".pth": _TORCH,
}
