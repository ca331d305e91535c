"""Classes that pickles of bnkit 0.1 hold: what `convert` made of layers with an activation.

They were instances of torch's classes, so tools that replace these dropped the activation. What is
unpickled is an `ActivatedNorm` around torch's own class.
"""

from typing import Any

from torch import nn

from bnkit.layers.activated import enclose


class _Finished(nn.Module):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        activation = vars(self).pop("activation", None)
        self.__class__ = type(self).__bases__[1]
        enclose(self, activation)


class FinishedBatchNorm1d(_Finished, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, then a residual and an activation."""


class FinishedBatchNorm2d(_Finished, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, then a residual and an activation."""


class FinishedBatchNorm3d(_Finished, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, then a residual and an activation."""


class FinishedGroupNorm(_Finished, nn.GroupNorm):
    """torch.nn.GroupNorm, then a residual and an activation."""


class FinishedInstanceNorm1d(_Finished, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, then a residual and an activation."""


class FinishedInstanceNorm2d(_Finished, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, then a residual and an activation."""


class FinishedInstanceNorm3d(_Finished, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, then a residual and an activation."""
