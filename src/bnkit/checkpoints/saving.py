"""`save`: the checkpoint of a changed model, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from bnkit.checkpoints.formats import format_of
from bnkit.checkpoints.plans import Document, written
from bnkit.files import moved_into_place
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
