import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.layers import BatchNorm1d, BatchNorm2d
from bnkit.layers.affine import ResidualActivation
from bnkit.surgery import SurgeryError, add
from bnkit.surgery.folding import fold, fold_away, plan_folding
from surgery.folding.states import randomised
from zoo.checks import fingerprint, random_state


def images():
    return torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def vectors(features=4):
    return torch.randn(5, features, generator=torch.Generator().manual_seed(0))


def block():
    return randomised(
        nn.Sequential(
            nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
        )
    )


def assert_same(changed, model, x, tolerance=1e-5):
    torch.testing.assert_close(
        changed.eval()(x), model.eval()(x), rtol=tolerance, atol=tolerance, equal_nan=False
    )


# What comes out


def test_a_folded_model_has_identities_and_biases():
    model = block()
    folded = fold(model, images())
    assert [type(m).__name__ for m in folded] == ["Conv2d", "Identity", "ReLU", "Conv2d"]
    assert folded[0].bias.shape == (6,)
    assert_same(folded, model, images())


def test_the_model_stays_as_it_is():
    model = block().train()
    before, state = fingerprint(model), random_state()
    folded = fold(model, images())
    assert (fingerprint(model), random_state()) == (before, state)
    assert folded[0].training
    assert folded[1].training


def test_the_plan_prints_what_goes_where_and_the_proof():
    plan = plan_folding(block(), images())
    lines = str(plan).splitlines()
    assert "fold into '0' (Conv2d)" in lines[2]
    assert lines[2].endswith("the layer before it")
    assert lines[-1].startswith("Same function: error ")
    assert plan.proof.error_in_float64 <= 1e-12
    assert json.loads(json.dumps(plan.to_json()))["edits"][0]["structure"] == {
        "operation": "fold_away",
        "layer": "1",
        "target": "0",
        "residual": False,
        "side": "before",
    }


def test_the_structure_of_a_plan_makes_the_keys_of_its_checkpoint():
    def build():
        return add(
            nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)), vectors()
        ).append(nn.Sequential(BatchNorm1d(2, activation="relu")))

    plan = plan_folding(build(), vectors())
    checkpoint = plan.apply(build()).state_dict()
    fresh = build()
    for edit in plan.edits:
        options = dict(edit.structure)
        assert options.pop("operation") == "fold_away"
        fold_away(fresh, options.pop("layer"), **options)
    fresh.load_state_dict(checkpoint)
    assert str(fresh) == str(plan.apply(build()))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_parameters_keep_their_dtype(dtype):
    model = block().to(dtype)
    folded = fold(model, images().to(dtype))
    assert {p.dtype for p in folded.parameters()} == {dtype}


def test_layers_in_half_precision_take_in_statistics_of_float32():
    model = nn.Sequential(nn.Linear(4, 3).bfloat16(), randomised(nn.BatchNorm1d(3)))
    folded = fold(model, vectors().bfloat16())
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_a_new_bias_trains_if_the_weight_or_the_shift_did(weight, shift):
    model = block()
    model[0].weight.requires_grad_(weight)
    model[1].bias.requires_grad_(shift)
    folded = fold(model, images())
    assert folded[0].weight.requires_grad == weight
    assert folded[0].bias.requires_grad == (weight or shift)


def test_an_old_bias_trains_as_before():
    model = randomised(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    model[0].bias.requires_grad_(False)
    folded = fold(model, vectors())
    assert (folded[0].weight.requires_grad, folded[0].bias.requires_grad) == (True, False)


def test_a_folded_model_trains_where_gradients_were_off():
    with torch.inference_mode():
        folded = fold(block(), images())
    folded(images()).sum().backward()
    assert folded[0].bias.grad is not None


def test_weights_keep_their_memory_format():
    model = block().to(memory_format=torch.channels_last)
    folded = fold(model, images())
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


# Activations and residuals


def test_an_activation_of_a_batch_norm_stays_in_its_place():
    model = randomised(nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3, activation="silu"), nn.Tanh()))
    folded = fold(model, vectors())
    assert isinstance(folded[1], nn.SiLU)
    assert_same(folded, model, vectors())


def test_an_activation_inside_of_an_owner_stays_there():
    model = add(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), vectors())
    model[0].batchnorm = BatchNorm1d(3, activation="relu")
    folded = fold(randomised(model), vectors())
    assert isinstance(folded[0].batchnorm, nn.ReLU)
    assert isinstance(folded[0], nn.Linear)
    assert_same(folded, model, vectors())


