"""A copy is independent of the model, also where functions are set on its layers."""

import functools
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.dataflow import duplicate

DATA = [3 * torch.randn(16, 4, generator=torch.Generator().manual_seed(i)) + 2 for i in range(4)]


def cast(layer):
    inner = layer.forward
    layer.forward = lambda x: inner(x.float())


def by_default(layer):
    layer.forward = lambda x, inner=layer.forward: inner(x.float())


def by_keyword(layer):
    def forward(x, *, inner=layer.forward):
        return inner(x)

    layer.forward = forward


def nested(layer):
    def outer():
        inner = layer.forward

        def middle(x):
            return inner(x)

        return lambda x: middle(1 * x)

    layer.forward = outer()


def partial_of_closure(layer):
    inner = layer.forward
    layer.forward = functools.partial(lambda scale, x: inner(scale * x), 1.0)


def method(layer):
    layer.forward = MethodType(lambda self, x: type(self).forward(self, x), layer)


def without_gradients(layer):
    layer.forward = torch.no_grad()(layer.forward)


def autocast(layer):
    layer.forward = torch.autocast("cpu", enabled=False)(layer.forward)


def held_in_a_list(layer):
    layer.steps = [lambda x: nn.BatchNorm1d.forward(layer, x)]
    layer.forward = MethodType(lambda self, x: self.steps[0](x), layer)


def by_hook(layer):
    inner = layer.forward
    layer.register_forward_hook(lambda _module, args, _output: inner(args[0]))


PATCHES = (
    *(cast, by_default, by_keyword, nested, partial_of_closure, method),
    *(without_gradients, autocast, held_in_a_list, by_hook),
)


def patched(patch, *, whole=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    if whole:
        inner = model.forward
        model.forward = lambda x: inner(1 * x)
    else:
        patch(model[1])
    return model


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(state, model):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def explain_first(model, batches):
    return bnkit.explain_gap(model, batches[0])


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("verb", [bnkit.diagnose, bnkit.recalibrate, explain_first])
def test_no_verb_changes_the_model(patch, verb):
    model = patched(patch)
    state = state_of(model)
    verb(model, DATA)
    assert same(state, model)


@pytest.mark.parametrize("patch", PATCHES)
def test_a_copy_runs_its_own_layers(patch):
    model = patched(patch)
    changed = duplicate(model)
    expected = model.eval()(DATA[0])
    with torch.no_grad():
        changed[1].bias.add_(1.0)
    assert torch.equal(model(DATA[0]), expected)
    assert not torch.equal(changed.eval()(DATA[0]), expected)


def test_a_patched_model_runs_its_own_layers():
    model = patched(None, whole=True)
    changed = bnkit.recalibrate(model, DATA).eval()
    assert not torch.equal(changed(DATA[0]), model.eval()(DATA[0]))
    assert bnkit.fold(model, DATA[0])(DATA[0]).shape == (16, 2)


def test_a_function_that_finds_the_layer_in_a_global_is_refused(monkeypatch):
    model = patched(method)
    monkeypatch.setitem(globals(), "found_by_name", model[0].forward)
    model[0].forward = lambda x: found_by_name(x)  # noqa: F821, PLW0108  that is the test
    message = r"^'forward' of layer '0' is a function that finds a part of the model in the global"
    with pytest.raises(ValueError, match=message):
        bnkit.recalibrate(model, DATA)


def test_a_compiled_forward_is_refused_with_the_way_out():
    model = patched(method)
    model.forward = torch.compile(model.forward, backend="eager")
    message = r"^'forward' of the model is compiled, and a copy .* model.compile\(\), or to"
    with pytest.raises(ValueError, match=message):
        bnkit.recalibrate(model, DATA)


def test_functions_that_hold_nothing_of_the_model_are_shared():
    model = patched(method)
    model.loss = shared = lambda a: a
    assert duplicate(model).loss is shared


def test_a_proof_fails_where_a_copy_writes_into_the_original():
    class Shared:
        def __init__(self, layer):
            self.layer = layer

        def __deepcopy__(self, memo):
            return self

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.register_buffer("runs", torch.zeros(()))
            self.held = Shared(self)

        def forward(self, x):
            self.held.layer.runs += 1
            return self.body(x)

    with pytest.raises(bnkit.SurgeryError, match=r"\(Net\) writes into the original when it runs"):
        bnkit.fold(Net(), DATA[0])


def test_arrays_and_tensors_on_a_layer_are_copied_with_it():
    model = patched(method)
    model[1].table, model.numbers = torch.arange(3), np.arange(3)
    model.shared = model[0].shared = {}
    changed = duplicate(model)
    assert torch.equal(changed[1].table, model[1].table)
    assert changed.numbers is not model.numbers
    assert changed.shared is changed[0].shared
    assert changed.shared is not model.shared
    hooked = duplicate(model)
    hooked[0].register_forward_hook(print)
    assert not model[0]._forward_hooks
