import functools
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from bnkit.lab.fingerprints import (
    FIRST_BATCHES,
    fingerprint,
    of_batches,
    of_model,
    source_of,
    versions,
)

NETWORK = """
import functools
from torch import nn

SCALE = 2

def helper(x):
    return x + 1

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return SCALE * helper(self.layer(x))

def build():
    return Net()

class Builder:
    def __call__(self):
        return Net()

    def method(self):
        return Net()

@functools.cache
def wrapped():
    return Net()
"""
EDITS = {
    "the body of the forward": ("SCALE * helper", "helper"),
    "a helper": ("x + 1", "x + 2"),
    "a constant": ("SCALE = 2", "SCALE = 3"),
}
edited = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import source text as the module `own` from a new file."""
    count = 0

    def load(text):
        nonlocal count
        count += 1
        path = tmp_path / f"own{count}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("own", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own", module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def typed(monkeypatch):
    """Run source text as the module `own` without a file, as in a notebook."""

    def load(text):
        module = types.ModuleType("own")
        monkeypatch.setitem(sys.modules, "own", module)
        exec(compile(text, f"<cell {id(module)}>", "exec"), vars(module))
        return module

    return load


def seeded(make):
    torch.manual_seed(0)
    return make()


# Plain values


def test_equal_values_have_equal_fingerprints_of_16_digits():
    parts = {"a": 1, "b": [2.5, None]}
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    assert len(fingerprint(parts)) == 16
    assert int(fingerprint(parts), 16) > 0


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": 1.0}, {"a": "1"}, {"a": 1, "b": 1}])
def test_other_values_have_other_fingerprints(other):
    assert fingerprint(other) != fingerprint({"a": 1})


def test_the_versions_are_those_of_bnkit_and_torch():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"bnkit", "torch"}


# Sources


@pytest.mark.parametrize("make", ["imported", "typed"])
@pytest.mark.parametrize("name", ["build", "Net", "Builder", "wrapped", "helper"])
def test_equal_texts_give_equal_sources(make, name, request):
    load = request.getfixturevalue(make)
    first = source_of(getattr(load(NETWORK), name))
    assert source_of(getattr(load(NETWORK), name)) == first


@edited
@pytest.mark.parametrize(
    "pick",
    [
        pytest.param(lambda own: own.build, id="function"),
        pytest.param(lambda own: own.Net, id="class"),
        pytest.param(lambda own: functools.partial(functools.partial(own.build)), id="partial"),
        pytest.param(lambda own: own.Builder(), id="callable object"),
        pytest.param(lambda own: own.Builder().method, id="method"),
        pytest.param(lambda own: own.wrapped, id="decorated"),
    ],
)
def test_an_edit_anywhere_in_its_file_changes_a_source(imported, edit, pick):
    before = source_of(pick(imported(NETWORK)))
    assert source_of(pick(imported(NETWORK.replace(*edit)))) != before


@pytest.mark.parametrize(
    ("pick", "edit"),
    [
        (lambda own: own.helper, ("x + 1", "x + 2")),
        (lambda own: own.Net, ("SCALE * helper", "helper")),
        (lambda own: own.Net, ("nn.Linear(2, 2)", "nn.Linear(2, 3)")),
        (lambda own: own.Builder(), ("return Net()", "return Net().eval()")),
        (lambda own: own.Builder().method, ("return Net()", "return Net().eval()")),
        (lambda own: own.wrapped, ("return Net()", "return Net().eval()")),
    ],
    ids=["function", "forward", "constructor", "callable object", "method", "decorated"],
)
def test_without_a_file_an_edit_of_its_own_code_changes_a_source(typed, pick, edit):
    before = source_of(pick(typed(NETWORK)))
    assert source_of(pick(typed(NETWORK.replace(*edit)))) != before


def test_without_a_file_equal_nested_functions_are_equal_and_edited_ones_not(typed):
    # The constants of a function hold the code of those in it, whose text names an address.
    text = "def build():\n    return list(map(lambda x: x in {'a', 'b'}, 'abc'))\n"
    before = source_of(typed(text).build)
    assert source_of(typed("\n\n" + text).build) == before
    assert source_of(typed(text.replace("'b'", "'c'")).build) != before


def test_a_built_in_function_is_named():
    assert "<built-in function len>" in source_of(len)


# Models


def test_equal_models_have_equal_fingerprints(imported):
    net = imported(NETWORK).Net
    assert of_model(seeded(net)) == of_model(seeded(net))


@edited
def test_an_edit_in_the_file_of_a_class_changes_the_model(imported, edit):
    before = of_model(seeded(imported(NETWORK).Net))
    assert of_model(seeded(imported(NETWORK.replace(*edit)).Net)) != before


def test_an_edit_in_the_file_of_a_submodule_or_base_class_changes_the_model(imported):
    def inside():
        return of_model(nn.Sequential(seeded(sys.modules["own"].Net)))

    def derived():
        base = sys.modules["own"].Net
        return of_model(seeded(type("Derived", (base,), {"__module__": "builtins"})))

    imported(NETWORK)
    before = inside(), derived()
    imported(NETWORK.replace("x + 1", "x + 2"))
    assert inside() != before[0]
    assert derived() != before[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data[0, 0].add_(1e-6),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.append(nn.ReLU()),
        lambda m: m.double(),
        lambda m: setattr(m[1], "eps", 1e-3),
    ],
    ids=["a weight", "a buffer", "a layer without arrays", "the dtype", "an option"],
)
def test_another_array_or_structure_changes_the_model(change):
    def make():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    model = seeded(make)
    change(model)
    assert of_model(model) != of_model(seeded(make))


def test_arrays_without_dimensions_or_elements_and_of_narrow_types_have_fingerprints():
    model = nn.Module()
    for index, array in enumerate(
        [torch.tensor(1.5), torch.empty(0, 2), torch.ones(2).bfloat16(), torch.tensor([True])]
    ):
        model.register_buffer(f"b{index}", array)
    before = of_model(model)
    model.b3.logical_not_()
    assert of_model(model) != before


# Data


def pairs(value=0.0):
    return [(torch.full((2, 3), value), torch.tensor([0, 1])) for _ in range(3)]


def test_equal_batches_have_equal_fingerprints():
    assert of_batches(pairs(), pairs()) == of_batches(iter(pairs()), tuple(pairs()))


def test_other_batches_have_other_fingerprints():
    views = [
        of_batches(pairs(), pairs()),
        of_batches(pairs(1.0), pairs()),
        of_batches(pairs(), pairs(1.0)),
        of_batches(pairs() + pairs(), []),  # the same batches, otherwise dealt
        of_batches(pairs()[:2], pairs()),
        of_batches([(x.double(), y) for x, y in pairs()], pairs()),
        of_batches([(x.T.reshape(3, 2), y) for x, y in pairs()], pairs()),
        of_batches([(y, x) for x, y in pairs()], pairs()),
        of_batches([({"x": x}, y) for x, y in pairs()], pairs()),
        of_batches([({"z": x}, y) for x, y in pairs()], pairs()),
        of_batches([(x, 2, y) for x, y in pairs()], pairs()),
        of_batches([(x, 3, y) for x, y in pairs()], pairs()),
    ]
    assert len(set(views)) == len(views)


def test_batches_are_told_apart_by_values_and_not_by_strides():
    x = torch.arange(6.0).view(2, 3)
    assert of_batches([(x.T.contiguous().T, 0)]) == of_batches([(x, 0)])


def test_of_endless_batches_the_first_hundred_are_read():
    read = []

    def endless():
        while True:
            read.append(1)
            yield torch.zeros(1), torch.zeros(1)

    of_batches(endless())
    assert len(read) == FIRST_BATCHES == 100
