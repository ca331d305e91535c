"""`replay`: the changes that a plan made to the structure of a model, made again on a fresh one."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bnkit.dataflow import duplicate

# By name, the module of each operation: a function that takes the model and the path of a layer,
# then options that are plain data, and changes the model in place, whatever its values; or returns
# what now takes its place. Imported when asked for, since the verbs build on `replay`.
OPERATIONS = {
    "apply_acceleration": "bnkit.surgery.acceleration",
    "convert_layer": "bnkit.surgery.conversion",
    "convert_layer_by_callable": "bnkit.surgery.conversion",
    "drop_bias": "bnkit.surgery.alterations",
    "fold_away": "bnkit.surgery.folding",
    "leave_out": "bnkit.surgery.alterations",
    "leave_training": "bnkit.surgery.alterations",
    "own_batch_norm_at": "bnkit.surgery.normalized",
    "set_numbers": "bnkit.surgery.alterations",
    "standardize_input": "bnkit.surgery.standardization",
    "track_statistics": "bnkit.surgery.alterations",
    "unshare": "bnkit.surgery.alterations",
    "use_channel_affine": "bnkit.surgery.removal",
    "use_float32": "bnkit.surgery.alterations",
    "write_values": "bnkit.surgery.alterations",
}


def replay(model: nn.Module, structures: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Return a copy of `model` with the structure that the described changes lead to.

    `structures` are those of the edits of a plan, in order: the name of an "operation", the path
    of a "layer" and the operation's options. The values of what they add are the ones that it
    begins with: a checkpoint of the changed model, which has all keys of the copy, brings its own.

    Raises ValueError for an operation or option that bnkit does not know, and for a layer that the
    model does not have.

    >>> from bnkit.surgery import plan_addition
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> plan = plan_addition(build(), torch.zeros(2, 8))
    >>> checkpoint = plan.apply(build()).state_dict()
    >>> structures = [edit["structure"] for edit in plan.to_json()["edits"]]
    >>> replay(build(), structures).load_state_dict(checkpoint)
    <All keys matched successfully>
    """
    changed = duplicate(model)
    with torch.inference_mode(mode=False):  # what is made in it could not be trained
        for number, structure in enumerate(structures, start=1):
            made = _make(changed, dict(structure), f"change {number}")
            changed = made if isinstance(made, nn.Module) else changed  # it may be a wrapper
    return changed


def _make(model: nn.Module, structure: dict[str, Any], place: str) -> object:
    name, layer = structure.pop("operation", None), structure.pop("layer", None)
    if name not in OPERATIONS:
        raise ValueError(
            f"{place} is by the operation {name!r}, which this version of bnkit does not know: it "
            f"knows {', '.join(map(repr, OPERATIONS))}"
        )
    if layer not in dict(model.named_modules(remove_duplicate=False)):
        raise ValueError(
            f"{place} ({name}) is of the layer {layer!r}, which the model "
            f"({type(model).__name__}) does not have: build it as it was before the change"
        )
    operation = getattr(importlib.import_module(OPERATIONS[name]), name)
    try:
        inspect.signature(operation).bind(model, layer, **structure)
    except TypeError as error:
        raise ValueError(f"{place} ({name} of the layer {layer!r}): {error}") from error
    return operation(model, layer, **structure)
