"""Mends of the structure: what is left out, merged, unshared, converted, and given other signs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.diagnosis.mend import Mend, Step, altering, in_turn
from bnkit.surgery import alterations
from bnkit.surgery.conversion import plan_conversion
from bnkit.surgery.folding.arithmetic import affine_of
from bnkit.surgery.folding.folding import plan_folding


def drop_bias(layer: str, norms: Mapping[str, Tensor]) -> Mend:
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
        alterations.drop_bias(model, layer)

    return altering(layer, "drop_bias", change, action="drop the bias", needs=[*norms])


def without_dropout(path: str) -> Mend:
    """Return the mend that puts an identity in the place of a dropout: the same in eval mode."""

    def change(model: nn.Module) -> None:
        alterations.leave_out(model, path)

    return altering(path, "leave_out", change, action="become Identity")


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
        alterations.leave_out(model, second)

    action = f"become a part of '{first}'"
    return altering(second, "leave_out", change, action=action, needs=[first, second])


def give_each_place_its_own(paths: list[str]) -> Mend | None:
    """Return the mend that puts a copy of the module at paths[0] at each other one of `paths`.

    The model computes the same in eval mode. None for a single path.
    """

    def unsharing(path: str) -> Mend:
        def change(model: nn.Module) -> None:
            alterations.unshare(model, path)

        return altering(path, "unshare", change, action="become a copy", needs=[path])

    return in_turn(*map(unsharing, paths[1:]))


def turn_signs(layer: str, norm: str, channels: Tensor) -> Mend:
    """Return the mend that makes every γ of `norm` positive, where `layer` alone feeds it.

    `channels` says in which channel each feature of the layer lies, −1 for none. Weights, biases
    and running means of the channels turn their signs with γ, so that the model computes the same
    in both modes, to the bit.
    """

    def change(model: nn.Module) -> None:
        feeding, fed = (_as_any(model.get_submodule(path)) for path in (layer, norm))
        turned = fed.weight < 0
        rows = turned[channels.clamp(min=0)] & (channels >= 0).to(turned.device)
        _turn(feeding.weight, rows, axis=_axis_of_features(feeding))
        for values, where in ((feeding.bias, rows), (fed.running_mean, turned)):
            if values is not None:
                _turn(values, where, axis=0)
        _turn(fed.weight, turned, axis=0)

    return altering(norm, "write_values", change, action="turn signs", needs=[norm])


def _as_any(module: nn.Module) -> Any:
    return module


def _axis_of_features(layer: nn.Module) -> int:
    return 1 if "Transpose" in type(layer).__name__ else 0


def _turn(values: Tensor, where: Tensor, *, axis: int) -> None:
    signs = torch.where(where, -1, 1).to(values)
    values.mul_(signs.view([-1 if a == axis else 1 for a in range(values.dim())]))


def become(kind: str, path: str, **options: Any) -> Mend:
    """Return the mend that converts the batch norm at `path` to another kind, the same in eval."""

    def chosen(found: str, _layer: nn.Module) -> bool:
        return found == path

    return Mend((Step(lambda model: plan_conversion(model, kind, where=chosen, **dict(options))),))


def fold_away(paths: list[str], example: Any) -> Mend:
    """Return the mend that folds these batch norms into weight layers: the same in eval mode."""
    chosen = frozenset(paths)
    return Mend(
        (Step(lambda model: plan_folding(model, example, where=lambda path, _: path in chosen)),)
    )
