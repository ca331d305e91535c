import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bnkit import BatchNorm1d, BatchNorm2d, add
from bnkit.layers.affine import ChannelAffine
from bnkit.layers.recurrent import BatchNormLSTM
from bnkit.parameters import parameter_groups
from models import MODELS
from zoo.catalogue import conv, dense, images, vectors
from zoo.checks import fingerprint, random_state
from zoo.normalised import BatchNormAct, ConvWithNorm


def names(model, **options):
    """Return the names of the parameters with and without decay, as strings of words."""
    groups = {
        g["name"]: g["param_names"] for g in parameter_groups(model, weight_decay=1, **options)
    }
    return [" ".join(groups.get(name, ())) for name in ("decayed", "undecayed")]


# What is decayed


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(3),
        nn.SyncBatchNorm(3),
        BatchNorm2d(3, activation="relu"),
        nn.GroupNorm(1, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.LayerNorm((3, 4)),  # with two dimensions, which a rule by ndim would decay
        nn.RMSNorm(3),
        nn.PReLU(3),
        ChannelAffine(3),  # what bnkit.remove leaves of a batch norm
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_of_these_is_decayed(layer):
    assert names(layer) == ["", " ".join(name for name, _ in layer.named_parameters())]


@pytest.mark.parametrize(
    ("layer", "decayed"),
    [
        (nn.Linear(2, 3), "weight"),
        (nn.Conv1d(2, 3, 1), "weight"),
        (nn.ConvTranspose3d(2, 3, 1), "weight"),
        (nn.Bilinear(2, 2, 3), "weight"),
        (nn.Embedding(2, 3), "weight"),
        (nn.GRU(2, 3), "weight_ih_l0 weight_hh_l0"),
        (nn.LSTMCell(2, 3), "weight_ih weight_hh"),
        (BatchNormLSTM(2, 3, max_steps=4), "weight_ih_l0 weight_hh_l0"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "in_proj_weight out_proj.weight"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_of_torchs_layers_the_weights_are_decayed_and_the_biases_are_not(layer, decayed):
    with_decay, without = names(layer)
    assert with_decay == decayed
    assert len(without.split()) == len(list(layer.parameters())) - len(decayed.split())


class Scale(nn.Module):
    """Owns parameters that look like those of a batch norm, and is none."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(3)) for _ in range(2))

    def forward(self, x):
        return x * self.weight + self.bias


def test_neither_names_nor_shapes_take_a_parameter_out_of_decay():
    assert names(Scale()) == ["weight bias", ""]


class MyNorm(nn.Module):
    """A normalisation of another library: torch knows nothing of it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class MyLinear(nn.Linear):
    """A subclass with a parameter of its own."""

    def __init__(self):
        super().__init__(2, 3)
        self.temperature = nn.Parameter(torch.ones(()))


def test_subclasses_and_other_libraries_count():
    model = nn.ModuleDict({"a": MyNorm(), "b": MyLinear(), "c": BatchNormAct(3)})
    assert names(model) == ["b.weight b.temperature", "a.scale b.bias c.weight c.bias"]


def test_a_weight_layer_inside_a_normalisation_is_decayed_as_everywhere():
    class Conditional(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(3)
            self.gain = nn.Linear(2, 3)
            self.domains = nn.ParameterList([torch.ones(3)])

    assert names(Conditional()) == ["gain.weight", "weight bias gain.bias domains.0"]


@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
def test_the_batch_norms_that_bnkit_puts_into_layers_are_found(placement):
    twin = add(
        nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), dense(144, 5), nn.Tanh(), dense(5, 2)),
        images(),
        placement=placement,
    )
    decayed, undecayed = names(twin)
    assert decayed == "0.weight 3.weight 5.weight"
    assert undecayed.count("batchnorm.weight") == undecayed.count("batchnorm.bias") == 2


def test_weights_and_biases_that_are_computed_count_as_what_they_are():
    layers = [dense() for _ in range(3)]
    parametrizations.weight_norm(layers[0], "weight")
    parametrizations.weight_norm(layers[0], "bias", dim=None)
    prune.l1_unstructured(layers[1], "bias", 0.5)
    prune.l1_unstructured(layers[1], "weight", 0.5)
    norm = BatchNorm1d(4)
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    decayed, undecayed = names(nn.Sequential(*layers, norm))
    assert set(decayed.split()) == {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "1.weight_orig",
        "2.weight",
    }
    assert "3.parametrizations.weight.original" in undecayed


# Which parameters there are


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_groups_hold_every_parameter_once_and_change_nothing(model):
    subject = model.seeded()
    if not list(subject.parameters()):
        pytest.skip("it has no parameters")
    before, state = fingerprint(subject), random_state()
    groups = parameter_groups(subject, weight_decay=0.1)
    assert fingerprint(subject) == before
    assert random_state() == state
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in subject.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(held)
    by_name = dict(subject.named_parameters())
    for group in groups:
        assert [id(by_name[n]) for n in group["param_names"]] == [id(p) for p in group["params"]]


def test_a_shared_parameter_is_out_of_decay_if_one_of_its_modules_says_so():
    embedding, head, scale, norm = nn.Embedding(3, 3), nn.Linear(3, 3), Scale(), nn.BatchNorm1d(3)
    head.weight, norm.weight = embedding.weight, scale.weight
    model = nn.ModuleList([embedding, head, scale, norm])
    assert names(model) == ["0.weight 2.bias", "1.bias 2.weight 3.bias"]
    assert names(model, where=lambda _, layer: layer is not embedding) == [
        "2.bias",
        "0.weight 1.bias 2.weight 3.bias",
    ]


def test_frozen_parameters_are_kept_and_an_optimizer_passes_over_them():
    model = nn.Sequential(dense().requires_grad_(requires_grad=False), BatchNorm1d(4), dense())
    groups = parameter_groups(model, weight_decay=0.5)
    frozen = model[0].weight.clone()
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    model(vectors()).square().sum().backward()
    optimizer.step()
    assert names(model)[0] == "0.weight 2.weight"
    assert torch.equal(model[0].weight, frozen)


# Use


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_decay_shrinks_weights_and_leaves_the_rest(kind):
    model = nn.Sequential(dense(), BatchNorm1d(4), ConvWithNorm(4, 4, 1, norm=nn.GroupNorm(1, 4)))
    optimizer = kind(parameter_groups(model, weight_decay=0.5), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.weight", "2.weight"}


def test_parts_of_a_model_may_have_groups_of_their_own():
    model = nn.Sequential(dense(), BatchNorm1d(4))
    groups = [
        {**group, "lr": lr}
        for part, lr in ((model[0], 0.1), (model[1], 0.2))
        for group in parameter_groups(part, weight_decay=0.1)
    ]
    optimizer = torch.optim.SGD(groups)
    assert [(g["lr"], g["weight_decay"], g["name"]) for g in optimizer.param_groups] == [
        (0.1, 0.1, "decayed"),
        (0.1, 0.0, "undecayed"),
        (0.2, 0.0, "undecayed"),
    ]


def test_where_is_asked_of_modules_that_own_parameters():
    model, seen = nn.Sequential(dense(), nn.ReLU(), nn.Sequential(BatchNorm1d(4), dense())), []
    parametrizations.weight_norm(model[0])

    def where(path, layer):
        assert layer is model.get_submodule(path)
        seen.append(path)
        return path != "0"

    decayed, _ = names(model, where=where)
    assert seen == ["0", "2.0", "2.1"]
    assert decayed == "2.1.weight"


# Errors


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf"), "0.1", True, None])
def test_a_weight_decay_that_is_none_is_refused(value):
    message = f"`weight_decay` is {value!r}: pass a finite number of at least 0, such as 1e-4"
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter_groups(dense(), weight_decay=value)


def test_a_model_without_parameters_is_refused():
    message = r"`model` \(ReLU\) has no parameters: there is nothing to optimise"
    with pytest.raises(ValueError, match=message):
        parameter_groups(nn.ReLU(), weight_decay=0.1)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: [model], "`model` is a list: pass a torch.nn.Module"),
        (nn.DataParallel, "the model is a DataParallel: pass its .module"),
        (torch.compile, "the model is compiled: pass what torch.compile was given"),
        (torch.jit.script, "the model is TorchScript, whose layers are fixed"),
    ],
    ids=["no module", "parallel", "compiled", "scripted"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is on its way out
def test_what_hides_its_modules_is_refused(wrap, message):
    with pytest.raises(TypeError, match=message):
        parameter_groups(wrap(dense()), weight_decay=0.1)
