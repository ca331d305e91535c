import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import ExampleError, SurgeryError
from bnkit.surgery.insertion import insert, plan_insertion
from zoo.catalogue import Net, conv, dense, images, sequences, vectors
from zoo.checks import fingerprint, memory, random_state
from zoo.layers import KINDS, followed

PLACEMENTS = ("before_activation", "after_activation")
EPS = 1e-5


def uneven(kind):
    """Return mini-batches of 5, 1 and 3 for a kind of layer."""
    random = torch.Generator().manual_seed(1)
    shape = KINDS[kind][1][1:]
    return [torch.randn(n, *shape, generator=random).double() * n + n for n in (5, 1, 3)]


def by_torch(values, *, features_last):
    """Return mean and unbiased variance of each feature, of all values at once."""
    axis = -1 if features_last else 1
    rows = values.movedim(axis, 0).flatten(1)
    return rows.mean(1), rows.var(1)


def assert_undoes(norm, mean, variance, *, absorbed=0.0, batches=3):
    torch.testing.assert_close(norm.running_mean, mean - absorbed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.weight, (variance + EPS).sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.bias, mean, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == batches


# Statistics, by hand


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_activation_the_statistics_are_those_of_the_output_without_its_bias(kind):
    torch.manual_seed(0)
    plain, batches = followed(kind).double().eval(), uneven(kind)
    changed = insert(plain, batches).eval()
    outputs = torch.cat([plain.layer(x) for x in batches])
    mean, variance = by_torch(outputs, features_last=isinstance(plain.layer, nn.Linear))
    bias = 0.0 if plain.layer.bias is None else plain.layer.bias
    assert_undoes(changed.layer.batchnorm, mean, variance, absorbed=bias)
    assert changed.layer.bias is None
    for x in batches:
        torch.testing.assert_close(changed(x), plain(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_activation_the_statistics_are_those_of_what_it_makes(kind):
    torch.manual_seed(0)
    plain, batches = followed(kind).double().eval(), uneven(kind)
    changed = insert(plain, batches, placement="after_activation").eval()
    made = torch.cat([plain.layer(x).relu() for x in batches])
    features_last = isinstance(plain.layer, nn.Linear)
    assert_undoes(changed.act.batchnorm, *by_torch(made, features_last=features_last))
    assert (changed.layer.bias is None) == (plain.layer.bias is None)
    for x in batches:
        torch.testing.assert_close(changed(x), plain(x), rtol=1e-13, atol=1e-13)


class Functional(Net):
    """Functional activations; the second layer pads what the first has made."""

    def parts(self):
        return {"a": conv(), "b": conv(4, 6), "head": dense(6, 3)}

    def forward(self, x):
        x = F.relu(self.b(self.a(x).sigmoid() + 1))
        return self.head(x.mean((2, 3)))


def test_for_functional_activations_it_is_the_input_of_the_next_layer_before_it_pads():
    torch.manual_seed(0)
    plain, batches = Functional().double().eval(), [images().double(), images().double()[:1] + 3]
    changed = insert(plain, batches, placement="after_activation").eval()
    first = torch.cat([plain.a(x).sigmoid() + 1 for x in batches])
    second = torch.cat([plain.b(plain.a(x).sigmoid() + 1).relu().mean((2, 3)) for x in batches])
    mean, variance = by_torch(first, features_last=False)
    assert_undoes(changed.b.batchnorm, mean, variance, batches=2)
    assert_undoes(changed.head.batchnorm, second.mean(0), second.var(0), batches=2)
    torch.testing.assert_close(changed(batches[1]), plain(batches[1]), rtol=1e-13, atol=1e-13)


class Hooked(Net):
    """What a layer gets and gives is changed by hooks of the user."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
        self.a.register_forward_hook(lambda _module, _args, output: 3 * output)

    def parts(self):
        return {"a": dense(), "head": dense()}

    def forward(self, x):
        return self.head(self.a(x).relu())


def test_what_hooks_of_the_user_do_to_an_output_is_outside_of_the_batch_norm():
    torch.manual_seed(0)
    plain, x = Hooked().double().eval(), vectors().double()
    changed = insert(plain, [x])
    mean, variance = by_torch(F.linear(x + 1, plain.a.weight, plain.a.bias), features_last=True)
    norm = changed.a.batchnorm
    assert_undoes(norm, mean, variance, absorbed=plain.a.bias, batches=1)
    torch.testing.assert_close(changed.eval()(x), plain(x), rtol=1e-13, atol=1e-13)


def test_statistics_are_taken_in_eval_mode_of_a_model_that_trains():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), dense(), nn.ReLU(), dense()).double()
    x = vectors().double()
    changed = insert(plain, [x])
    assert changed.training
    mean, variance = by_torch(plain[2](plain[1].eval()(x)), features_last=True)
    assert_undoes(changed[2].batchnorm, mean, variance, absorbed=plain[2].bias, batches=1)


# The same function

HARD = {
    "as it comes": (1.0, 0.0),
    "a mean of 100 standard deviations": (1.0, 100.0),
    "a mean of -100 standard deviations": (0.01, -1.0),
    "variances far below eps": (1e-9, 1e-7),
    "large numbers": (1e6, 1e8),
}


def with_first_layer(scale, shift, *, dtype=torch.float32):
    """Return a network whose first layer has outputs of about this spread and mean."""
    torch.manual_seed(0)
    model = nn.Sequential(dense(4, 6), nn.Identity(), dense(6, 6), nn.ReLU(), dense(6, 3))
    model[1] = nn.LeakyReLU(0.5)
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.fill_(shift)
        model[2].weight.sub_(model[2].weight.mean(1, keepdim=True))  # so that the mean cancels
        model[2].weight.div_(scale)
    return model.to(dtype)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("scale", "shift"), HARD.values(), ids=HARD)
def test_the_function_stays_the_same_where_means_are_large_and_spreads_are_small(
    scale, shift, placement
):
    plain = with_first_layer(scale, shift).eval()
    plan = plan_insertion(plain, [vectors(), 2 * vectors()], placement=placement)
    assert len(plan.edits) == 2
    assert plan.proof.error <= 1e-5
    assert plan.proof.error_in_float64 <= 1e-12
    x = vectors() + 0.5  # not what the statistics are of
    expected, found = plain(x), plan.apply(plain).eval()(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_dead_and_constant_features_stay_as_they_are(placement):
    torch.manual_seed(0)
    plain = nn.Sequential(dense(4, 4), nn.ReLU(), dense(4, 3)).eval()
    with torch.no_grad():
        plain[0].weight[0], plain[0].bias[0] = 0.0, 0.7  # constant
        plain[0].weight[1], plain[0].bias[1] = 0.0, -1e4  # dead after ReLU
        plain[0].weight[2], plain[0].bias[2] = 0.0, 0.0
    changed = insert(plain, [vectors(), vectors()], placement=placement).eval()
    norm = changed[0 if placement == "before_activation" else 1].batchnorm
    assert norm.running_var[:3].tolist() == [0, 0, 0]
    hidden, made = plain[:2](vectors()), changed[:2](vectors())
    assert torch.equal(made[:, :3], hidden[:, :3])
    torch.testing.assert_close(changed(vectors()), plain(vectors()), rtol=1e-6, atol=1e-6)
    plain_step, changed_step = (net.train()(vectors()).sum() for net in (plain, changed))
    changed_step.backward()  # by batch statistics, too, nothing is divided by zero
    assert all(p.grad.isfinite().all() for p in changed.parameters())
    assert plain_step.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_models_in_half_precision_keep_their_function_as_far_as_it_goes(dtype, placement):
    plain, x = with_first_layer(1.0, 1.0, dtype=dtype), vectors().to(dtype)
    plan = plan_insertion(plain, [x], placement=placement)
    assert plan.proof.error <= 1e-2
    assert plan.proof.error_in_float64 <= 1e-12
    assert plan.apply(plain)[0].weight.dtype is dtype


def test_the_published_recipe_with_the_variance_as_weight_is_another_function():
    # fast.ai set [gamma, beta, mean, variance] = [var, mu, mu, var], where gamma is sqrt(var + eps)
    torch.manual_seed(0)
    plain = nn.Sequential(dense(4, 8), nn.ReLU(), dense(8, 8), nn.ReLU(), dense(8, 3)).eval()
    x = 10 * vectors()
    changed = insert(plain, [x], placement="after_activation").eval()
    folk = copy.deepcopy(changed)
    for act in (folk[1], folk[3]):
        act.batchnorm.weight.data = act.batchnorm.running_var.clone()
    error = {
        name: ((net(x) - plain(x)).abs().max() / plain(x).abs().max()).item()
        for name, net in (("ours", changed), ("folk", folk))
    }
    assert error["ours"] < 1e-6
    assert error["folk"] > 0.5


# What is reported


def small():
    torch.manual_seed(0)
    return nn.Sequential(dense(4, 5), nn.ReLU(), dense(5, 2))


def test_the_plan_says_how_far_the_output_moves_in_training_mode():
    plain, x = small(), vectors()
    plan = plan_insertion(plain, [x, 3 * x])
    expected, moved = plain.eval()(x), plan.apply(plain).train()(x)
    largest = (moved - expected).abs().max().item()
    found = plan.in_training_mode
    assert (found.absolute, plan.rows) == (pytest.approx(largest, rel=1e-4), 6)
    assert found.error == pytest.approx(largest / expected.abs().max().item(), rel=1e-4)
    assert found.error > 0.1


def test_the_plan_prints_with_its_proof_and_the_start_of_training():
    plan = plan_insertion(small(), [vectors(), vectors()])
    moved = plan.in_training_mode
    leaves = "output layer: its result leaves the model"
    mode = "In training mode, by the statistics of a mini-batch of 6"
    assert str(plan).splitlines() == [
        " layer   kind     change                              why",
        "─" * 96,
        " 0       Linear   normalise 5 features, absorb bias   '1' (ReLU) follows",
        f" 2       Linear   left alone                          {leaves}",
        str(plan.proof),
        f"{mode}: error {moved.error:.1e} (largest difference {moved.absolute:.1e}).",
    ]


def test_the_plan_is_plain_data():
    plan = plan_insertion(small(), [vectors(), vectors()])
    data = json.loads(json.dumps(plan.to_json()))
    assert (data["batches"], data["rows"]) == (2, 6)
    assert data["in_training_mode"]["error"] == plan.in_training_mode.error
    assert data["proof"]["error"] == plan.proof.error
    assert data["edits"][0]["structure"]["drop_bias"] is True
    assert [left["layer"] for left in data["left_alone"]] == ["2"]


def test_mini_batches_of_one_cannot_begin_training_and_are_told_so():
    plan = plan_insertion(small(), vectors().split(1))
    assert plan.in_training_mode is None
    assert plan.to_json()["in_training_mode"] is None
    assert str(plan).endswith(
        "In training mode, by the statistics of a mini-batch of 1: some layer gets one value per "
        "feature, which has no variance."
    )


def test_a_plan_without_edits_needs_no_batches_but_the_first():
    def loader():
        yield vectors()
        raise AssertionError("read on")

    plan = plan_insertion(dense(), loader())
    assert (plan.edits, plan.proof) == ((), None)
    assert str(plan).splitlines()[-1].startswith(" (the model)   Linear   left alone")


# Options and forms of batches


def test_options_are_those_of_add():
    changed = insert(
        small(), [vectors()], where=lambda path, _: path == "0", momentum=None, eps=0.25
    )
    norm = changed[0].batchnorm
    assert (norm.momentum, norm.eps) == (None, 0.25)
    torch.testing.assert_close(norm.weight, (norm.running_var + 0.25).sqrt())


def test_a_cumulative_average_goes_on_after_the_batches_of_the_statistics():
    changed = insert(small(), vectors().split(2), momentum=None).train()
    norm = changed[0].batchnorm
    before, x = norm.running_mean.clone(), vectors() + 1
    changed(x)
    batch = (x @ changed[0].weight.T).mean(0)
    torch.testing.assert_close(norm.running_mean, (3 * before + batch) / 4)


class Taking(Net):
    """Takes its input in many ways."""

    def parts(self):
        return {"a": dense(), "head": dense()}

    def forward(self, x, shift=0.0, *, scale=1.0):
        return self.head(self.a(x * scale + shift).relu())


X = vectors()
FORMS = {
    "a tensor is one mini-batch": (X, None),
    "tensors": ([X], None),
    "a generator, which is read once": ((x for x in [X]), None),
    "inputs and targets": ([(X, torch.zeros(6))], None),
    "positional arguments and targets": ([((X, torch.zeros(())), torch.zeros(6))], None),
    "keywords": ([{"x": X, "scale": 1.0, "labels": torch.zeros(6)}], None),
    "positional": ([{"images": X}], lambda batch: ((batch["images"],), {})),
    "keywords of inputs": ([X], lambda batch: ((), {"x": batch})),
    "both": ([X], lambda batch: ((batch, 0.0), {"scale": 1.0})),
}


@pytest.mark.parametrize(("batches", "inputs"), FORMS.values(), ids=FORMS)
def test_mini_batches_come_in_many_forms(batches, inputs):
    torch.manual_seed(0)
    plain = Taking()
    norm = insert(plain, batches, inputs=inputs).a.batchnorm
    torch.testing.assert_close(norm.bias, plain.a(X).mean(0))


def test_positional_arguments_without_a_name_go_with_no_keywords():
    class Unnamed(Taking):
        def forward(self, *x, **_options):
            return super().forward(x[0])

    message = (
        r"^`inputs` returned 3 positional and 1 keyword arguments, and the forward of Unnamed has "
        r"no names for all of the positional ones: pass all in one way$"
    )
    with pytest.raises(TypeError, match=message):
        insert(Unnamed(), [X], inputs=lambda x: ((x, x, x), {"scale": 1}))


def test_the_network_may_be_made_where_gradients_are_off():
    with torch.inference_mode():
        changed = insert(small(), [vectors() + 0])
    changed(vectors()).sum().backward()
    assert not any(p.is_inference() for p in changed.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_is_done_on_the_device_of_the_model(placement):
    plain, x = with_first_layer(1.0, 10.0).cuda(), vectors().cuda()
    changed = insert(plain, [x], placement=placement)
    assert {t.device.type for t in changed.state_dict().values()} == {"cuda"}
    torch.testing.assert_close(changed.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


# What is touched


class Writing(Net):
    """Writes into its input, and draws random numbers."""

    def parts(self):
        return {"a": dense(), "drop": nn.Dropout(), "head": dense()}

    def forward(self, x):
        return self.head(self.drop(self.a(x.add_(torch.rand(())))).relu())


def test_the_model_the_batches_and_the_random_generators_stay_as_they_are():
    plain, batches = Writing(), [vectors(), vectors() + 1]
    plain.head.eval()
    before, shown, state = fingerprint(plain), repr(batches), random_state()
    changed = insert(plain, batches)
    assert fingerprint(plain) == before
    assert repr(batches) == shown
    assert random_state() == state
    assert memory(changed).isdisjoint(memory(plain))
    assert [changed.a.training, changed.head.training] == [True, False]


class LoaderError(Exception):
    """An error of a loader."""


def test_an_error_of_the_loader_passes_through_and_nothing_has_changed():
    def loader():
        yield vectors()
        raise LoaderError("mine")

    plain = small()
    before, state = fingerprint(plain), random_state()
    with pytest.raises(LoaderError, match=r"^mine$"):
        insert(plain, loader())
    assert fingerprint(plain) == before
    assert random_state() == state


# Errors


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match=r"^`batches` gave no mini-batch: the list is empty"):
        insert(small(), [])


BAD = {"NaN": math.nan, "infinite": math.inf, "overflowing": 1e25}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_statistics_that_are_not_finite_are_refused_by_the_name_of_the_layer(value):
    plain, bad = small(), vectors()
    bad[3, 2] = value
    before = fingerprint(plain)
    message = (
        r"^the statistics of layer '0' over `batches` are not finite: it gives NaN or infinite"
    )
    with pytest.raises(SurgeryError, match=message):
        insert(plain, [vectors(), bad])
    assert fingerprint(plain) == before


def test_one_value_per_feature_has_no_variance():
    message = r"^layer '0' gives 1 value per feature over all of `batches`, and one value has no"
    with pytest.raises(SurgeryError, match=message):
        insert(small(), vectors()[:1])


def test_a_mini_batch_on_which_the_model_fails_is_named_by_its_number():
    message = r"^the model fails on mini-batch 2 of `batches`: RuntimeError: mat1 and mat2 shapes"
    with pytest.raises(ExampleError, match=message):
        insert(small(), [vectors(), vectors()[:, :3]])
    message = r"^the model fails on `example` of shape \(6, 3\) in layer '0' \(Linear\)"
    with pytest.raises(ExampleError, match=message):
        insert(small(), [vectors()[:, :3]])


def test_a_mini_batch_without_a_batch_axis_is_refused_by_the_name_of_the_layer():
    plain = nn.Sequential(conv(), nn.ReLU(), conv())
    message = r"mini-batch 2 of `batches`: ValueError: layer '0' normalises over the mini-batch"
    with pytest.raises(ExampleError, match=message):
        insert(plain, [images(), images()[0]])


def test_a_model_in_which_nothing_can_be_normalised_is_told_so():
    with pytest.raises(SurgeryError, match=r"nothing in this model can be normalised\. the model"):
        insert(dense(), [vectors()])
    with pytest.raises(SurgeryError, match=r"^nothing that `where` chose can be normalised\. 0 \("):
        insert(small(), [vectors()], where=lambda *_: False)


@pytest.mark.parametrize("eps", [0, -1e-5])
def test_eps_must_be_positive(eps):
    message = rf"^`eps` is {eps}: it must be positive, or a constant feature divides by 0$"
    with pytest.raises(ValueError, match=message):
        insert(small(), [vectors()], eps=eps)


def test_an_unknown_placement_is_refused():
    with pytest.raises(ValueError, match="`placement` is 'before': choose from"):
        insert(small(), [vectors()], placement="before")


class Minding(Net):
    """Computes something else where a bias is missing."""

    def parts(self):
        return {"a": dense(), "head": dense()}

    def forward(self, x):
        y = self.a(x)
        return self.head(F.relu(y if self.a.bias is not None else y * 1.5))


def test_a_promise_that_cannot_be_kept_is_an_error_and_the_model_stays():
    plain = Minding()
    before, state = fingerprint(plain), random_state()
    with pytest.raises(SurgeryError, match=r"does not compute the same: from layer 'head' on the"):
        insert(plain, [vectors()])
    assert fingerprint(plain) == before
    assert random_state() == state


def test_a_tolerance_of_ones_own_is_asked_for():
    plain, x = with_first_layer(1.0, 100.0), vectors()
    assert plan_insertion(plain, [x]).proof.error > 1e-9
    with pytest.raises(SurgeryError, match=r"and at most 1e-09 is allowed; .* by `tolerance`$"):
        insert(plain, [x], tolerance=1e-9)


def test_sequences_of_any_length_are_pooled():
    torch.manual_seed(0)
    plain = nn.Sequential(dense(), nn.GELU(), dense()).double().eval()
    batches = [sequences().double()[:, :t] for t in (1, 3, 2)]
    norm = insert(plain, batches)[0].batchnorm
    rows = torch.cat([plain[0](x).flatten(0, 1) for x in batches])
    assert_undoes(norm, rows.mean(0), rows.var(0), absorbed=plain[0].bias)