class Residual(nn.Module):
    def __init__(self, activation, *, same=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.same = BatchNorm2d(4, activation=activation), same

    def forward(self, x):
        x = self.a(x).relu()
        y = self.b(x)
        return self.norm(y, residual=y if self.same else x)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_sum_of_a_residual_stays_in_its_place(activation):
    model = randomised(Residual(activation))
    plan = plan_folding(model, images())
    folded = plan.apply(model)
    assert isinstance(folded.norm, ResidualActivation)
    assert plan.edits[0].structure["residual"]
    assert_same(folded, model, images())


def test_a_batch_norm_that_adds_what_it_normalises_is_left_alone():
    (left,) = plan_folding(randomised(Residual("relu", same=True)), images()).left_alone
    assert left.why == "its residual is its own input"


# Chains


def test_chains_of_batch_norms_go_into_one_layer_from_the_inside_out():
    model = randomised(
        nn.Sequential(
            nn.Linear(4, 3),
            *[nn.BatchNorm1d(3), nn.Dropout(), nn.BatchNorm1d(3)],
            nn.ReLU(),
            *[nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Identity()],
            nn.Linear(3, 2),
            nn.BatchNorm1d(2),
        )
    )
    plan = plan_folding(model, vectors())
    assert [(edit.layer, edit.action) for edit in plan.edits] == [
        ("1", "fold into '0' (Linear)"),
        ("3", "fold into '0' (Linear)"),
        ("9", "fold into '8' (Linear)"),
        ("6", "fold into '8' (Linear)"),
        ("5", "fold into '8' (Linear)"),
    ]
    assert plan.edits[1].why == "the layer before it, 2 calls away that only move values"
    assert_same(plan.apply(model), model, vectors())


def test_own_batch_norms_and_those_beside_them_go_into_one_layer():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = randomised(nn.Sequential(*add(plain, vectors())).insert(1, nn.BatchNorm1d(3)))
    plan = plan_folding(model, vectors())
    assert [edit.layer for edit in plan.edits] == ["0.batchnorm", "1"]
    folded = plan.apply(model)
    assert type(folded[0]) is nn.Linear
    assert_same(folded, model, vectors())


# What is left alone


def left_alone(model, example, **options):
    plan = plan_folding(model, example, **options)
    return {left.layer: left.why for left in plan.left_alone}


def test_where_gets_paths_and_batch_norms_of_the_model_itself():
    model = randomised(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    seen = []

    def where(path, norm):
        seen.append(path)
        assert norm is model.get_submodule(path)
        return path == "1"

    assert left_alone(model, vectors(), where=where) == {"2": "`where` did not choose it"}
    assert seen == ["1", "2"]


def test_functions_are_listed():
    class ByFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x):
            return F.batch_norm(self.fc(x), self.mean, self.variance)

    assert left_alone(ByFunction(), vectors()) == {
        "batch_norm()": "called as a function: no layer can be replaced"
    }


def test_a_layer_in_half_precision_that_would_overflow_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, eps=1e-12)).half()
    model[1] = model[1].float()
    nn.init.zeros_(model[1].running_var)
    assert left_alone(model, vectors().half(), tolerance=1e9)["1"].startswith(
        "before it: the weight or bias of '0' (Linear) would not be finite in torch.float16"
    )


# Errors


def test_a_model_without_batch_norms_is_told_so():
    with pytest.raises(SurgeryError, match=r"nothing in this model can be folded: it has no batch"):
        fold(nn.Linear(4, 3), vectors())


def test_reasons_are_given_where_nothing_can_be_folded():
    message = (
        r"^nothing in this model can be folded\. 1 \(BatchNorm1d\): before it: '0' \(ReLU\) stands "
        r"between it and a weight layer; after it: what '1' \(BatchNorm1d\) makes leaves the model$"
    )
    with pytest.raises(SurgeryError, match=message):
        fold(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), vectors())
    with pytest.raises(SurgeryError, match="nothing that `where` chose can be folded"):
        fold(block(), images(), where=lambda *_: False)


def test_a_long_list_of_reasons_is_cut():
    model = nn.Sequential(*(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()) for _ in range(12)))
    with pytest.raises(SurgeryError, match=r"; and 4 more, which plan_folding lists$"):
        fold(model, vectors())


def test_a_model_that_asks_its_batch_norm_for_more_is_told_so():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.fc(x)) * self.norm.num_features

    model = randomised(Asking())
    before = fingerprint(model)
    with pytest.raises(SurgeryError, match=r"'Identity' object has no attribute 'num_features'"):
        fold(model, vectors())
    assert fingerprint(model) == before


def test_more_rounding_than_the_tolerance_is_an_error():
    with pytest.raises(SurgeryError, match="does not compute the same"):
        fold(block(), images(), tolerance=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_parameters_keep_their_device():
    folded = fold(block().cuda(), images().cuda())
    assert {p.device.type for p in folded.parameters()} == {"cuda"}
