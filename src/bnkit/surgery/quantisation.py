"""Layers that own a batch norm, in torch's eager quantisation: trained as the pairs that they are.

torch.ao looks layers up by their exact class, so it would pass over a class of ours in silence.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch.ao.nn.intrinsic as fused
import torch.ao.nn.intrinsic.qat as fused_qat
from torch import nn
from torch.ao.quantization import quantization_mappings as mappings

from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.observation import follow_mode

_PAIRS: dict[type[nn.Module], tuple[type[Any], type[Any], type[nn.Module]]] = {
    nn.Conv1d: (fused.ConvBn1d, fused_qat.ConvBn1d, nn.BatchNorm1d),
    nn.Conv2d: (fused.ConvBn2d, fused_qat.ConvBn2d, nn.BatchNorm2d),
    nn.Conv3d: (fused.ConvBn3d, fused_qat.ConvBn3d, nn.BatchNorm3d),
    nn.Linear: (fused.LinearBn1d, fused_qat.LinearBn1d, nn.BatchNorm1d),
}
_OURS = {BatchNorm1d: nn.BatchNorm1d, BatchNorm2d: nn.BatchNorm2d, BatchNorm3d: nn.BatchNorm3d}


def register(made: type[nn.Module], original: type[nn.Module], *, output: bool) -> None:
    """Tell torch.ao what layers of the class `made`, which own a batch norm, become.

    In quantisation-aware training (prepare_qat) those that normalise their own `output` become
    torch's pair of `original` and batch norm, with the same parameters. In static quantisation, and
    for others, convert and prepare_qat raise ValueError, which says to fold first.
    """
    trained = _Trained if output and original in _PAIRS else _Refused
    _enter(mappings.DEFAULT_QAT_MODULE_MAPPINGS, made, trained)
    _enter(mappings.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS, made, _Refused)


def _enter(table: MutableMapping[Callable[..., Any], Any], made: Any, becomes: Any) -> None:
    table[made] = becomes


class _Refused:
    @classmethod
    def from_float(cls, mod: nn.Module, **_options: Any) -> nn.Module:
        raise ValueError(
            f"a {type(mod).__name__} owns a batch norm, which torch's eager quantisation does not "
            f"know: fold it first (bnkit.fold(model, example)), or quantise an exported program"
        )


class _Trained:
    @classmethod
    def from_float(cls, mod: Any, **_options: Any) -> nn.Module:
        """Return torch's pair for quantisation-aware training; `mod` gives its parts to it."""
        norm = mod.batchnorm
        if type(norm) not in _OURS:
            return _Refused.from_float(mod)
        original: Any = type(mod).__bases__[1]
        pair, pair_qat, batch_norm = _PAIRS[original]
        plain: Any = batch_norm(norm.num_features, norm.eps, norm.momentum, norm.affine)
        follow_mode(plain, norm)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(plain, name, getattr(norm, name))
        qconfig = mod.qconfig
        del mod.batchnorm, mod.batchnorm_layout
        mod.__class__ = original
        made = pair(mod, plain)
        made.qconfig = qconfig
        return pair_qat.from_float(made)  # type: ignore[no-any-return]  # of torch, untyped
