import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from bnkit import BatchNorm1d, add
from bnkit.parameters import parameter_groups
from bnkit.surgery.optimizers import rebind
from zoo.catalogue import dense, vectors

KINDS = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD with momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD on many tensors at once": lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "Adam": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "Adam on many tensors at once": lambda p: Adam(p, lr=0.1, foreach=True),
    "Adam with a tensor as learning rate": lambda p: Adam(p, lr=torch.tensor(0.1)),
    "fused Adam": lambda p: Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: AdamW(p, lr=0.1, weight_decay=0.3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "Adadelta": torch.optim.Adadelta,
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": torch.optim.Rprop,
    "Adafactor, whose state has other shapes": torch.optim.Adafactor,
}


def small():
    torch.manual_seed(0)
    return nn.Sequential(dense(4, 5), nn.Tanh(), dense(5, 5), nn.Tanh(), dense(5, 2))


def train(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(vectors() + step).square().sum().backward()
        optimizer.step()


def copy_of(model):
    copy = small()
    copy.load_state_dict(model.state_dict())
    return copy


def plain(value):
    """Return a state dict in which tensors are lists, so that two can be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (value.tolist(), value.dtype) if isinstance(value, torch.Tensor) else value


def holding(optimizer, model):
    """Return the names of the parameters in each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


# Training goes on


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("steps", [0, 3], ids=["unused", "used"])
def test_a_copy_of_the_model_goes_on_as_the_model_would(make, steps):
    model = small()
    optimizer = make(model.parameters())
    train(model, optimizer, steps)
    copy = copy_of(model)
    before = plain(optimizer.state_dict())
    rebound = rebind(optimizer, model, copy)
    assert type(rebound) is type(optimizer)
    assert plain(rebound.state_dict()) == before
    assert rebound.defaults == optimizer.defaults
    train(copy, rebound)
    assert plain(optimizer.state_dict()) == before  # nothing is shared
    train(model, optimizer)
    assert plain(copy.state_dict()) == plain(model.state_dict())
    assert plain(rebound.state_dict()) == plain(optimizer.state_dict())


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_twin_with_batch_norm_keeps_what_is_known_and_trains(make):
    model = small()
    optimizer = make(model.parameters())
    train(model, optimizer)
    twin = add(model, vectors())
    rebound = rebind(optimizer, model, twin)
    ((*names,),) = holding(rebound, twin)
    assert names == [
        *("0.weight", "2.weight", "4.weight", "4.bias"),
        *("0.batchnorm.weight", "0.batchnorm.bias", "2.batchnorm.weight", "2.batchnorm.bias"),
    ]
    for name in names[:4]:
        old, new = model.get_parameter(name), twin.get_parameter(name)
        assert plain(rebound.state.get(new)) == plain(optimizer.state.get(old))
    gone = model.get_parameter("0.bias")
    assert gone not in rebound.state
    started = twin.get_parameter("0.batchnorm.weight").detach().clone()
    train(twin, rebound)
    assert not torch.equal(twin.get_parameter("0.batchnorm.weight"), started)


def test_all_is_done_by_name_and_not_by_order():
    model, other = nn.Module(), nn.Module()
    for holder, names in ((model, "ab"), (other, "ba")):
        for name in names:
            holder.register_parameter(name, nn.Parameter(torch.full((3,), float(ord(name)))))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.a.grad, model.b.grad = torch.full((3,), 1.0), torch.full((3,), 2.0)
    optimizer.step()
    rebound = rebind(optimizer, model, other)
    assert holding(rebound, other) == [["a", "b"]]
    assert rebound.state[other.b]["momentum_buffer"].tolist() == [2.0] * 3


# Groups


def test_new_parameters_join_the_group_of_their_layer():
    model = small()
    optimizer = SGD(
        [
            {"params": model[4].parameters(), "lr": 0.5, "mine": "head"},
            {"params": model[2].parameters(), "lr": 0.05},
            {"params": model[0].parameters()},
        ],
        lr=0.1,
    )
    optimizer.param_groups[1]["lr"] = 0.04
    twin = add(model, vectors())
    rebound = rebind(optimizer, model, twin)
    assert holding(rebound, twin) == [
        ["4.weight", "4.bias"],
        ["2.weight", "2.batchnorm.weight", "2.batchnorm.bias"],
        ["0.weight", "0.batchnorm.weight", "0.batchnorm.bias"],
    ]
    assert [group["lr"] for group in rebound.param_groups] == [0.5, 0.04, 0.1]
    assert rebound.param_groups[0]["mine"] == "head"


def blocks(*, normalised):
    def block():
        return nn.ModuleDict({"fc": dense()} | ({"norm": BatchNorm1d(4)} if normalised else {}))

    extra = {"extra": BatchNorm1d(4)} if normalised else {}
    return nn.ModuleDict({"a": block(), "b": block()} | extra)


def test_new_parameters_join_the_group_of_the_nearest_module_around_them_else_the_first():
    model, changed = blocks(normalised=False), blocks(normalised=True)
    optimizer = SGD([{"params": model["b"].parameters()}, {"params": model["a"].parameters()}])
    assert holding(rebind(optimizer, model, changed), changed) == [
        ["b.fc.weight", "b.fc.bias", "b.norm.weight", "b.norm.bias", "extra.weight", "extra.bias"],
        ["a.fc.weight", "a.fc.bias", "a.norm.weight", "a.norm.bias"],
    ]


def test_in_groups_of_parameter_groups_new_parameters_go_by_their_type():
    model = blocks(normalised=False)
    groups = [
        {**group, "lr": lr}
        for path, lr in (("a", 0.1), ("b", 0.2))
        for group in parameter_groups(model[path], weight_decay=0.1)
    ]
    changed = blocks(normalised=True)
    changed["b"]["gain"] = dense()
    rebound = rebind(SGD(groups), model, changed)
    assert holding(rebound, changed) == [
        ["a.fc.weight"],
        ["a.fc.bias", "a.norm.weight", "a.norm.bias", "extra.weight", "extra.bias"],
        ["b.fc.weight", "b.gain.weight"],
        ["b.fc.bias", "b.norm.weight", "b.norm.bias", "b.gain.bias"],
    ]
    assert [group["lr"] for group in rebound.param_groups] == [0.1, 0.1, 0.2, 0.2]


def test_a_group_whose_parameters_are_gone_keeps_its_place():
    model = blocks(normalised=True)
    optimizer = SGD([{"params": model["extra"].parameters(), "lr": 0.3}, *parts(model)], lr=0.1)
    changed = blocks(normalised=False)
    rebound = rebind(optimizer, model, changed)
    assert [len(group["params"]) for group in rebound.param_groups] == [0, 2, 2]
    assert rebound.param_groups[0]["lr"] == 0.3


def parts(model):
    return [{"params": model[path].parameters()} for path in ("a", "b")]


def test_what_the_optimizer_left_out_stays_out():
    model = small()
    model[0].requires_grad_(requires_grad=False)
    optimizer = SGD(model[2:].parameters())
    copy = small()
    assert holding(rebind(optimizer, model, copy), copy) == [
        ["2.weight", "2.bias", "4.weight", "4.bias"]
    ]


def test_frozen_parameters_stay_in_and_stay_as_they_are():
    model = small()
    model[0].weight.requires_grad_(requires_grad=False)
    optimizer = AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    twin = add(model, vectors())
    rebound, frozen = rebind(optimizer, model, twin), twin[0].weight.detach().clone()
    train(twin, rebound)
    assert holding(rebound, twin)[0][0] == "0.weight"
    assert torch.equal(twin[0].weight, frozen)


def test_names_in_groups_follow_their_parameters():
    model = small()
    named = [(f"my {name}", parameter) for name, parameter in model.named_parameters()]
    twin = add(model, vectors(), where=lambda path, _: path == "0")
    rebound = rebind(SGD(named), model, twin)
    assert rebound.param_groups[0]["param_names"] == [
        *("my 0.weight", "my 2.weight", "my 2.bias", "my 4.weight", "my 4.bias"),
        *("0.batchnorm.weight", "0.batchnorm.bias"),
    ]


# Parameters


def tied():
    torch.manual_seed(0)
    return nn.ModuleDict({"embedding": nn.Embedding(3, 4), "head": nn.Linear(4, 3, bias=False)})


def test_a_parameter_that_gets_or_loses_a_second_name_keeps_its_state():
    apart, together = tied(), tied()
    together["head"].weight = together["embedding"].weight
    optimizer = SGD(together.parameters(), momentum=0.9)
    together["head"].weight.grad = torch.ones(3, 4)
    optimizer.step()
    parted = rebind(optimizer, together, apart)
    buffers = [parted.state[p]["momentum_buffer"] for p in apart.parameters()]
    assert [b.tolist() for b in buffers] == [torch.ones(3, 4).tolist()] * 2
    assert buffers[0] is not buffers[1]
    tied_again = rebind(parted, apart, together)
    assert holding(tied_again, together) == [["embedding.weight"]]
    assert tied_again.state[together["head"].weight]["momentum_buffer"].sum() == 12


def test_a_parameter_of_another_shape_keeps_its_group_and_starts_anew():
    model, wider = dense(4, 4), dense(4, 6)
    optimizer = Adam(model.parameters())
    model(vectors()).sum().backward()
    optimizer.step()
    rebound = rebind(optimizer, model, wider)
    assert holding(rebound, wider) == [["weight", "bias"]]
    assert not rebound.state


def test_state_follows_a_model_into_another_dtype_and_counts_stay_exact():
    model = small()
    optimizer = Adam(model.parameters())
    train(model, optimizer)
    optimizer.state[model[0].weight]["step"] = torch.tensor(16_777_215.0)
    half = copy_of(model).half()
    state = rebind(optimizer, model, half).state[half[0].weight]
    assert state["exp_avg"].dtype == torch.float16
    assert (state["step"].item(), state["step"].dtype) == (16_777_215, torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_counts_that_graphs_capture_stay_there():
    model = small().cuda()
    optimizer = Adam(model.parameters(), capturable=True)
    model(vectors().cuda()).sum().backward()
    optimizer.step()
    copy = small().cuda()
    state = rebind(optimizer, model, copy).state[copy[0].weight]
    assert {name: t.device.type for name, t in state.items()} == dict.fromkeys(state, "cuda")


def test_state_that_is_carried_where_gradients_are_off_can_be_updated():
    model = small()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    copy = copy_of(model)
    with torch.inference_mode():
        rebound = rebind(optimizer, model, copy)
    train(copy, rebound)
    assert not any(s["momentum_buffer"].is_inference() for s in rebound.state.values())


# Others that hold an optimizer


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: lr_scheduler.OneCycleLR(o, 0.4, total_steps=10),
    ],
    ids=["steps", "function", "cosine", "one cycle"],
)
def test_a_scheduler_goes_on_when_it_is_given_the_result(schedule):
    model = small()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedule(optimizer)
    whole, reference = [], SGD(small().parameters(), lr=0.1, momentum=0.9)
    of_reference = schedule(reference)
    for _ in range(7):
        reference.step()
        of_reference.step()
        whole.append(reference.param_groups[0]["lr"])
    seen = []
    for epoch in range(7):
        if epoch == 3:
            optimizer = rebind(optimizer, model, copy_of(model))
            scheduler.optimizer = optimizer
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == whole


