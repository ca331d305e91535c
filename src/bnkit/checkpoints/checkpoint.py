"""`save` and `load`: values and plan of a changed model, written whole, and made again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnkit.checkpoints.formats import SHOWN, format_of, listed
from bnkit.checkpoints.plans import Document, parsed, written
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
    written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 2), f"{folder}/plain.pt").name
    'plain.pt'
    """
    path = Path(path)
    write = format_of(path).write
    document = written(plan)
    state = model.state_dict()
    try:
        with moved_into_place(path) as part:
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
    checkpoint = read(path)
    if checkpoint.plans is None:
        raise ValueError(
            f"{path} has no plan of bnkit: pass what it holds to the model's load_state_dict, or "
            f"write it by bnkit's save or by --out of its commands"
        )
    return checkpoint.restore(model)


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
        except ValueError as error:
            raise ValueError(f"the plan of {self.path} does not fit the model: {error}") from error
        try:
            restored.load_state_dict(with_versions(self.state, restored), strict=True)
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
    return Checkpoint(path, state, None if document is None else parsed(path, document))


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
