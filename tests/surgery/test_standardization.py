import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bnkit import SurgeryError
from bnkit.batches import NoBatchesError
from bnkit.surgery.optimizers import rebind
from bnkit.surgery.standardization import plan_standardization, standardize, standardize_input
from bnkit.surgery.standardized import Standardize
from cases import seeded
from models import MODELS
from zoo.catalogue import conv, dense, images, sequences, vectors
from zoo.checks import call, fingerprint, memory, random_state


def normal(*shape, shift=0.0, scale=1.0, dtype=torch.float32):
    values = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    return (values * scale + shift).to(dtype)


def features_last(values, axis):
    return values.double().movedim(axis, -1).flatten(0, -2)


# What is computed


SHAPES = {
    "dense": (nn.Identity, (35, 3), 1),
    "images": (nn.Identity, (35, 3, 4, 5), 1),
    "signals": (nn.Identity, (35, 3, 7), 1),
    "sequences with features last": (nn.Identity, (35, 7, 3), -1),
}


@pytest.mark.parametrize(("build", "shape", "axis"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("shift", [0.0, 1e4], ids=["near zero", "far from zero"])
def test_the_training_inputs_get_mean_0_and_variance_1(build, shape, axis, shift):
    data = normal(*shape, shift=shift, scale=3.0)
    batches = [(batch, None) for batch in data.split(8)]  # uneven: 8, 8, 8, 8, 3
    net = standardize(build(), batches, channel_axis=axis)
    rows = features_last(data, axis)
    torch.testing.assert_close(net.standardize.mean, rows.mean(0).float(), rtol=1e-7, atol=1e-7)
    expected = rows.std(0, unbiased=False).float()
    torch.testing.assert_close(net.standardize.std, expected, rtol=1e-6, atol=0)
    outputs = features_last(net(data), axis)
    assert outputs.mean(0).abs().max() < 1e-6 + shift * 2**-24  # half an ulp of the mean
    torch.testing.assert_close(
        outputs.var(0, unbiased=False), torch.ones(3).double(), rtol=1e-5, atol=0
    )


def test_the_result_is_the_model_on_inputs_that_are_standardised_by_hand():
    model, data = nn.Sequential(conv(), nn.ReLU(), conv()), images() * 3 + 5
    by_hand = (data - data.mean((0, 2, 3), keepdim=True)) / data.std(
        (0, 2, 3), keepdim=True, unbiased=False
    )
    net = standardize(model, data)
    torch.testing.assert_close(net(data), model(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(net(data), model(data), rtol=1e-2)


@pytest.mark.parametrize(
    "constant",
    [0.1, 1e4, -3.0, 0.0],  # 0.1 is no binary number: its mean over 7 rows is rounded
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_constant_features_become_zero_and_are_left_unscaled(constant, dtype):
    data = normal(7, 3, dtype=dtype)
    data[:, 1] = constant
    net = standardize(nn.Identity(), list(data.split(3)))
    assert net.standardize.std[1] == 1
    assert torch.equal(net(data)[:, 1], torch.zeros(7, dtype=dtype))
    moved = data.clone()
    moved[:, 1] += 1
    assert torch.equal(net(moved)[:, 1], moved[:, 1] - data[:, 1])


def test_a_feature_that_is_constant_in_each_mini_batch_only_is_scaled():
    batches = [torch.zeros(2, 1), torch.ones(2, 1)]
    assert standardize(nn.Identity(), batches).standardize.std.tolist() == [0.5]


def test_a_spread_that_float32_cannot_hold_is_left_unscaled():
    data = torch.tensor([[0.0], [1e-45]])
    assert standardize(nn.Identity(), data).standardize.std.tolist() == [1.0]


# Dtypes


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_become_floats_of_the_models_dtype(dtype):
    data = torch.arange(0, 96).reshape(8, 4, 3, 1).to(dtype)
    reference = standardize(nn.Identity(), data.double()).standardize
    for wanted in (torch.float32, torch.bfloat16, torch.float64):
        net = standardize(conv().to(wanted), data)
        assert net(data).dtype == wanted
        torch.testing.assert_close(net.standardize.std.double(), reference.std, rtol=1e-6, atol=0)
    assert standardize(nn.Identity(), data)(data).dtype == torch.float32


def test_large_integers_lose_nothing():
    data = torch.tensor([[1_700_000_000], [1_700_000_001], [1_700_000_002]])
    outputs = standardize(nn.Identity(), data)(data)
    torch.testing.assert_close(outputs.flatten().tolist(), [-(1.5**0.5), 0.0, 1.5**0.5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floats_keep_their_dtype_and_statistics_are_float32_at_least(dtype):
    data = normal(40, 3, shift=20, dtype=dtype)
    net = standardize(nn.Identity(), data)
    assert net(data).dtype == dtype
    assert net.standardize.mean.dtype == torch.promote_types(dtype, torch.float32)
    rows = data.double()
    expected = ((rows - rows.mean(0)) / rows.std(0, unbiased=False)).to(dtype)
    torch.testing.assert_close(net(data), expected)


def test_gradients_pass_to_the_inputs():
    data = normal(6, 2).double()
    net = standardize(nn.Linear(2, 1).double(), data)
    assert torch.autograd.gradcheck(net, data.requires_grad_())


# What comes back


def test_the_layer_is_in_the_state_dict_and_the_models_names_follow_its_path():
    net = standardize(nn.Sequential(dense(), nn.BatchNorm1d(4)), vectors())
    assert list(net.state_dict()) == [
        *("standardize.mean", "standardize.std"),
        *(f"model.{name}" for name in nn.Sequential(dense(), nn.BatchNorm1d(4)).state_dict()),
    ]
    assert [name for name, _ in net.named_parameters()] == [
        *("model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias")
    ]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_model_stays_as_it_is_and_shares_nothing(model):
    subject, example = model.seeded(), model.example()
    if not isinstance(example, torch.Tensor) or not example.is_floating_point():
        pytest.skip("its input is not a tensor of numbers")
    before, state = fingerprint(subject), random_state()
    net = standardize(subject, [example])
    assert fingerprint(subject) == before
    assert random_state() == state
    assert not memory(net) & memory(subject)
    assert net.training == net.standardize.training == subject.training
    standardised = net.standardize(example)
    torch.testing.assert_close(
        call(net.eval(), example), call(subject.eval(), standardised), equal_nan=True
    )


def test_the_result_can_be_copied_and_pickled_and_trained():
    net = standardize(nn.Sequential(dense(), nn.BatchNorm1d(4)), vectors())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(vectors()), net(vectors()))
    net(vectors()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_result_compiles_in_one_graph():
    net = standardize(nn.Sequential(dense(), nn.ReLU()), vectors())
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(compiled(vectors()), net(vectors()))


def test_an_optimizer_goes_on_with_the_copy():
    model = dense()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    net = standardize(model, vectors())
    rebound = rebind(optimizer, model, net.model)
    assert {id(p) for p in rebound.param_groups[0]["params"]} == {id(p) for p in net.parameters()}


def test_a_result_made_where_gradients_are_off_can_be_trained():
    with torch.inference_mode():
        net = standardize(dense(), vectors() + 0)
    net(vectors()).sum().backward()
    assert not any(t.is_inference() for t in net.state_dict().values())


# Several inputs


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = dense()

    def forward(self, image, scale=None, *, shift=0.0):
        return self.fc(image) * (1.0 if scale is None else scale) + shift


X, SCALE = vectors() * 3 + 7, vectors() ** 2
CALLS = {
    "by position": ((X, SCALE), {}),
    "by name": ((), {"image": X, "scale": SCALE}),
    "in both ways": ((X,), {"scale": SCALE}),
}


@pytest.mark.parametrize("given", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("argument", ["image", 0])
def test_of_several_inputs_one_is_chosen_and_the_others_pass(given, argument):
    if given[1].keys() >= {"image"} and argument == 0:
        argument = "image"
    model = Two()
    net = standardize(model, [given], argument=argument, inputs=lambda batch: batch)
    expected = model((X - X.mean(0)) / X.std(0, unbiased=False), SCALE)
    for args, kwargs in CALLS.values():  # whichever way it is called in afterwards
        torch.testing.assert_close(net(*args, **kwargs), expected, rtol=1e-4, atol=1e-4)


def test_inputs_that_come_by_keyword_only_can_be_chosen():
    net = standardize(Two(), {"image": X, "shift": SCALE}, argument="shift")
    torch.testing.assert_close(
        net(image=X, shift=SCALE), net.model(image=X, shift=net.standardize(SCALE))
    )
    net(X)  # an optional one may be left out


def test_a_choice_that_is_open_or_wrong_is_refused_with_what_there_is():
    described = (
        r"Two is called with 'image', a tensor of shape \(6, 4\) and torch.float32; 'scale', a "
        r"tensor of shape \(6, 4\) and torch.float32: choose, by its name or position, the one to"
    )
    for argument in (None, "picture", 2):
        with pytest.raises(ValueError, match=rf"^`argument` is {argument!r}, and {described}"):
            standardize(Two(), [((X, SCALE), None)], argument=argument)


# The plan


def test_the_plan_says_what_is_done_and_can_be_written_down():
    data = normal(10, 3)
    data[:, 0] = 2.0
    plan = plan_standardization(nn.Identity(), list(data.split(4)), channel_axis=-1)
    (edit,) = plan.edits
    assert (edit.layer, edit.kind) == ("", "Identity")
    assert edit.action == "standardise 'input': 3 features on axis -1"
    assert edit.why.startswith("10 values per feature, means -0.")
    assert edit.why.endswith(", 1 constant and left unscaled")
    assert plan.batches == 3
    assert "(the model)" in str(plan)
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


def test_a_checkpoint_fits_what_the_plans_structure_makes_of_a_fresh_model():
    plan = plan_standardization(dense(), vectors().double())
    saved = plan.apply(dense()).state_dict()
    structure = {**plan.edits[0].structure}
    assert structure.pop("operation") == "standardize_input"
    net = standardize_input(dense(), **structure)
    assert net.load_state_dict(saved).missing_keys == []
    assert {k: v.dtype for k, v in net.state_dict().items()} == {
        key: value.dtype for key, value in saved.items()
    }
    assert torch.equal(net(vectors()), plan.apply(net.model)(vectors()))


def test_a_plan_can_be_applied_to_several_models():
    plan = plan_standardization(dense(), vectors())
    first, second = plan.apply(dense()), plan.apply(nn.Tanh())
    assert torch.equal(first.standardize.mean, second.standardize.mean)
    assert not memory(first.standardize) & memory(second.standardize)


def test_a_plan_returns_what_the_model_is_behind_where_it_changes_the_model_itself():
    model = dense()
    assert plan_standardization(dense(), vectors()).change(model).model is model


# Errors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_inputs_that_are_not_finite_are_refused_by_mini_batch_and_feature(value):
    model = dense().double()
    before = fingerprint(model)
    batches = [vectors().double() for _ in range(3)]
    batches[1][4, 2] = value
    message = (
        r"^mini-batch 2 gives 'input' with values in feature 2 that are not finite \(NaN, "
        r"infinite, or too large for their squares\): fix them, or leave the mini-batch out$"
    )
    with pytest.raises(ValueError, match=message):
        standardize(model, batches)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("batches", "axis", "error", "message"),
    [
        ([], 1, NoBatchesError, "`batches` gave no mini-batch: the list is empty"),
        ([torch.zeros(0, 4)], 1, ValueError, r"of shape \(0, 4\) .*, which is empty: leave it out"),
        ([torch.ones(1, 4)], 1, ValueError, "`batches` give 1 value per feature, and one value"),
        ([torch.zeros(4)], 1, ValueError, r"shape \(4,\) .*`channel_axis` is 1: it must be the"),
        (
            [torch.zeros(4, 4)],
            2,
            ValueError,
            "`channel_axis` is 2: it must be the axis of the feat",
        ),
        ([torch.zeros(4, 4)], -2, ValueError, "`channel_axis` is -2: .* beside axis 0"),
        (
            [torch.zeros(4, 4), torch.zeros(4, 5)],
            1,
            ValueError,
            r"^mini-batch 2 gives 'input', a tensor of shape \(4, 5\) .* had 4 features on axis 1",
        ),
        ([torch.zeros(4, 4) > 0], 1, TypeError, "torch.bool: only tensors of real numbers can be"),
        ([torch.zeros(4, 4) + 0j], 1, TypeError, "torch.complex64: only tensors of real numbers"),
        ([({"input": [1, 2]}, 0)], 1, ValueError, "Linear is called with 'input', a list: choose"),
        (5, 1, TypeError, "`batches` is a int: pass a DataLoader or another iterable"),
    ],
    ids=[
        *("none", "empty", "one value", "no features", "no such axis", "the axis of the batch"),
        *("other features", "bool", "complex", "a list", "no batches"),
    ],
)
def test_inputs_without_statistics_are_refused(batches, axis, error, message):
    model = dense()
    before, state = fingerprint(model), random_state()
    with pytest.raises(error, match=message):
        standardize(model, batches, channel_axis=axis)
    assert fingerprint(model) == before
    assert random_state() == state


def test_an_error_of_the_loader_passes_through():
    def loader():
        yield vectors()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        standardize(dense(), loader())


def test_an_iterator_is_read_once():
    net = standardize(dense(), iter([vectors(), vectors() + 1]))
    assert torch.equal(
        net.standardize.mean, standardize(dense(), [vectors(), vectors() + 1]).standardize.mean
    )


def test_indices_are_refused_where_the_model_runs_on_them():
    model, ids = nn.Embedding(9, 2), torch.arange(8).reshape(4, 2)
    before = fingerprint(model)
    message = (
        r"^with standardised inputs the model fails on the first mini-batch: RuntimeError: .* Is "
        r"what it takes a number, and no index or mask\? `argument=` chooses among several$"
    )
    with pytest.raises(SurgeryError, match=message):
        standardize(model, ids)
    assert fingerprint(model) == before


def test_a_model_is_standardised_once():
    net = standardize(dense(), vectors())
    message = r"^`model` is a Standardized, .* already: pass its .model to do it anew$"
    with pytest.raises(ValueError, match=message):
        standardize(net, vectors())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (len, "`model` is a builtin_function_or_method: pass a torch.nn.Module"),
        (nn.DataParallel(dense()), "the model is a DataParallel: pass its .module"),
    ],
    ids=["no module", "wrapped"],
)
def test_what_hides_its_layers_is_refused(model, message):
    with pytest.raises(TypeError, match=message):
        standardize(model, vectors())


def test_inputs_with_other_features_are_refused_in_use():
    message = (
        r"^`input` of shape \[5, 3, 4\] must have 4 features on axis 1, as the inputs had by which "
        r"it is standardised$"
    )
    with pytest.raises(ValueError, match=message):
        standardize(nn.Identity(), vectors())(sequences())
    with pytest.raises(ValueError, match=r"`input` of shape \[4\] must have 4 features on axis 1"):
        Standardize(4)(torch.zeros(4))


def test_only_the_whole_model_can_be_behind_the_layer():
    options = dict.fromkeys(("argument", "position")) | {"num_features": 1, "channel_axis": 1}
    with pytest.raises(ValueError, match="`layer` is '0': only what the whole model '' is given"):
        standardize_input(nn.Sequential(dense()), "0", **options, dtype="float32")
