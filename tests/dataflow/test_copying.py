import copy
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from bnkit.dataflow import duplicate
from models import MODELS
from zoo.catalogue import dense, vectors
from zoo.checks import call, memory, random_state


def test_a_copy_shares_nothing_and_can_be_trained_even_if_made_in_inference_mode():
    model = nn.Sequential(dense(), nn.BatchNorm1d(4))
    with torch.inference_mode():
        copy = duplicate(model)
    assert memory(copy).isdisjoint(memory(model))
    copy(vectors()).sum().backward()


class Cached(nn.Module):
    """Keeps tensors that have a history, in attributes and in containers."""

    def __init__(self):
        super().__init__()
        self.fc, self.all = dense(), {}

    def forward(self, x):
        self.last = self.fc(x)
        self.all["last"] = [self.last, self.last * 2]
        return self.last


def test_models_that_hold_computed_tensors_can_be_copied():
    model = Cached()
    model(vectors())
    copy = duplicate(model)
    assert memory(copy).isdisjoint(memory(model))
    assert copy.all["last"][0] is copy.last
    assert torch.equal(copy.last, model.last)
    assert model.last.grad_fn is not None
    torch.testing.assert_close(call(copy, vectors()), call(model, vectors()))


class Constructed(nn.Linear):
    """Is copied by its constructor, which draws random numbers."""

    def __deepcopy__(self, memo):
        return Constructed(4, 4)


def test_a_copy_draws_no_random_numbers():
    model = Constructed(4, 4)
    state = random_state()
    duplicate(model)
    assert random_state() == state


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is on its way out
@pytest.mark.parametrize(
    "script",
    [torch.jit.script, lambda model: torch.jit.trace(model, vectors())],
    ids=["scripted", "traced"],
)
def test_torchscript_is_refused(script):
    scripted = script(dense())
    with pytest.raises(TypeError, match=r"^the model is TorchScript, whose layers are fixed: pass"):
        duplicate(scripted)
    with pytest.raises(TypeError, match=r"^layer '1' is TorchScript, whose layers are fixed"):
        duplicate(nn.Sequential(nn.ReLU(), scripted))


def test_compiled_models_are_refused():
    compiled = torch.compile(dense(), backend="eager")
    message = r"^the model is compiled: pass what torch.compile was given, and compile the result$"
    with pytest.raises(TypeError, match=message):
        duplicate(compiled)
    with pytest.raises(TypeError, match=r"^layer '0' is compiled"):
        duplicate(nn.Sequential(compiled))


def blank(kind):
    wrapper = kind.__new__(kind)
    nn.Module.__init__(wrapper)
    return wrapper


@pytest.mark.parametrize("kind", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_parallel_wrappers_are_refused(kind):
    message = rf"^the model is a {kind.__name__}: pass its .module, and wrap the result$"
    with pytest.raises(TypeError, match=message):
        duplicate(blank(kind))


def test_lazy_layers_that_have_no_shape_are_refused():
    message = r"^layer '1' is lazy and has no shape yet: run one mini-batch through it$"
    with pytest.raises(ValueError, match=message):
        duplicate(nn.Sequential(dense(), nn.LazyLinear(2)))


def test_what_is_no_module_is_refused():
    message = r"^`model` is a function: pass a torch.nn.Module$"
    with pytest.raises(TypeError, match=message):
        duplicate(lambda x: x)


def test_models_that_cannot_be_copied_are_refused():
    model = nn.Sequential(dense())
    model.lock = threading.Lock()
    message = (
        r"^`model` \(Sequential\) cannot be copied: cannot pickle '_thread.lock' object. bnkit "
        r"changes a copy and leaves yours alone, so copy.deepcopy\(model\) must work$"
    )
    with pytest.raises(ValueError, match=message):
        duplicate(model)


# as copy.deepcopy does it


class Keeper(nn.Module):
    """Holds what modules hold: tables, aliases, a part of itself in a list, and a reference up."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.same = self.body[0]
        self.parts = [self.body, {"norm": self.body[1]}]
        self.table, self.ordered = {"a": [1, 2], ("b", 1): {3}}, OrderedDict(z=[4])
        self.alias = self.table
        self.__dict__["owner"] = self  # as back references are kept out of the children
        self.body[0].__dict__["owner"] = self
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.empty, self.nothing = set(), None


class Counted(nn.Linear):
    """Is copied by a state of its own making."""

    def __getstate__(self):
        return {**vars(self), "copies": getattr(self, "copies", 0) + 1}


class Delegating(nn.Module):
    """Finds attributes in what it wraps, the way to copy that included."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Slotted(nn.ReLU):
    __slots__ = ("limit",)


def public(module):
    """Return the names of its attributes; torch's recurrent layers make private ones anew."""
    return [name for name in vars(module) if not name.startswith("_")]


def contents(model):
    """Return what `model` is made of, in a form that copies have in common."""
    modules = [
        (path, type(module), module.training, public(module), module.extra_repr())
        for path, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return modules, [(name, t.dtype, t.requires_grad, t.tolist()) for name, t in tensors]


def test_what_modules_hold_is_copied_as_they_hold_it():
    model = Keeper()
    made = duplicate(model)
    assert contents(made) == contents(copy.deepcopy(model)) == contents(model)
    assert memory(made).isdisjoint(memory(model))
    assert made.same is made.body[0]
    assert made.parts[0] is made.body
    assert made.parts[1]["norm"] is made.body[1]
    assert made.owner is made
    assert made.body[0].owner is made
    assert made.alias is made.table is not model.table
    assert made.table == model.table
    assert made.table["a"] is not model.table["a"]
    assert type(made.ordered) is OrderedDict
    assert made.ordered["z"] is not model.ordered["z"]
    assert made.empty is not model.empty
    assert list(made.state_dict()) == list(model.state_dict())
    made.register_forward_hook(lambda *_: None)  # into tables of its own
    assert not model._forward_hooks


@pytest.mark.parametrize("network", MODELS, ids=str)
def test_every_network_is_copied_with_all_that_it_holds(network):
    model = network.seeded()
    made = duplicate(model)
    assert contents(made) == contents(model)
    assert memory(made).isdisjoint(memory(model))


def test_classes_that_say_how_they_are_copied_are_asked():
    assert duplicate(nn.Sequential(Counted(1, 1)))[0].copies == 1
    wrapper = Delegating(Constructed(2, 2))
    assert type(duplicate(wrapper)) is type(copy.deepcopy(wrapper))
    slotted = Slotted()
    slotted.limit = [6]
    assert hasattr(duplicate(slotted), "limit") is hasattr(copy.deepcopy(slotted), "limit")
    layer = nn.ReLU()
    layer.__dict__["__deepcopy__"] = lambda _: nn.Tanh()
    assert isinstance(duplicate(nn.Sequential(layer))[0], nn.Tanh)
