import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit import SurgeryError
from bnkit.dataflow import ExampleError
from bnkit.layers.activated import ActivatedNorm
from bnkit.layers.domains import domain
from bnkit.layers.per_step import PerStepBatchNorm1d
from bnkit.layers.renorm import Ramp
from bnkit.surgery import accelerate, add
from bnkit.surgery.conversion import convert, convert_layer, plan_conversion
from bnkit.surgery.conversion.kinds import KINDS
from bnkit.surgery.conversion.survey import candidates
from bnkit.surgery.operations import replay
from cases import torchs
from models import MODELS
from zoo.checks import call, fingerprint, memory, random_state

IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SAME = {  # in eval mode
    "torch": {},
    "bnkit": {},
    "sync": {},
    "ghost": {"virtual_batch_size": 2},
    "renorm": {"r_max": Ramp(1, 3, 5, 50), "d_max": 2.0},
    "masked": {"default": "all"},
    "accumulated": {"micro_batches": 3},
    "domains": {"domains": ("day", "night")},
    "frozen": {},
    "instance": {"track_running_stats": True},
}


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


def dense_net():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))


NETS = {"conv": (conv_net, IMAGES), "dense": (dense_net, VECTORS)}


def randomised(model, seed=0):
    """Give parameters and statistics that are those of no new layer."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.3)
            elif "num_batches" in name:
                tensor.fill_(7)
    return model


def same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        assert value.dtype == theirs[name].dtype


def flags(model):
    """Return what is neither values nor kinds: modes, and what trains."""
    modes = [m.training for m in model.modules()]
    return modes, {name: p.requires_grad for name, p in model.named_parameters()}


PAIRS = [
    pytest.param(net, kind, back, id=f"{net}: {kind}, {back}")
    for net in NETS
    for kind in SAME
    for back in SAME
    # Vectors are no input of instance norms: they have one value per channel.
    if net == "conv" or "instance" not in (kind, back)
]


@pytest.mark.parametrize(("net", "kind", "back"), PAIRS)
def test_from_every_kind_to_every_other_and_back_nothing_is_lost(net, kind, back):
    build, x = NETS[net]
    chosen = {"where": lambda _, m: hasattr(m, "running_mean")}  # instance norms, too
    start = randomised(build()).train()
    start[1].eval()
    start[1].weight.requires_grad_(False)
    first = convert(start, kind, **SAME[kind], **chosen)
    second = convert(first, back, **SAME[back], **chosen)
    again = convert(second, "torch", **chosen)
    assert [type(m[1]) in KINDS[k].classes for m, k in ((first, kind), (second, back))] == [
        True
    ] * 2
    same_state(again, start)
    assert flags(again) == flags(start)
    for ours, theirs in zip(again.modules(), start.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
    expected = start.eval()(x)
    for model in (first, second, again):
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-6, atol=1e-6)


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with its activation inside, as other libraries have it."""

    def forward(self, x):
        return F.relu(super().forward(x))


