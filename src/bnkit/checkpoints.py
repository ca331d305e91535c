"""Checkpoints of changed models: `save` keeps the values and the plan, `load` applies both again.

A file is of safetensors (.safetensors; the plan is in its metadata) or of torch (.pt or .pth; a
dict of "state_dict" and "bnkit_plan"), and never needs pickled code.
"""

import io
import json
import os
import pickle  # its error only
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.surgery.plan import Plan
from bnkit.surgery.structure import OPERATIONS, replay

PLAN = "bnkit_plan"  # its name in the file: a list of plans as JSON, in the order of their changes
_STATE = "state_dict"
_SHOWN = 8  # names in a message

Document = Mapping[str, Any]  # a plan as `Plan.to_json` writes it


def save(
    model: nn.Module,
    path: str | Path,
    *,
    plan: Plan | Document | Sequence[Plan | Document] | None = None,
) -> Path:
    """Write the checkpoint of `model`, which `plan` made, and return its path.

    The suffix says the format: .safetensors, .pt or .pth. `plan` is the one that made `model` from
    what `load` will get; where several did, one after the other, a list of them, in which those
    that came out of a file (`read`) stand as they came. Without a plan the file is for the model as
    it is built. A parameter under several names is kept once. The file is written under another
    name and moved into place.

    Raises ValueError for another suffix, for a plan whose changes cannot be made again, and for
    state that the format cannot hold; OSError if the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 2), f"{folder}/plain.pt").name
    'plain.pt'
    """
    path = Path(path)
    write = format_of(path).write
    document = json.dumps([_document(each) for each in _plans(plan)])
    state = model.state_dict()
    try:
        with _moved_into_place(path) as part:
            write(part, state, document)
    except OSError as error:
        raise OSError(
            f"the checkpoint {path} cannot be written ({error.strerror or error}): choose another"
        ) from error
    return path


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Return a copy of `model` with the changes and the values of the checkpoint at `path`.

    `model` is freshly built, as it was before the changes of the file's plan, and stays as it is.
    Dtype, device and modes are the fresh model's. No code of the file is run: torch's files are
    read with weights_only=True.

    Raises FileNotFoundError where there is no file, and ValueError for one that is damaged, that
    holds pickled objects or no plan, or that does not fit the model.

    >>> import tempfile
    >>> from bnkit.surgery import plan_addition
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> plan = plan_addition(build(), torch.zeros(2, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     twin = load(build(), save(plan.apply(build()), f"{folder}/twin.pt", plan=plan))
    >>> twin[0].batchnorm.num_features
    16
    """
    checkpoint = read(path)
    if checkpoint.plans is None:
        raise ValueError(
            f"{path} has no plan of bnkit: pass what it holds to the model's load_state_dict, or "
            f"write it by bnkit's save or by --out of its commands"
        )
    return checkpoint.restore(model)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: values by their names, and the plans, None in a file of somebody else."""

    path: Path
    state: Mapping[str, Any]
    plans: tuple[Document, ...] | None

    def restore(self, model: nn.Module) -> nn.Module:
        """Return a copy of `model` with the changes of the plans, if there are any, and the values.

        Raises ValueError if they do not fit.
        """
        edits = [edit for plan in self.plans or () for edit in plan["edits"]]
        try:
            restored = replay(model, [edit["structure"] for edit in edits])
        except ValueError as error:
            raise ValueError(f"the plan of {self.path} does not fit the model: {error}") from error
        try:
            restored.load_state_dict(self.state, strict=True)
        except RuntimeError as error:
            what = "; ".join(_differences(self.state, restored.state_dict())) or str(error)
            changed = " as the plan changes it" if edits else ""
            raise ValueError(
                f"{self.path} does not fit the model ({type(model).__name__}){changed}: {what}"
            ) from error
        return restored


def read(path: str | Path) -> Checkpoint:
    """Return what the checkpoint at `path` holds, on the CPU; raises what `load` raises.

    >>> read("nowhere.pt")
    Traceback (most recent call last):
    FileNotFoundError: there is no checkpoint nowhere.pt
    """
    path = Path(path)
    reader = format_of(path).read
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    state, document = reader(path)
    return Checkpoint(path, state, None if document is None else _parsed(path, document))


# Plans


def _plans(
    plan: Plan | Document | Sequence[Plan | Document] | None,
) -> Iterable[Plan | Document]:
    if plan is None:
        return ()
    return (plan,) if isinstance(plan, Plan | Mapping) else plan


def _document(plan: Plan | Document) -> Document:
    document = plan.to_json() if isinstance(plan, Plan) else plan
    for edit in document["edits"]:
        if edit["structure"].get("operation") not in OPERATIONS:
            raise ValueError(
                f"`plan` does not say by which operation layer '{edit['layer']}' was changed "
                f"({edit['change']}), so the file could not be loaded: save the state_dict and "
                f"make the change again in code"
            )
    return document


def _parsed(path: Path, document: str) -> tuple[Document, ...]:
    try:
        plans = tuple(json.loads(document))
        for plan in plans:
            [dict(edit["structure"]) for edit in plan["edits"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the plan in {path} is damaged ({type(error).__name__}: {error}): write the file again"
        ) from error
    return plans


# Formats


@dataclass(frozen=True)
class Format:
    """How checkpoints of one kind are written and read."""

    write: Callable[[Path, Mapping[str, Any], str], None]
    read: Callable[[Path], tuple[Mapping[str, Any], str | None]]


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


def _write_safetensors(path: Path, state: Mapping[str, Any], document: str) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415  only for files of this kind

    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if others:
        raise ValueError(
            f"{_listed(others)} of the model's state is no tensor, and safetensors holds nothing "
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


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], str | None]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  as above

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        raise ValueError(_damaged(path, error)) from error
    repeated = {name: state[kept] for name, kept in metadata.items() if kept in state}
    return repeated | state, metadata.get(PLAN)


def _write_torch(path: Path, state: Mapping[str, Any], document: str) -> None:
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


def _read_torch(path: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run any code when read, or is damaged: load "
            f"it where it comes from, and save model.state_dict() alone"
        ) from error
    except Exception as error:  # what it raises for damaged files is of many types
        raise ValueError(_damaged(path, error)) from error
    state = content.get(_STATE, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{path} holds a {type(state).__name__} and no state dict: save model.state_dict()"
        )
    return state, content.get(PLAN) if state is not content else None


_TORCH = Format(_write_torch, _read_torch)
_FORMATS = {
    ".safetensors": Format(_write_safetensors, _read_safetensors),
    ".pt": _TORCH,
    ".pth": _TORCH,
}


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    """Give the path of another file beside `path`, which replaces it once the block has ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# Messages


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return f"{path} is damaged or cut short ({type(error).__name__}: {reason}): fetch it again"


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing:
        yield f"it lacks {_listed(missing)}"
    if unknown:
        yield f"it has {_listed(unknown)}, which the model lacks"
    shapes = {
        name: f"'{name}' is {tuple(found[name].shape)} in the file, {tuple(value.shape)} in the "
        f"model"
        for name, value in wanted.items()
        if isinstance(value, Tensor) and isinstance(found.get(name), Tensor)
        if value.shape != found[name].shape
    }
    yield from list(shapes.values())[:_SHOWN]
    if len(shapes) > _SHOWN:
        yield f"and {len(shapes) - _SHOWN} more shapes differ"


def _listed(names: Iterable[str]) -> str:
    names = [f"'{name}'" for name in names]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
