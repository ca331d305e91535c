import functools
import importlib
import sys
import types

import pytest
import torch
from torch import nn

import users
from bnkit.source_code import source_of


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return what writes files into a folder of one's own and imports the first of them."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        for name in set(sys.modules) - before:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module(next(iter(files)))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


# Code in files

BUILD = """
import functools
from torch import nn
import helper
def width():
    return 8
class Net(nn.Module):
    def forward(self, x):
        return x
def build():
    return Net()
@functools.cache
def cached():
    return Net()
class Builder:
    def __call__(self):
        return Net()
    def method(self):
        return Net()
"""
HELPER = "from deep import thing\ndef scale(x):\n    return 2 * x\n"
DEEP = "def thing():\n    return 1\n"


PICKS = {
    "function": lambda mine: mine.build,
    "class": lambda mine: mine.Net,
    "another function": lambda mine: mine.width,
    "cached": lambda mine: mine.cached,
    "callable object": lambda mine: mine.Builder(),
    "method": lambda mine: mine.Builder().method,
    "partial": lambda mine: functools.partial(functools.partial(mine.build)),
}


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
@pytest.mark.parametrize(
    "edited",
    [
        pytest.param({"mine": BUILD.replace("return Net()", "return Net().eval()")}, id="body"),
        pytest.param({"mine": BUILD.replace("return x", "return -x")}, id="forward"),
        pytest.param({"mine": BUILD.replace("8", "9")}, id="a function beside it"),
        pytest.param({"helper": HELPER.replace("2", "3")}, id="a file that it imports"),
        pytest.param({"deep": DEEP.replace("1", "2")}, id="a file that this imports"),
    ],
)
def test_an_edit_anywhere_in_ones_own_files_is_seen(written, pick, edited):
    files = {"mine": BUILD, "helper": HELPER, "deep": DEEP}
    before = source_of(pick(written(**files)))
    assert source_of(pick(written(**files))) == before
    assert source_of(pick(written(**{**files, **edited}))) != before


def test_files_of_installed_packages_are_not_read(written):
    text = source_of(written(mine="import torch, numpy, json\ndef build():\n    return 1\n").build)
    assert len(text) < 200


def test_a_decorated_function_is_known_by_its_own_file(written):
    plain = "import torch\n@torch.no_grad()\ndef build():\n    return 1\n"
    before = source_of(written(mine=plain).build)
    assert source_of(written(mine=plain.replace("1", "2")).build) != before


# Values that are carried


def carrying(value):
    return lambda: value


def with_default(value):
    def build(width=value):
        return width

    return build


class Builder:
    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value

    def build(self):
        return self.value


WAYS = [
    carrying,
    with_default,
    Builder,
    lambda value: Builder(value).build,
    lambda value: functools.partial(users.build, value),
    lambda value: functools.partial(users.build, width=value),
    lambda value: carrying([{"deep": (value,)}]),
    lambda value: carrying(carrying(value)),
    lambda value: carrying(Builder(value)),
]


@pytest.mark.parametrize("carry", WAYS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (8, 9),
        ("relu", "tanh"),
        ({1, 2}, {1, 3}),
        (torch.zeros(3), torch.tensor([0, 0, 1.0])),
        (torch.zeros(3).numpy(), torch.ones(3).numpy()),
        (nn.ReLU, nn.Tanh),
    ],
    ids=str,
)
def test_another_value_makes_another_function(carry, one, other):
    assert source_of(carry(one)) == source_of(carry(one))
    assert source_of(carry(one)) != source_of(carry(other))


def test_what_refers_to_itself_is_walked_once():
    ring = []
    ring.append(ring)
    assert source_of(carrying(ring)) == source_of(carrying(ring))


class Slots:
    __slots__ = ("value",)


def test_what_has_no_dictionary_is_known_by_its_class():
    assert source_of(carrying(Slots())) == source_of(carrying(Slots()))
    assert source_of(carrying(len)) != source_of(carrying(max))


def test_a_librarys_module_is_known_by_its_settings():
    # The class weights of a loss, as users pass it to a comparison: its results must not be mixed.
    weights = torch.tensor([1.0, 2.0])
    one, other = nn.CrossEntropyLoss(weights), nn.CrossEntropyLoss(2 * weights)
    assert source_of(one) != source_of(other)
    assert source_of(one) == source_of(nn.CrossEntropyLoss(weights.clone()))
    assert source_of(nn.CrossEntropyLoss(label_smoothing=0.1)) != source_of(nn.CrossEntropyLoss())


def test_an_object_of_torchmetrics_is_known_by_its_settings():
    classification = pytest.importorskip("torchmetrics.classification")
    accuracy = classification.BinaryAccuracy
    assert source_of(accuracy(0.3)) == source_of(accuracy(0.3))
    assert source_of(accuracy(0.3)) != source_of(accuracy(0.4))


def test_a_closure_that_is_not_filled_yet_is_no_error():
    def build():
        return later

    assert source_of(build)
    later = 1


# Code without a file, as in a notebook

CELL = """
import functools
import math
from torch import nn
WIDTH = 8
def layer():
    return nn.Linear(4, math.ceil(WIDTH))
class Net(nn.Module):
    @property
    def rate(self):
        return 0.5
    @staticmethod
    def sign():
        return 1
    def forward(self, x):
        return [-x for _ in {1, 2, 3}]
class Builder:
    def __call__(self):
        return [Net(), layer()]
    def method(self):
        return [Net(), layer()]
def build():
    return (lambda: [Net(), layer()])()
@functools.cache
def cached():
    return [Net(), layer()]
def unused():
    return 0
"""


def session(text):
    """Return what a session has run as its __main__ without a file."""
    module = types.ModuleType("session_without_file")
    sys.modules[module.__name__] = module
    exec(text, module.__dict__)
    return module


@pytest.fixture(autouse=True)
def _no_session_left():
    yield
    sys.modules.pop("session_without_file", None)


@pytest.mark.parametrize("name", ["function", "callable object", "method", "cached"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 8", "WIDTH = 9"),
        ("nn.Linear(4", "nn.Linear(5"),
        ("nn.Linear", "nn.Bilinear"),
        ("[-x", "[x"),
        ("0.5", "0.25"),
        ("return 1", "return 2"),
        ("{1, 2, 3}", "{1, 2, 4}"),
        ("Net(), layer()", "layer(), Net()"),
    ],
)
def test_an_edited_cell_is_seen_also_in_what_it_refers_to(name, old, new):
    assert old in CELL
    before = source_of(PICKS[name](session(CELL)))
    assert source_of(PICKS[name](session("\n\n" + CELL))) == before
    assert source_of(PICKS[name](session(CELL.replace(old, new)))) != before


def test_a_cell_that_build_does_not_refer_to_is_not_its_source():
    before = source_of(session(CELL).build)
    assert source_of(session(CELL.replace("return 0\n", "return 1\n")).build) == before