class Counting(SGD):
    """Keeps state that belongs to no parameter, and takes its options in no signature."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.state["calls"] = 0

    def step(self, closure=None):
        self.state["calls"] += 1
        return super().step(closure)


def test_classes_of_others_keep_their_state():
    model = small()
    optimizer = Counting(model.parameters(), lr=0.25, momentum=0.5)
    train(model, optimizer)
    rebound = rebind(optimizer, model, add(model, vectors()))
    assert rebound.state["calls"] == 3
    assert (rebound.defaults["lr"], rebound.param_groups[0]["momentum"]) == (0.25, 0.5)


# Errors


class Around(SGD):
    """Wants something that is neither in the groups nor in the defaults."""

    def __init__(self, params, base):
        self.base = base
        super().__init__(params)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda model: Around(model.parameters(), base=1), "TypeError: .*missing 1 required"),
        (
            lambda model: torch.optim.Muon([p for p in model.parameters() if p.dim() == 2]),
            "ValueError: Muon only supports 2D",
        ),
    ],
    ids=["another argument", "parameters that it does not take"],
)
def test_an_optimizer_that_cannot_be_made_anew_is_refused(make, reason):
    model = small()
    twin = add(model, vectors())
    message = rf"`optimizer` is a \w+, which cannot be made anew from .* \({reason}.*yourself$"
    with pytest.raises(TypeError, match=message):
        rebind(make(model), model, twin)


def test_state_of_all_parameters_together_is_carried_only_where_they_are_the_same():
    model = small()
    optimizer = torch.optim.LBFGS(model.parameters())
    message = (
        r"^`optimizer` is a LBFGS after its first step, whose state is of all parameters together, "
        r"and the new model has others: make one for the new model yourself$"
    )

    def step(model, optimizer):
        def loss():
            optimizer.zero_grad()
            value = model(vectors()).square().sum()
            value.backward()
            return value

        return optimizer.step(loss).item()

    step(model, optimizer)
    with pytest.raises(ValueError, match=message):
        rebind(optimizer, model, add(model, vectors()))
    copy = copy_of(model)
    assert step(copy, rebind(optimizer, model, copy)) == step(model, optimizer)


def test_parameters_of_other_models_are_refused_by_their_place():
    model, loss = small(), dense()
    optimizer = SGD([{"params": model.parameters()}, {"params": loss.parameters()}])
    message = (
        r"^parameter 0 of group 1 of `optimizer`, of shape \(4, 4\), is not in `old_model` "
        r"\(Sequential\): pass the model whose parameters it optimises, with all of them inside$"
    )
    with pytest.raises(ValueError, match=message):
        rebind(optimizer, model, copy_of(model))


def test_a_new_model_without_a_name_in_common_is_refused():
    model = small()
    message = (
        "`new_model` (Sequential) has no parameter by a name that the optimizer's have in "
        "`old_model`, such as '0.weight', only '0.0.weight', '0.0.bias', '0.2.weight', "
        "'0.2.bias': pass the part of it that stands for `old_model`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rebind(SGD(model.parameters()), model, nn.Sequential(copy_of(model)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda _, m: (m, m, m), "`optimizer` is a Sequential: pass a torch.optim.Optimizer"),
        (lambda o, m: (o, None, m), "`old_model` is a NoneType: pass a torch.nn.Module"),
        (lambda o, m: (o, m, "new"), "`new_model` is a str: pass a torch.nn.Module"),
        (lambda o, m: (o, nn.DataParallel(m), m), "the model is a DataParallel: pass its .module"),
    ],
    ids=["optimizer", "old model", "new model", "wrapped"],
)
def test_what_is_of_another_kind_is_refused(arguments, message):
    model = small()
    with pytest.raises(TypeError, match=message):
        rebind(*arguments(SGD(model.parameters()), model))