class BatchNormMish(nn.BatchNorm2d):
    """A batch norm with an activation inside that bnkit's do not have."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.Mish()

    def forward(self, x):
        return self.act(super().forward(x))


class WithDefaults(nn.BatchNorm2d):
    """A class of its own only for its defaults."""

    def __init__(self, features):
        super().__init__(features, eps=1e-3, momentum=0.01)


class FrozenBatchNorm2d(nn.Module):
    """A batch norm of another library: all in buffers, and no count of mini-batches."""

    def __init__(self, features, *, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(features))

    def forward(self, x):
        scale = (self.running_var + self.eps).rsqrt() * self.weight
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class ScaledFrozenBatchNorm2d(FrozenBatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def only(layer, x=None):
    """Return the plan for a model of this layer to become a ghost batch norm."""
    return plan_conversion(nn.Sequential(layer), "ghost", x)


# What stays


def test_a_layer_keeps_its_identity_its_parameters_and_all_that_others_gave_it():
    model = conv_net()
    norm, calls = model[1], []
    norm.note = {"of": "the user"}
    norm.register_buffer("extra", torch.arange(3))
    norm.register_forward_hook(lambda *_: calls.append("forward"))
    norm.register_full_backward_hook(lambda *_: calls.append("backward"))
    norm.register_state_dict_post_hook(lambda *_: calls.append("state dict"))
    norm.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    norm.elsewhere = [norm]
    for kind, options in SAME.items():
        changed = convert(model, kind, **options)
        layer = changed[1]
        assert layer.elsewhere == [layer]
        assert layer.note == {"of": "the user"}
        calls.clear()
        changed.load_state_dict(changed.state_dict())
        changed(IMAGES.clone().requires_grad_()).sum().backward()
        assert calls == ["state dict", "load", "forward", "backward"], kind
        again = convert(changed, "torch", where=lambda *_: True)
        assert list(again[1].state_dict()) == list(norm.state_dict())


def test_in_place_of_the_same_object_parameters_stay_the_same_objects():
    model = conv_net()
    norm, weight = model[1], model[1].weight
    for kind, options in SAME.items():
        if kind != "frozen":  # whose parameters are buffers
            convert_layer(model, "1", to=kind, options=options)
            assert model[1] is norm
            assert model[1].weight is weight
            assert model[1].running_mean.shape == (4,)


@pytest.mark.parametrize("kind", SAME)
def test_a_layer_in_two_places_stays_one_and_tied_parameters_stay_tied(kind):
    norm, twin = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    twin.weight = norm.weight
    changed = convert(nn.Sequential(norm, nn.ReLU(), norm, twin), kind, **SAME[kind])
    assert changed[0] is changed[2]
    assert changed[0] is not changed[3]
    # Frozen ones hold copies: one could be thawed alone.
    assert (changed[0].weight is changed[3].weight) == (kind != "frozen")


def test_a_frozen_twin_of_a_layer_that_trains_does_not_move_with_it():
    norm, twin = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    twin.weight = norm.weight
    changed = convert(nn.Sequential(norm, twin), "frozen", where=lambda path, _: path == "0")
    with torch.no_grad():
        changed[1].weight.fill_(5.0)
    assert changed[0].weight.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["ghost", "domains", "frozen", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_of_every_tensor_stays(kind, dtype):
    source = bnkit.BatchNorm2d(3, dtype=dtype)
    changed = convert(source, kind, **SAME[kind])
    floating = [t for t in changed.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {dtype}


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"bias": False},
        {"momentum": None, "eps": 0.2},
        {"track_running_stats": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bnkit", "sync", "ghost", "masked", "accumulated", "frozen"])
def test_what_the_constructor_was_given_stays(kind, options):
    start = nn.Sequential(torchs(nn.BatchNorm2d, 3, **options))
    if kind == "frozen" and not options.get("track_running_stats", True):
        with pytest.raises(SurgeryError, match=r"no running statistics, which 'frozen' needs"):
            convert(start, kind)
        return
    changed = convert(start, kind, IMAGES, **SAME[kind])
    again = convert(changed, "torch", IMAGES)
    assert repr(again) == repr(start)
    same_state(again, start)


def test_without_running_statistics_a_masked_layer_would_ask_for_a_mask_in_eval_mode_too():
    start = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(SurgeryError, match=r'asks for a mask in eval mode too: pass default="all"'):
        convert(start, "masked")


def test_statistics_that_others_took_away_stay_away():
    norm = nn.BatchNorm2d(3)
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    changed = convert(nn.Sequential(norm), "ghost", IMAGES)
    assert changed[0].running_mean is None
    assert changed[0].track_running_stats


def test_a_single_layer_is_converted_too():
    changed = convert(nn.BatchNorm2d(3), "renorm", IMAGES, r_max=2.0)
    assert type(changed) is KINDS["renorm"].classes[1]
    assert changed.r_max == 2.0


def test_batch_norms_inside_of_the_layers_that_add_makes_are_converted_where_they_are():
    twin = randomised(add(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), VECTORS))
    plan = plan_conversion(twin, "ghost", VECTORS, virtual_batch_size=2)
    assert [edit.layer for edit in plan.edits] == ["0.batchnorm"]
    changed = plan.apply(twin)
    assert list(changed.state_dict()) == list(twin.state_dict())
    changed.train()(VECTORS)
    assert changed[0].batchnorm.virtual_batch_size == 2


# Activations, guards and residuals


@pytest.mark.parametrize("kind", [*SAME, "group"])
def test_an_activation_is_never_lost(kind):
    start = nn.Sequential(bnkit.BatchNorm2d(3, activation="silu")).eval()
    options = SAME.get(kind, {"num_groups": 3})
    changed = convert(start, kind, [IMAGES], **options)
    norm = convert_without(changed)
    torch.testing.assert_close(changed(IMAGES), F.silu(norm(IMAGES)))
    if kind != "torch":
        assert all(key.count(".") == 1 for key in changed.state_dict())
        again = convert(changed, "bnkit", [IMAGES], where=lambda *_: True)
        assert type(again[0].norm) is bnkit.BatchNorm2d
        assert again[0].activation == "silu"


def convert_without(model):
    """Return a copy of the model whose layer has no activation."""
    model = copy.deepcopy(model)
    if isinstance(model[0], nn.Sequential):
        return model[0][0]
    model[0].activation = None
    return model


def test_the_way_back_to_torch_gives_modules_where_they_were():
    def block():
        return [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU(0.01, inplace=True)]

    start = randomised(nn.Sequential(*block(), *block()[:2], nn.SiLU()))
    fast = accelerate(start, IMAGES)
    assert [type(module).__name__ for module in fast.children()][1:3] == [
        "ActivatedNorm",
        "Identity",
    ]
    fast = pickle.loads(pickle.dumps(copy.deepcopy(nn.Sequential(fast))))
    plan = plan_conversion(fast, "torch", IMAGES)
    assert [(edit.layer, edit.action) for edit in plan.edits] == [
        ("0.1.norm", "become BatchNorm2d"),
        ("0.4.norm", "become BatchNorm2d"),
        ("0.1", "give leaky_relu back to '0.2'"),
        ("0.4", "give silu back to '0.5'"),
    ]
    back = plan.apply(fast)[0]
    assert str(back) == str(start)
    assert back.state_dict().keys() == start.state_dict().keys()
    torch.testing.assert_close(back.train()(IMAGES), start.train()(IMAGES))


def test_without_such_a_place_the_plan_names_the_new_keys():
    start = randomised(nn.Sequential(bnkit.BatchNorm2d(3, activation="relu")))
    plan = plan_conversion(start, "torch", IMAGES)
    assert (plan.edits[1].action, plan.edits[1].why) == (
        "become Sequential, with relu",
        "keys with '.0' in them",
    )
    changed = plan.apply(start)
    assert [type(module) for module in changed[0]] == [nn.BatchNorm2d, nn.ReLU]
    assert next(iter(changed.state_dict())) == "0.0.weight"
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(start[0].state_dict())
    assert torch.equal(changed(IMAGES), F.relu(plain(IMAGES)))


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x, residual=x)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_that_is_called_with_a_residual_is_not_torchs(activation):
    start = randomised(Residual(bnkit.BatchNorm2d(3, activation=activation)))
    plan = plan_conversion(start, "torch", IMAGES)
    assert plan.edits == ()
    assert plan.left_alone[0].why == "called with a residual, which torch's layers do not take"
    with pytest.raises(SurgeryError, match="a residual, which torch's layers do not take"):
        convert(start, "torch", IMAGES)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_group_norm_takes_a_residual_too(activation):
    start = randomised(Residual(bnkit.BatchNorm2d(3, activation=activation))).eval()
    changed = convert(start, "group", [IMAGES], num_groups=3)
    around = changed.norm
    assert isinstance(around, ActivatedNorm)
    assert isinstance(around.norm, nn.GroupNorm)
    expected = around.norm(IMAGES) + IMAGES
    expected = expected if activation is None else expected.relu()
    torch.testing.assert_close(changed(IMAGES), expected)
    assert changed.state_dict().keys() == {"norm.weight", "norm.bias"}


def test_the_guard_of_a_bnkit_layer_survives_the_way_through_torch():
    start = nn.Sequential(bnkit.BatchNorm2d(3, guard=False))
    start[0].non_finite_batches.fill_(3)
    ghost = convert(start, "ghost")
    assert (ghost[0].guard, ghost[0].non_finite_batches.item()) == (False, 3)
    assert convert(convert(start, "torch"), "bnkit")[0].guard is False
    assert convert(nn.Sequential(nn.BatchNorm2d(3)), "bnkit")[0].guard is True
    assert convert(nn.Sequential(nn.BatchNorm2d(3)), "bnkit", guard=False)[0].guard is False


def test_frozen_parameters_train_again_when_thawed_if_they_did_before():
    start = conv_net()
    start[1].bias.requires_grad_(False)
    frozen = convert(start, "frozen")
    assert [name for name, _ in frozen.named_parameters() if name[0] in "14"] == []
    thawed = convert(frozen, "bnkit")
    trains = {name: p.requires_grad for name, p in thawed.named_parameters() if name[0] in "14"}
    assert trains == {"1.weight": True, "1.bias": False, "4.weight": True, "4.bias": True}


# Domains


def test_the_statistics_of_the_chosen_domain_stay_and_those_of_others_are_said_to_be_dropped():
    start = convert(randomised(conv_net()), "domains", domains=("day", "night"))
    with domain(start, "night"):
        start[1].running_mean.fill_(9.0)
        plan = plan_conversion(start, "torch", IMAGES)
    assert "those of 'day'" not in plan.edits[0].why
    assert plan.edits[0].why.endswith("; the statistics of 'day' are dropped")
    plan = plan_conversion(start, "torch", IMAGES)
    assert plan.edits[0].why.endswith("; the statistics of 'night' are dropped")
    assert plan.apply(start)[1].running_mean.tolist() != [9.0] * 4


def test_domains_that_stay_keep_their_statistics_when_others_come():
    start = convert(randomised(conv_net()), "domains", domains=("day", "night"))
    start[1].running_mean_night.fill_(9.0)
    changed = convert(start, "domains", IMAGES, domains=("day", "night", "rain"))
    assert changed[1].running_mean_night.tolist() == [9.0] * 4
    assert torch.equal(changed[1].running_mean_rain, start[1].running_mean)


def test_each_domain_gets_a_weight_and_a_bias_of_its_own():
    start = randomised(conv_net()).eval()
    changed = convert(start, "domains", IMAGES, domains=("day", "night"), affine="each")
    names = [name for name, _ in changed[1].named_parameters()]
    assert names == ["weight", "bias", "weight_night", "bias_night"]
    for name in ("day", "night"):
        with domain(changed, name):
            torch.testing.assert_close(changed(IMAGES), start(IMAGES))
    with torch.no_grad():
        changed[1].weight_night.fill_(9.0)
    assert torch.equal(changed[1].weight, start[1].weight)
    more = convert(changed, "domains", IMAGES, domains=("night", "rain", "day"))
    assert more[1].affine == "each"
    assert torch.equal(more[1].weight_day, start[1].weight)
    assert torch.equal(more[1].weight_rain, start[1].weight)
    with domain(more, "night"):
        assert more[1].weight.tolist() == [9.0] * 4
    assert len({p.data_ptr() for p in more.parameters()}) == len(list(more.parameters()))
    with domain(changed, "night"):
        plan = plan_conversion(changed, "torch", IMAGES)
        assert plan.apply(changed)[1].weight.tolist() == [9.0] * 4
        folded = bnkit.fold(changed, IMAGES)
        torch.testing.assert_close(folded(IMAGES), changed(IMAGES))
    assert plan.edits[0].why.endswith(
        "; the statistics of 'day' and weight and bias of 'day' are dropped"
    )
    shared = plan_conversion(changed, "domains", IMAGES, domains=("day", "night"), affine=True)
    assert shared.edits[0].why.endswith("; weight and bias of 'night' are dropped")
    made = shared.apply(changed)[1]
    assert made.affine is True
    assert [name for name, _ in made.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("layer", "affine", "why"),
    [
        (nn.BatchNorm1d(4, affine=False), "each", "it has no weight and bias, so domains cannot"),
        (nn.BatchNorm1d(4), False, "its weight and bias would be lost: pass affine=True, or affi"),
    ],
    ids=["none", "lost"],
)
def test_weights_that_domains_cannot_have_are_said(layer, affine, why):
    options = {"domains": ("day", "night"), "affine": affine}
    with pytest.raises(SurgeryError, match=why):
        convert(nn.Sequential(layer), "domains", **options)


def test_wrong_words_for_affine_are_refused_before_any_copy():
    with pytest.raises(ValueError, match=r"`affine` is 'both': pass True"):
        convert(nn.Sequential(nn.BatchNorm1d(4)), "domains", domains=("a", "b"), affine="both")


# Sources


@pytest.mark.parametrize("x", [VECTORS, VECTORS[:, :, None], VECTORS[:, :, None, None]], ids=str)
def test_torchs_synchronised_layers_get_the_rank_of_their_inputs(x):
    start = randomised(nn.Sequential(nn.SyncBatchNorm(4)))
    changed = convert(start, "torch", x)
    assert type(changed[0]) is {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()]
    same_state(changed, start)


def test_without_an_example_a_layer_for_inputs_of_any_rank_is_left_alone():
    message = r"0 \(SyncBatchNorm\): its class is for inputs of any rank, and it is not called on a"
    with pytest.raises(SurgeryError, match=message):
        convert(nn.Sequential(nn.SyncBatchNorm(4)), "bnkit")


def test_lazy_layers_are_converted_once_they_have_a_shape():
    model = nn.Sequential(nn.Identity(), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match=r"layer '1' is lazy and has no shape yet: run one mini-"):
        convert(model, "ghost")
    model(IMAGES)
    assert convert(model, "ghost", IMAGES)[1].num_features == 3


@pytest.mark.parametrize("kind", SAME)
def test_frozen_batch_norms_of_other_libraries_are_taken(kind):
    start = randomised(nn.Sequential(FrozenBatchNorm2d(3, eps=0.1)))
    changed = convert(start, kind, IMAGES, **SAME[kind])
    assert type(changed[0]) in KINDS[kind].classes
    assert changed[0].num_batches_tracked.item() == 0
    assert all(p.requires_grad for p in changed.parameters())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (BatchNormMish(3), "it ends in Mish, which other kinds of batch norm do not compute"),
        (ScaledFrozenBatchNorm2d(3), "are not under the names that torch gives them"),
    ],
    ids=["another activation inside", "another library's"],
)
def test_what_has_a_forward_of_its_own_is_left_alone_and_listed(layer, why):
    (left,) = only(layer, IMAGES).left_alone
    assert left.layer == "0"
    assert why in left.why


def test_a_forward_on_the_instance_and_computed_parameters_are_left_alone():
    norm = nn.BatchNorm2d(3)
    norm.forward = lambda x: x
    assert only(norm).left_alone[0].why == "its forward is set on the instance"
    norm = nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(3), dim=None)
    assert only(norm).left_alone[0].why.startswith("its weight or bias is computed")


def test_what_a_class_adds_would_be_lost_so_it_is_left_alone_but_not_for_its_defaults():
    class WithMethod(nn.BatchNorm2d):
        def shrink(self):
            return self.weight / 2

    assert only(WithMethod(3)).left_alone[0].why == (
        "its class defines 'shrink', which another kind would not have"
    )
    changed = convert(nn.Sequential(WithDefaults(3)), "ghost", IMAGES)
    assert (changed[0].eps, changed[0].momentum) == (1e-3, 0.01)


def test_an_attribute_that_only_looks_like_a_kinds_is_neither_read_nor_lost():
    norm = nn.BatchNorm2d(3)
    norm.activation = "relu"
    assert only(norm).left_alone[0].why == (
        "something else on it is called 'activation', as other kinds need it"
    )


def test_batch_norm_of_recurrent_layers_is_left_alone():
    assert only(PerStepBatchNorm1d(3, max_steps=4)).left_alone[0].why == (
        "it has statistics for each step of a recurrent layer"
    )


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.batch_norm(self.norm(x), torch.zeros(3), torch.ones(3))


def test_functional_batch_norms_are_listed():
    plan = plan_conversion(Functional(), "ghost", IMAGES)
    assert [(r.layer, r.kind) for r in plan.left_alone] == [("batch_norm()", "function")]


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = convert(nn.BatchNorm2d(3), "masked")

    def forward(self, x):
        return self.norm(x, mask=x[:, 0] > -9)


def test_a_layer_that_is_called_with_a_mask_stays_masked():
    why = "called with the keyword 'mask', which 'torch' does not know"
    assert plan_conversion(Masking(), "torch", IMAGES).left_alone[0].why == why
    assert plan_conversion(Masking(), "masked", IMAGES, default="all").proof.error == 0


# Plans


def test_a_plan_without_an_example_has_no_proof_and_with_one_it_has():
    assert plan_conversion(conv_net(), "ghost").proof is None
    plan = plan_conversion(conv_net(), "ghost", IMAGES, virtual_batch_size=2)
    assert plan.proof.error_in_float64 == 0
    assert plan.edits[0].action == "become GhostBatchNorm2d(virtual_batch_size=2)"
    assert "Same function: error 0.0e+00 in float64" in str(plan)


def test_an_example_may_be_a_loader():
    loader = torch.utils.data.DataLoader([(x, 0) for x in IMAGES], batch_size=3)
    assert plan_conversion(conv_net(), "ghost", loader).proof.error < 1e-6


def test_inputs_say_what_of_a_mini_batch_the_model_gets():
    batch = {"x": IMAGES, "id": 3}
    plan = plan_conversion(conv_net(), "ghost", [batch], inputs=lambda b: ((b["x"],), {}))
    assert plan.proof.error < 1e-6


@pytest.mark.parametrize("kind", [*SAME, "group"])
def test_a_plan_is_plain_data_that_makes_the_structure_again(kind):
    start = randomised(conv_net())
    options = SAME.get(kind, {"num_groups": 2})
    plan = plan_conversion(start, kind, [IMAGES], **options)
    structures = [e["structure"] for e in json.loads(json.dumps(plan.to_json()))["edits"]]
    rebuilt = replay(conv_net(), structures)
    changed = plan.apply(start)
    rebuilt.load_state_dict(changed.state_dict())
    assert repr(rebuilt) == repr(changed)
    assert torch.equal(rebuilt.eval()(IMAGES), changed.eval()(IMAGES))


def test_what_a_callable_made_cannot_be_made_again():
    plan = plan_conversion(conv_net(), nn.Identity)
    message = r"^layer '1' was changed by 'Identity', a function, which cannot be saved: build the"
    with pytest.raises(ValueError, match=message):
        replay(conv_net(), [edit.structure for edit in plan.edits])
    plan = plan_conversion(conv_net(), "renorm", r_max=torch.sqrt)
    with pytest.raises(
        ValueError, match=r"'1' was changed by '.*sqrt', a function, which cannot b"
    ):
        replay(conv_net(), [edit.structure for edit in plan.edits])


def test_changed_models_pickle_and_copy():
    for kind, options in SAME.items():
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        twin = add(plain, IMAGES, where=lambda path, _: path == "0")
        changed = convert(twin, kind, **options)
        for twin in (pickle.loads(pickle.dumps(changed)), copy.deepcopy(changed)):
            assert repr(twin) == repr(changed)
            same_state(twin, changed)


def test_layers_that_are_of_the_kind_already_are_listed_and_no_error():
    model = conv_net()
    plan = plan_conversion(model, "torch", IMAGES)
    assert [left.why for left in plan.left_alone] == ["already of that kind"] * 2
    assert repr(convert(model, "torch")) == repr(model)
    slower = convert(model, "torch", momentum=0.01)
    assert [slower[1].momentum, slower[4].momentum] == [0.01, 0.01]


# Callables


def test_a_callable_makes_the_layers():
    def without(layer):
        return nn.Identity() if layer.num_features == 4 else layer

    start = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    plan = plan_conversion(start, without, IMAGES)
    assert [edit.action for edit in plan.edits] == ["become BatchNorm2d", "become Identity"]
    assert plan.movement.typical > 0
    changed = plan.apply(start)
    assert changed[2](IMAGES) is IMAGES
    assert not changed[2].training
    assert start[2].num_features == 4


def test_a_callable_that_keeps_the_function_is_seen_to_do_so_and_held_to_a_tolerance():
    def slow(layer):
        layer.momentum = 0.01
        return layer

    plan = plan_conversion(conv_net(), slow, IMAGES, tolerance=0.0)
    assert str(plan).endswith("The same output on 1 mini-batch in eval mode.")
    message = r"the output moves by .* \(max\|a − b\| / max\|a\|\), and `tolerance` allows 0.1: lea"
    with pytest.raises(SurgeryError, match=message):
        convert(randomised(conv_net()), lambda _: nn.Identity(), IMAGES, tolerance=0.1)


def test_what_a_callable_must_not_do():
    with pytest.raises(TypeError, match=r"`to` returned a int for layer '1' \(BatchNorm2d\): it m"):
        convert(conv_net(), lambda _: 3)
    with pytest.raises(TypeError, match=r"`num_groups` is an option of kinds that are called by n"):
        convert(conv_net(), nn.Identity, num_groups=3)
    with pytest.raises(TypeError, match=r"`to` is a int: pass the name of a kind, or a callable"):
        convert(conv_net(), 3)
    with pytest.raises(ZeroDivisionError):
        convert(conv_net(), lambda _: 1 / 0)


# Errors


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("batch", {}, ValueError, r"`to` is 'batch': choose one of 'torch', 'bnkit', 'sync', "),
        ("ghost", {"size": 3}, TypeError, r"'ghost' has no option `size`: it takes `virtual_b"),
        ("torch", {"guard": True}, TypeError, r"'torch' has no option `guard`: it takes `mom"),
        ("accumulated", {}, TypeError, r"'accumulated' needs `micro_batches`: pass it, as conv"),
        ("domains", {}, TypeError, r"'domains' needs `domains`: pass it"),
        ("ghost", {"virtual_batch_size": 0}, ValueError, r"`virtual_batch_size` is 0: pass the"),
        ("group", {"num_groups": 0}, ValueError, r"`num_groups` is 0: pass an integer ≥ 1 that d"),
        ("group", {"num_groups": True}, ValueError, r"`num_groups` is True: pass an integer ≥ 1"),
        ("ghost", {"virtual_batch_size": 2, "momentum": 7}, ValueError, r"`momentum` is 7: pass a"),
        ("torch", {"momentum": "x"}, ValueError, r"`momentum` is 'x': pass a number from 0 to 1"),
        ("bnkit", {"guard": "x"}, TypeError, r"`guard` is 'x': pass True or False"),
        ("instance", {"eps": None}, ValueError, r"`eps` is None: pass a finite number of at leas"),
        ("group", {"eps": -1}, ValueError, r"`eps` is -1: pass a finite number of at least 0"),
        ("renorm", {"r_max": "x"}, ValueError, r"`r_max` is 'x': pass a number of at least 1"),
        ("renorm", {"d_max": 10**30}, ValueError, r"`d_max` is 10+: pass a number of at least 0"),
        ("domains", {"domains": 7}, TypeError, r"`domains` is 7: pass the names in a tuple"),
        ("accumulated", {"micro_batches": 10**30}, ValueError, r"`micro_batches` is 10+: pass th"),
        ("sync", {"timeout": 3}, ValueError, r"`timeout` is 3, and torch.distributed is not in"),
        ("group", {}, ValueError, r"`example_or_batches` is None, and layers are calibrated on "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_arguments_are_told_so(kind, options, error, message):
    model = conv_net()
    before, state = fingerprint(model), random_state()
    with pytest.raises(error, match=message):
        convert(model, kind, **options)
    assert fingerprint(model) == before
    assert random_state() == state


def test_batches_that_can_be_read_once_cannot_calibrate():
    with pytest.raises(ValueError, match=r"used up after one pass, and calibration passes over th"):
        convert(conv_net(), "group", iter([IMAGES]), num_groups=2)


def test_channels_that_groups_do_not_divide_are_an_error_with_the_layer():
    message = r"layer '1' has 4 channels, which 3 groups do not divide: pass `num_groups`, as 1, o"
    with pytest.raises(SurgeryError, match=message):
        convert(conv_net(), "group", [IMAGES], num_groups=3)


def test_one_value_has_no_variance():
    message = r"layer '1' gets an input of shape \(6, 6\), of which 6 groups have one value each"
    with pytest.raises(SurgeryError, match=message):
        convert(dense_net(), "group", [VECTORS], num_groups=6)
    message = r"layer '1' gets an input of shape \(6, 6\), in which an instance has one value per"
    with pytest.raises(SurgeryError, match=message):
        convert(dense_net(), "instance", [VECTORS])


def test_nothing_to_convert_says_why():
    with pytest.raises(SurgeryError, match=r"nothing in this model can be converted: it has no b"):
        convert(nn.Sequential(nn.Linear(2, 2)), "ghost")
    message = r"nothing that `where` chose can be converted\. 1 \(BatchNorm2d\): `where` did not ch"
    with pytest.raises(SurgeryError, match=message):
        convert(conv_net(), "ghost", where=lambda *_: False)
    with pytest.raises(SurgeryError, match=r"1 \(GroupNorm\): group norm, which only `where` choo"):
        convert(nn.Sequential(nn.Identity(), nn.GroupNorm(1, 3)), "ghost")


def test_an_example_that_fails_and_wrapped_models_are_refused():
    with pytest.raises(ExampleError, match=r"in layer '0' \(Conv2d\)"):
        convert(conv_net(), "ghost", VECTORS)
    with pytest.raises(TypeError, match=r"the model is a DataParallel: pass its .module, and wr"):
        convert(nn.DataParallel(conv_net()), "sync")


# The zoo

NORMALISED = [model for model in MODELS if any(True for _ in candidates(model.seeded()))]


def test_the_zoo_has_models_with_batch_norm():
    assert len(NORMALISED) > 5


@pytest.mark.parametrize("kind", ["bnkit", "domains", "frozen", "torch"])
@pytest.mark.parametrize("model", NORMALISED, ids=str)
def test_models_of_the_zoo_compute_the_same_and_stay_as_they_are(model, kind):
    start, example = model.seeded(), model.example()
    before, state = fingerprint(start), random_state()
    plan = plan_conversion(start, kind, example, **SAME[kind])
    changed = plan.apply(start)
    assert fingerprint(start) == before
    assert random_state() == state
    if plan.edits:
        assert plan.proof.error <= 1e-5
        assert memory(changed).isdisjoint(memory(start))
        for ours, theirs in zip(
            call(changed.eval(), example), call(start.eval(), example), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (7, 1), (8, 4), (16, 8), (24, 12), (40, 20), (64, 32), (96, 32)],
)
def test_the_number_of_groups_divides_each_layer(channels, groups):
    model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
    plan = plan_conversion(model, "group", [IMAGES])
    assert plan.apply(model)[1].num_groups == groups
    assert plan.edits[0].action == f"become GroupNorm(num_groups={groups})"


def test_synchronised_layers_take_the_rank_of_the_layer_before_them_without_an_example():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Flatten()),
        *(nn.Linear(4, 5), nn.SyncBatchNorm(5), nn.SyncBatchNorm(6)),
    )
    plan = plan_conversion(model, "torch")
    changed = plan.apply(model)
    assert [type(changed[i]) for i in (1, 4)] == [nn.BatchNorm2d, nn.BatchNorm1d]
    assert [left.layer for left in plan.left_alone] == ["5"]  # nothing before it fits


def test_heads_of_training_are_converted_as_they_are_called_there():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux = nn.SyncBatchNorm(3), nn.SyncBatchNorm(3)

        def forward(self, x):
            return (self.body(x), self.aux(x)) if self.training else self.body(x)

    changed = convert(Net(), "torch", IMAGES)
    assert [type(changed.body), type(changed.aux)] == [nn.BatchNorm2d] * 2


def test_nothing_to_convert_is_no_error_where_it_is_said_to_be_none():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(SurgeryError, match="nothing in this model can be converted"):
        convert(model, "frozen")
    again = convert(model, "frozen", missing_ok=True)
    assert again is not model
    assert torch.equal(again[0].weight, model[0].weight)
