"""What each verb holds at one time, beside the model that it is given."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import bnkit

WIDTH = 256


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that were made in its block and are alive, at their most."""

    def __init__(self, model):
        super().__init__()
        self.given = {t.untyped_storage()._cdata for t in model.state_dict().values()}
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:  # else a view of the model itself
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.made = {key: each for key, each in self.made.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return result


def plain():
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


def normalised():
    torch.manual_seed(0)
    block = (nn.Linear, nn.BatchNorm1d, nn.ReLU)
    blocks = [(block[0](WIDTH, WIDTH), block[1](WIDTH), block[2]()) for _ in range(8)]
    return nn.Sequential(*(layer for each in blocks for layer in each)).eval()


X = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
VERBS = {
    "add": (plain, lambda model: bnkit.add(model, X)),
    "insert": (plain, lambda model: bnkit.insert(model, [X, X])),
    "fold": (normalised, lambda model: bnkit.fold(model, X)),
    "remove": (normalised, lambda model: bnkit.remove(model, X)),
    "accelerate": (normalised, lambda model: bnkit.accelerate(model, X)),
    "convert": (normalised, lambda model: bnkit.convert(model, "frozen", X)),
    "convert to group": (
        normalised,
        lambda model: bnkit.convert(model, "group", [X, X], num_groups=4),
    ),
    "standardize": (plain, lambda model: bnkit.standardize(model, [X, X])),
}


def bytes_of(model):
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize(("build", "verb"), VERBS.values(), ids=VERBS)
def test_a_verb_holds_at_most_four_times_the_model_beside_it(build, verb):
    model = build()
    with Live(model) as live:
        verb(model)
    assert live.peak <= 4 * bytes_of(model)  # the result included
