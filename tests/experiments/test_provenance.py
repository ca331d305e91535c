import copy
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import users
from bnkit.experiments import provenance
from bnkit.experiments.provenance import (
    array_fingerprint,
    batch_fingerprint,
    environment,
    fingerprint,
    model_fingerprint,
    usable_cores,
    versions,
)
from bnkit.source_code import source_of

NETWORK = """
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


# Models


def test_equal_models_have_equal_fingerprints(imported):
    net = imported(NETWORK).Net
    assert model_fingerprint(seeded(net)) == model_fingerprint(seeded(net))


@edited
def test_an_edit_in_the_file_of_a_class_changes_the_model(imported, edit):
    before = model_fingerprint(seeded(imported(NETWORK).Net))
    assert model_fingerprint(seeded(imported(NETWORK.replace(*edit)).Net)) != before


def test_an_edit_in_the_file_of_a_submodule_or_base_class_changes_the_model(imported):
    def inside():
        return model_fingerprint(nn.Sequential(seeded(sys.modules["own"].Net)))

    def derived():
        base = sys.modules["own"].Net
        return model_fingerprint(seeded(type("Derived", (base,), {"__module__": "builtins"})))

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
    assert model_fingerprint(model) != model_fingerprint(seeded(make))


def test_arrays_without_dimensions_or_elements_and_of_narrow_types_have_fingerprints():
    model = nn.Module()
    for index, array in enumerate(
        [torch.tensor(1.5), torch.empty(0, 2), torch.ones(2).bfloat16(), torch.tensor([True])]
    ):
        model.register_buffer(f"b{index}", array)
    before = model_fingerprint(model)
    model.b3.logical_not_()
    assert model_fingerprint(model) != before


def test_arrays_alone_are_known_by_names_types_and_values():
    class Scaled(nn.Sequential):
        pass

    before = array_fingerprint(seeded(users.build))
    assert array_fingerprint(Scaled(*seeded(users.build))) == before
    assert array_fingerprint(nn.Sequential(seeded(users.build))) != before
    assert array_fingerprint(seeded(users.build).half()) != before
    normalised = nn.BatchNorm1d(3)
    before = array_fingerprint(normalised)
    normalised.running_mean += 1
    assert array_fingerprint(normalised) != before


# Batches

X = torch.arange(6.0)


@pytest.mark.parametrize(
    "other",
    [
        (X, 2),
        (X + 1e-6, 1),
        (X.view(2, 3), 1),
        (X.double(), 1),
        ((X, 1), 1),
        {"x": X, "y": 1},
        [X, 1],
        (X[:5], 1),
        (X.numpy() + 1, 1),
    ],
    ids=str,
)
def test_any_change_of_a_batch_is_seen(other):
    assert batch_fingerprint((X, 1)) == batch_fingerprint((X.clone(), 1))
    assert batch_fingerprint((X, 1)) != batch_fingerprint(other)


@pytest.mark.parametrize(
    "array",
    [
        X.bfloat16(),
        X > 1,
        X.to(torch.complex64),
        torch.tensor(3.0),
        torch.zeros(0, 3),
        X.view(2, 3).T,
        np.arange(3),
    ],
    ids=str,
)
def test_every_kind_of_array_has_a_fingerprint(array):
    assert batch_fingerprint((array, 1)) == batch_fingerprint((copy.deepcopy(array), 1))


def test_a_view_is_known_by_its_values_and_not_by_its_memory():
    assert batch_fingerprint(X.view(2, 3).T) == batch_fingerprint(X.view(2, 3).T.contiguous())


# Between processes


def test_another_process_finds_the_same():
    # Python hashes text with another seed in each process.
    program = f"""
import sys
sys.path[:] = {sys.path!r}
import torch, users
from bnkit.experiments.provenance import fingerprint, model_fingerprint
from bnkit.source_code import source_of
torch.manual_seed(0)
source = fingerprint({{"source": source_of(users.Shuffled)}})
print(model_fingerprint(users.build()), source, end="")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    source = fingerprint({"source": source_of(users.Shuffled)})
    assert found.decode() == f"{model_fingerprint(seeded(users.build))} {source}"


def test_versions_machine_and_date_are_named():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert all(found.values())


def test_the_commit_is_that_of_the_current_folders_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "commit" not in environment()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        (tmp_path / "file").write_text("1")
        subprocess.run(["git", *command], check=True)
    commit = environment()["commit"]
    assert re.fullmatch("[0-9a-f]{12}", commit)
    (tmp_path / "file").write_text("2")
    assert environment()["commit"] == f"{commit}, with changes"
    monkeypatch.setenv("PATH", "")
    assert "commit" not in environment()


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    assert environment()["cores"] == "3"


def test_other_systems_than_linux_are_described_too(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(platform, "processor", lambda: "")

    def absent(*_arguments, **_options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(provenance, "_processor", provenance._processor.__wrapped__)  # not cached
    assert (environment()["cores"], environment()["processor"]) == ("1", "unknown")
