import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bnkit.dataflow import ExampleError, as_call, duplicate, observe, tensors, trace
from zoo.catalogue import dense, vectors
from zoo.checks import call, fingerprint, memory, random_state

# as_call


def test_a_tensor_a_tuple_and_a_dict_are_calls():
    x = torch.zeros(1)
    assert as_call(x) == ((x,), {})
    assert as_call((x, 3)) == ((x, 3), {})
    assert as_call({"x": x}) == ((), {"x": x})


@pytest.mark.parametrize(("example", "kind"), [([1], "list"), (3, "int"), (None, "NoneType")])
def test_other_examples_are_refused(example, kind):
    message = (
        f"`example` is a {kind}: pass a tensor, a tuple of positional arguments or a dict of "
        f"keyword arguments"
    )
    with pytest.raises(TypeError, match=f"^{message}$"):
        as_call(example)


# trace and observe


class Nosy(nn.Module):
    """Does to its surroundings what it can, and notes what it finds."""

    def __init__(self):
        super().__init__()
        self.fc = dense()
        self.register_buffer("count", torch.zeros(()))
        self.found = []

    def forward(self, x):
        self.count += 1
        self.found += [self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
        torch.manual_seed(3)
        x.add_(torch.rand(4))
        return self.fc(x)


def test_the_run_is_in_eval_mode_without_gradients_and_leaves_no_trace():
    model, x = Nosy(), vectors()
    before, state = fingerprint(model), random_state()
    with torch.inference_mode():
        trace(model, x + 0)
    trace(model, (x,))
    assert fingerprint(model) == before
    assert random_state() == state
    assert torch.equal(x, vectors())
    observe(model, {"x": x})
    assert model.found == [False, False, False]
    assert torch.equal(x, vectors())
    assert not model.fc._forward_hooks


def test_examples_that_need_gradients_still_do():
    class Asks(nn.Module):
        def forward(self, x):
            assert x.requires_grad
            return x

    trace(Asks(), vectors().requires_grad_())


def test_errors_of_the_example_have_their_cause_and_leave_no_trace():
    model = Nosy()
    before, state = fingerprint(model), random_state()
    with pytest.raises(
        ExampleError, match=r"shape \(4,\), \(\) in its own forward: TypeError"
    ) as e:
        trace(model, (torch.zeros(4), torch.zeros(())))
    assert isinstance(e.value.__cause__, TypeError)
    assert isinstance(e.value, ValueError)
    assert fingerprint(model) == before
    assert random_state() == state


def test_an_example_without_tensors_has_an_unknown_shape():
    with pytest.raises(ExampleError, match=r"`example` of shape unknown in its own forward: "):
        trace(dense(), {"input": None, "other": 3})


def test_an_interruption_is_handed_on():
    class Interrupted(nn.Module):
        def forward(self, _):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(Interrupted(), vectors())


class Configured(nn.Linear):
    """A layer that is handed a config and keeps it, as those of language models do."""

    def __init__(self, config):
        super().__init__(4, 4)
        self.config = config

    def forward(self, x, config):
        return super().forward(x) * config.scale


class Deep(nn.Module):
    def __init__(self, depth, config):
        super().__init__()
        self.layers = nn.ModuleList(Configured(config) for _ in range(depth))
        self.config = config

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, self.config)
        return x


@pytest.mark.parametrize("depth", [1, 40])
def test_a_large_config_is_looked_through_once_a_trace(depth, monkeypatch):
    looked_into = []

    def counted(item, parts=tensors._parts):
        looked_into.append(item)
        return parts(item)

    monkeypatch.setattr(tensors, "_parts", counted)
    config = SimpleNamespace(scale=2, parts=[SimpleNamespace(name=str(n)) for n in range(2000)])
    flow = trace(Deep(depth, config), vectors())
    assert len(flow.calls) == depth
    # The copy of the model looks through the config once, and the run does once.
    assert sum(hasattr(item, "name") for item in looked_into) == 2 * len(config.parts)
    assert len(looked_into) < 2 * len(config.parts) + 60 * depth + 60


class PartlyCompiled(nn.Module):
    """Compiles a part of its forward, which runs before and after it is compiled."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = dense(4, 5), dense(5, 2)

    @torch.compile(backend="eager")
    def hidden(self, x):
        return torch.relu(self.fc(x))

    def forward(self, x):
        return self.head(self.hidden(x))


def test_compiled_parts_of_a_model_are_seen_as_they_are_written():
    model = PartlyCompiled()
    before = model(vectors())
    for _ in range(3):  # compiled under a TorchFunctionMode, it would fail at the second run
        flow = trace(model, vectors())
        assert [call.name for call in flow.calls] == ["fc", "relu", "head"]
    torch.testing.assert_close(model(vectors()), before)


# duplicate


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
