import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from bnkit.benchmarking import Case, measure
from bnkit.benchmarking.measuring import compiled_copy, refuse_without_compiler


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch):
    """Let torch.compile trace, but not call a C++ compiler, which takes seconds."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda it, **more: compile_(it, backend="eager", **more))
    counters.clear()
    yield
    torch.compiler.reset()


def test_every_case_is_compiled_also_after_the_eighth():
    # torch compiles one piece of code for eight shapes, and runs the ninth as it is.
    for channels in range(1, 11):
        layers = compiled_copy(nn.Sequential(nn.BatchNorm1d(channels), nn.ReLU()))
        layers(torch.randn(4, channels))
        assert counters["stats"]["unique_graphs"] == channels


def test_the_compiled_layers_share_nothing_with_the_others():
    layers = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())
    compiled_copy(layers)(torch.randn(4, 2))
    assert layers[0].num_batches_tracked == 0


def test_torch_compile_is_among_the_programs_if_it_is_asked_for():
    found = measure(Case((4, 3)), seconds=0.0, compiled=True)
    assert found.ratio("torch.compile") > 0
    assert counters["stats"]["unique_graphs"] >= 1


def test_where_it_works_nothing_is_refused():
    refuse_without_compiler()


def test_where_it_does_not_work_the_cause_is_named(monkeypatch):
    def without_compiler(_function):
        def fail(_input):
            cause = RuntimeError("No working C++ compiler found.\nSet CXX.")
            raise TypeError("the backend failed") from cause

        return fail

    monkeypatch.setattr(torch, "compile", without_compiler)
    message = (
        r"^`compiled` was asked for, and torch.compile fails on this machine \(RuntimeError: No "
        r"working C\+\+ compiler found\): install a C\+\+ compiler, or do without `compiled`$"
    )
    with pytest.raises(ValueError, match=message):
        refuse_without_compiler()
