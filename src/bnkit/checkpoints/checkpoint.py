"""`save` and `load`: values and plan of a changed model, written whole, and made again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from bnkit.checkpoints.formats import SHOWN, format_of, listed, reader_of
from bnkit.checkpoints.plans import Document, parsed, written
from bnkit.dataflow import whole
from bnkit.dataflow.sharding import is_sharded, refuse_sharded
from bnkit.files import moved_into_place
from bnkit.internals import with_versions
from bnkit.surgery.operations import replay
from bnkit.surgery.plan import Plan


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

    Raises ValueError for another suffix, for a plan whose changes cannot be made again, as those by
    a function of yours, and for state that the format cannot hold; OSError if the file cannot be
    written. Of a model that is sharded over several ranks (fully_shard, or DTensors) the file holds
    all values: all ranks call this, the first one writes, and running statistics are the first's.
    TypeError, with the way out, for one in FullyShardedDataParallel.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 2), f"{folder}/plain.pt").name
    'plain.pt'
    """
    path = Path(path)
    format_of(path)  # a wrong suffix is worth no gathering
    document = written(plan)
    refuse_sharded(model, gathers=True)
    if not is_sharded(model):
        _write(path, model.state_dict(), document)
        return path
    failed: list[Exception | None] = [None]
    state = whole(model).state_dict()  # to which all ranks bring their parts
    if dist.get_rank() == 0:
        try:
            _write(path, state, document)
        except (OSError, ValueError) as error:
            failed[0] = error
    dist.broadcast_object_list(failed)  # the others wait until the file is there
    if failed[0] is not None:
        raise failed[0]
    return path


def _write(path: Path, state: Mapping[str, Any], document: str) -> None:
    try:
        with moved_into_place(path) as part:
            format_of(path).write(part, state, document)
    except OSError as error:
        raise OSError(
            f"the checkpoint {path} cannot be written ({error.strerror or error}): choose another"
        ) from error


def load(model: nn.Module, path: str | Path, *, key: str | None = None) -> nn.Module:
    """Return a copy of `model` with the changes and the values of the checkpoint at `path`.

    `model` is freshly built, as it was before the changes of the file's plan, and stays as it is.
    Dtype, device and modes are the fresh model's. No code of the file is run: torch's files are
    read with weights_only=True. Files of others hold no plan: their values alone are loaded, also
    from Lightning's .ckpt, from a dict of a state dict and other things (`key` says which, where
    there are several), and under names with the prefixes of DDP, torch.compile or a wrapping model.

    Raises FileNotFoundError where there is no file, and ValueError for one that is damaged, that
    holds pickled objects, or that does not fit the model.

    >>> import tempfile
    >>> import torch
    >>> from bnkit.surgery import plan_addition
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> plan = plan_addition(build(), torch.zeros(2, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     twin = load(build(), save(plan.apply(build()), f"{folder}/twin.pt", plan=plan))
    >>> twin[0].batchnorm.num_features
    16
    """
    return read(path, key=key).restore(model)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: values by their names, and its plans, None if it is not of bnkit."""

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
        except Exception as error:  # a plan may say anything, of which each operation takes some
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(
                f"the plan of {self.path} does not fit the model: {kind}{error!s:.500}"
            ) from error
        state = _without_prefixes(self.state, restored.state_dict())
        try:
            restored.load_state_dict(with_versions(state, restored), strict=True)
        except Exception as error:  # also what the model's own set_extra_state raises
            what = "; ".join(_differences(state, restored.state_dict())) or f"{error!s:.500}"
            changed = " as the plan changes it" if edits else ""
            raise ValueError(
                f"{self.path} does not fit the model ({type(model).__name__}){changed}: {what}"
            ) from error
        return restored


def read(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Return what the checkpoint at `path` holds, on the CPU; raises what `load` raises.

    >>> read("nowhere.pt")
    Traceback (most recent call last):
    FileNotFoundError: there is no checkpoint nowhere.pt
    """
    path = Path(path)
    reader = reader_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    state, document = reader(path, key)
    return Checkpoint(path, state, None if document is None else parsed(path, document))


def _without_prefixes(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state under the model's own names, where wrappers have put prefixes before them.

    torch.compile puts `_orig_mod` before a compiled module, at any depth; DDP `module`, and a
    wrapping model, such as a LightningModule, the name that it has for the network, before all.
    """
    if state.keys() == wanted.keys() or not wanted:
        return state
    compiled = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    first = next(iter(wanted))
    prefixes = ["", *(name.removesuffix(first) for name in compiled if name.endswith(f".{first}"))]
    for prefix in prefixes:
        named = {
            name.removeprefix(prefix): value
            for name, value in compiled.items()
            if name.startswith(prefix)
        }
        if named.keys() == wanted.keys() and len(named) == len(state):
            return named
    return state


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing:
        yield f"it lacks {listed(missing)}"
    if unknown:
        yield f"it has {listed(unknown)}, which the model lacks"
    shapes = {
        name: f"'{name}' is {tuple(found[name].shape)} in the file, {tuple(value.shape)} in the "
        f"model"
        for name, value in wanted.items()
        if isinstance(value, Tensor) and isinstance(found.get(name), Tensor)
        if value.shape != found[name].shape
    }
    yield from list(shapes.values())[:SHOWN]
    if len(shapes) > SHOWN:
        yield f"and {len(shapes) - SHOWN} more shapes differ"
