"""Mends of the structure: each returns a function that makes the mended copy of a model."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.diagnosis.finding import Mend
from bnkit.surgery.conversion import convert
from bnkit.surgery.folding.arithmetic import affine_of
from bnkit.surgery.plan import replace_module


def drop_bias(layer: str, norms: dict[str, Tensor]) -> Mend:
    """Return the mend that takes the bias off `layer` and out of the running means after it.

    `norms` says by the path of a batch norm in which of its channels each feature of the layer
    lies, −1 for none. The model computes the same in both modes.
    """

    def change(model: nn.Module) -> None:
        biased: Any = model.get_submodule(layer)
        for path, channels in norms.items():
            norm: Any = model.get_submodule(path)
            if norm.running_mean is not None:
                kept = channels >= 0
                bias = biased.bias.detach()[kept].to(norm.running_mean)
                norm.running_mean[channels[kept]] -= bias
        biased.register_parameter("bias", None)

    return _in_copy(change)


def without_dropout(path: str) -> Mend:
    """Return the mend that puts an identity in the place of a dropout: the same in eval mode."""
    return _in_copy(lambda model: replace_module(model, path, nn.Identity()))


def merge_norms(first: str, second: str) -> Mend:
    """Return the mend that gives the first batch norm the affine map of the second, in its place.

    The second becomes an identity. The model computes the same in eval mode.
    """

    def change(model: nn.Module) -> None:
        norm: Any = model.get_submodule(first)
        affine = affine_of(model.get_submodule(second))
        scale, center, offset = (
            t.to(norm.weight) for t in (affine.scale, affine.center, affine.offset)
        )
        norm.bias.copy_(scale * (norm.bias - center) + offset)
        norm.weight.mul_(scale)
        replace_module(model, second, nn.Identity())

    return _in_copy(change)


def give_each_place_its_own(paths: list[str]) -> Mend:
    """Return the mend that puts a copy of the module at paths[0] at each other one of `paths`.

    The model computes the same in eval mode.
    """

    def change(model: nn.Module) -> None:
        for path in paths[1:]:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, copy.deepcopy(model.get_submodule(path)))

    return _in_copy(change)


def become(kind: str, path: str, **options: Any) -> Mend:
    """Return the mend that converts the batch norm at `path` to another kind, the same in eval."""
    return lambda model: convert(model, kind, where=lambda found, _: found == path, **options)


def _in_copy(change: Callable[[nn.Module], None]) -> Mend:
    def mend(model: nn.Module) -> nn.Module:
        changed = duplicate(model)
        with torch.inference_mode(mode=False), torch.no_grad():
            change(changed)
        return changed

    return mend
