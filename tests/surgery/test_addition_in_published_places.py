"""Where published networks have batch norm: both modes, gates, linear convs."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.surgery import plan_addition

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """A head that runs in training alone."""

    def __init__(self):
        super().__init__()
        self.c, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        layers = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.aux = nn.Sequential(*layers, nn.Linear(8, 2))

    def forward(self, x):
        x = torch.relu(self.c(x))
        y = self.head(x.mean((2, 3)))
        return (y, self.aux(x)) if self.training else y


class Gated(nn.Module):
    """Squeeze and excitation, by convs or by dense layers."""

    def __init__(self, *, dense):
        super().__init__()
        self.c, self.dense = nn.Conv2d(3, 8, 3, bias=False), dense
        self.fc1 = nn.Linear(8, 4) if dense else nn.Conv2d(8, 4, 1)
        self.fc2 = nn.Linear(4, 8) if dense else nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.c(x))
        s = x.mean((2, 3), keepdim=not self.dense)
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(s))))
        return self.head(x * (s[:, :, None, None] if self.dense else s))


class Bottleneck(nn.Module):
    """A linear bottleneck with a depthwise conv, as in MobileNetV2, and a sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + self.project(self.depthwise(x))
        return self.head(x.mean((2, 3)))


def places(model, **options):
    return [edit.layer for edit in plan_addition(model, IMAGES, **options).edits]


def test_a_head_of_training_is_judged_by_training_mode():
    assert places(Auxiliary()) == ["c", "aux.0"]
    twin = bnkit.add(Auxiliary(), IMAGES).train()
    assert twin(IMAGES)[1].shape == (4, 2)
    assert twin.aux[0].batchnorm.num_batches_tracked == 1


def test_insertion_leaves_it_alone_since_nothing_measures_it_in_eval_mode():
    plan = bnkit.surgery.plan_insertion(Auxiliary(), [IMAGES, IMAGES])
    assert [edit.layer for edit in plan.edits] == ["c"]
    assert "not called on this example in eval mode" in {left.why for left in plan.left_alone}


def test_convs_after_a_global_pooling_and_gates_are_left_alone():
    plan = plan_addition(Gated(dense=False), IMAGES)
    assert [edit.layer for edit in plan.edits] == ["c"]
    why = {left.layer: left.why for left in plan.left_alone}
    assert why["fc1"].startswith("its output has one place per sample, after mean(): a batch norm")
    assert why["fc2"].startswith("its output has one place per sample")
    bnkit.add(Gated(dense=False), IMAGES).train()(IMAGES[:1])  # one sample is enough, as before


def test_a_hidden_dense_layer_is_normalised_and_a_dense_gate_is_not():
    plan = plan_addition(Gated(dense=True), IMAGES)
    assert [edit.layer for edit in plan.edits] == ["c", "fc1"]
    why = {left.layer: left.why for left in plan.left_alone}
    assert why["fc2"].startswith("a gate: sigmoid() follows, whose result only multiplies another")


def test_one_place_of_a_small_example_is_no_reason():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    assert [e.layer for e in plan_addition(model, IMAGES[:, :, :4, :4]).edits] == ["0", "2"]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("before_activation", ["first"]), ("every_conv", ["first", "depthwise", "project"])],
)
def test_every_conv_has_the_places_of_linear_bottlenecks(placement, expected):
    assert places(Bottleneck(), placement=placement) == expected


def test_insertion_takes_every_conv_too():
    plan = bnkit.surgery.plan_insertion(Bottleneck(), [IMAGES], placement="every_conv")
    assert len(plan.edits) == 3
    assert plan.proof.error_in_float64 < 1e-14
