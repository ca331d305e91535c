from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bnkit.dataflow import ExampleError, as_call, observe, tensors, trace
from zoo.catalogue import dense, vectors
from zoo.checks import fingerprint, random_state

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
