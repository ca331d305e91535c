import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.surgery import plan_addition
from bnkit.surgery.placement import layer_kind
from models import MODELS
from zoo.catalogue import Net, dense, vectors


def test_the_kind_of_a_layer_is_that_of_torch():
    class Mine(nn.ConvTranspose1d):
        pass

    assert layer_kind(Mine(1, 1, 1)) is nn.ConvTranspose1d
    assert layer_kind(nn.Linear(1, 1)) is nn.Linear


class Odd(Net):
    """Layers that are left alone, each for another reason."""

    def parts(self):
        names = "unused twice forwarded read one_of_two other_of_two raw squared normed head"
        return {name: dense() for name in names.split()} | {"norm": nn.LayerNorm(4)}

    def __init__(self):
        super().__init__()
        self.other_of_two.weight = self.one_of_two.weight

    def forward(self, x):
        x = self.twice(self.twice(x).relu()).relu()
        x = self.forwarded.forward(x).relu()
        x = self.read(x).relu() @ self.read.weight
        x = self.other_of_two(self.one_of_two(x).relu()).relu()
        x = self.raw(x)
        x = self.squared(x).square()
        x = self.norm(self.normed(x)).relu()
        x = F.linear(x, torch.eye(4)).relu()
        return self.head(x)


REASONS = {
    "unused": "not called on this example in eval mode",
    "twice": "called 2 times in one forward: its outputs have several distributions",
    "forwarded": "not called itself: linear() reads its parameters",
    "read": "its parameters are shared: matmul() reads them too",
    "one_of_two": "its parameters are shared with 'other_of_two'",
    "other_of_two": "its parameters are shared with 'one_of_two'",
    "raw": "no activation follows: 'squared' (Linear) reads its output first",
    "squared": "no activation follows: square() reads its output first",
    "normed": "already normalised: 'norm' (LayerNorm) follows",
    "head": "output layer: its result leaves the model",
    "linear()": "called without a module that could own it",
}


@pytest.mark.parametrize(("layer", "why"), REASONS.items(), ids=REASONS)
def test_reasons_are_exact(layer, why):
    plan = plan_addition(Odd(), vectors())
    found = {left.layer: left.why for left in plan.left_alone}
    assert found[layer] == why


@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_rows_are_in_the_order_of_the_model_and_functions_last(model, placement):
    plain = model.seeded()
    plan = plan_addition(plain, model.example(), placement=placement)
    order = [path for path, _ in plain.named_modules()]
    for rows in (plan.edits, plan.left_alone):
        known = [order.index(row.layer) for row in rows if row.layer in order]
        assert known == sorted(known)
        assert all(row.layer in order for row in rows[: len(known)])


def test_a_layer_whose_result_nobody_reads_is_left_alone():
    class Wasteful(Net):
        def parts(self):
            return {"a": dense(), "head": dense()}

        def forward(self, x):
            self.a(x)
            return self.head(x)

    (left, _) = plan_addition(Wasteful(), vectors()).left_alone
    assert left.why == "no activation follows: bnkit cannot find what uses its output"


def test_the_vector_of_one_example_is_no_mini_batch():
    (left, _) = plan_addition(nn.Sequential(dense(), nn.ReLU(), dense()), vectors()[0]).left_alone
    assert (
        left.why == "its output of shape (4,) is not a mini-batch: add a batch axis to the example"
    )


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_dense_conv_and_recurrent_layer_has_one_row(model):
    plain = model.seeded()
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)
    layers = {path for path, module in plain.named_modules() if isinstance(module, kinds)}
    plan = plan_addition(plain, model.example())
    rows = [row.layer for row in (*plan.edits, *plan.left_alone) if row.kind != "function"]
    assert sorted(rows) == sorted(layers)
