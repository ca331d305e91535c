import copy
import pickle

import pytest
import torch
from torch import nn

from bnkit.kernels.activations import ACTIVATIONS
from bnkit.layers import finished

X = {
    rank: torch.randn(4, 6, *[5] * rank, generator=torch.Generator().manual_seed(rank))
    for rank in (1, 2, 3)
}
KINDS = [
    (finished.FinishedBatchNorm1d, nn.BatchNorm1d, (6,), 1),
    (finished.FinishedBatchNorm2d, nn.BatchNorm2d, (6,), 2),
    (finished.FinishedBatchNorm3d, nn.BatchNorm3d, (6,), 3),
    (finished.FinishedGroupNorm, nn.GroupNorm, (2, 6), 2),
    (finished.FinishedInstanceNorm1d, nn.InstanceNorm1d, (6,), 1),
    (finished.FinishedInstanceNorm2d, nn.InstanceNorm2d, (6,), 2),
    (finished.FinishedInstanceNorm3d, nn.InstanceNorm3d, (6,), 3),
]
EVERY_KIND = pytest.mark.parametrize(
    ("ours", "theirs", "arguments", "rank"), KINDS, ids=lambda value: getattr(value, "__name__", "")
)


@EVERY_KIND
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_it_is_torchs_layer_then_the_residual_then_the_activation(
    ours, theirs, arguments, rank, activation
):
    layer, plain, x = ours(*arguments, activation=activation), theirs(*arguments), X[rank]
    expected = ACTIVATIONS[activation].function(plain(x) + x)
    assert torch.equal(layer(x, residual=x), expected)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@EVERY_KIND
def test_it_copies_and_pickles(ours, theirs, arguments, rank):
    layer = ours(*arguments, activation="relu")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert isinstance(twin, theirs)
        assert torch.equal(twin(X[rank]), layer(X[rank]))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"`activation` is 'swish': choose one of None, 'relu'"):
        finished.FinishedBatchNorm2d(3, activation="swish")
