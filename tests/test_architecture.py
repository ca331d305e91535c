"""The house keeps its floors: who imports whom, what each file says it is for, what is public."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

import bnkit
from architecture import House, code_of, first_line_of, imports_of

FLOORS = (
    "platforms "
    "deprecation extras internals moments tables notebooks names options references files "
    "progress source_code kernels functional layers observation roles dataflow behaviour "
    "batches norms "
    "recalibration parameters train_eval_gap surgery checkpoints diagnosis monitoring "
    "experiments benchmarking report keras cli __main__"
).split()
HOUSE = House(bnkit, FLOORS)
each_file = pytest.mark.parametrize("path", HOUSE.files, ids=HOUSE.short)


@each_file
def test_a_module_imports_only_from_its_own_floor_and_those_above(path):
    if path != HOUSE.root / "__init__.py":
        assert HOUSE.imports_from_later_floors(path) == []


def test_the_tree_in_contributing_has_every_floor_in_this_order():
    page = (HOUSE.root.parents[1] / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^  (\w+)(?:\.py|/) {2,}\S", page, re.MULTILINE) == FLOORS


def test_bnkit_does_not_import_the_claims():
    names = {name.partition(".")[0] for path in HOUSE.files for name in imports_of(path)}
    assert "bnkit_claims" not in names


def test_only_the_wing_for_keras_imports_keras():
    others = [path for path in HOUSE.files if "keras" not in HOUSE.short(path)]
    named = {name for path in others for name in imports_of(path)}
    assert not [name for name in named if name == "keras" or name.startswith("keras.")]
    assert not [name for name in named if name.startswith("bnkit.keras")]


def test_the_report_names_no_torch():
    named = {
        name.partition(".")[0]
        for path in (HOUSE.root / "report").rglob("*.py")
        for name in imports_of(path)
    }
    assert "torch" not in named


@each_file
def test_a_file_says_in_its_first_line_what_it_is_for(path):
    assert first_line_of(path).endswith((".", ":"))


def test_packages_only_hand_names_on():
    # bnkit itself hands most names on when they are asked for, by a function
    # and that for Keras says first what is missing
    assert HOUSE.more_than_names_handed_on() == ["__init__.py", "keras/__init__.py"]


def test_the_public_surface_is_sorted_and_documented():
    assert sorted(bnkit.__all__) == bnkit.__all__
    assert [name for name in bnkit.__all__ if not getattr(bnkit, name).__doc__] == []
    assert set(bnkit.__all__) <= set(dir(bnkit))


def test_type_checkers_see_the_public_names_where_they_live():
    stub = ast.parse((HOUSE.root / "__init__.pyi").read_text())
    handed_on = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    told = {name.asname: node.module for node in handed_on for name in node.names}
    assert sorted(told) == bnkit.__all__
    for name, module in told.items():
        assert getattr(importlib.import_module(module), name) is getattr(bnkit, name)


def test_subpackages_are_there_without_an_import_of_their_own(run_python):
    assert run_python("import bnkit; print(bnkit.surgery.plan.Plan is bnkit.Plan)") == ["True"]
    assert not hasattr(bnkit, "nothing")
    with pytest.raises(AttributeError, match="module 'bnkit' has no attribute '_nothing'"):
        bnkit._nothing  # noqa: B018  asking is the test


def test_every_public_function_and_class_has_a_docstring():
    assert HOUSE.undocumented() == []


# `Flows.training` of the diagnosis is a dataflow
SWITCHES = re.compile(r"register_forward|\.eval\(\)|\.train\(|(?<!flows)\.training = ")


@each_file
def test_hooks_and_modes_are_switched_in_one_place_only(path):
    if path.name != "observation.py":
        assert SWITCHES.findall(code_of(path)) == []


PRIVATE_IN_TORCH = (
    "_modules _parameters _buffers _non_persistent_buffers_set _forward_hooks _forward_pre_hooks "
    "_backward_hooks _backward_pre_hooks _check_input_dim _conv_forward _version _cdata _orig_mod "
    "_get_backend _timeout"
).split()


@each_file
def test_what_torch_keeps_private_is_named_in_one_place_only(path):
    if path.name != "internals.py":
        assert _private_in_torch(path.read_text()) == []


def test_what_torch_keeps_private_is_found():
    uses = """
from torch.nn.modules.batchnorm import _BatchNorm
import torch._dynamo
torch._C._dynamo
torch.utils._pytree.tree_map
nn.modules.conv._ConvNd
self._buffers
module._forward_hooks
backend.options._timeout
getattr(module, "_modules")
sys.modules["torch._dynamo"]
"""
    assert len(_private_in_torch(uses)) == len(uses.split("\n")) - 2 + 1  # one in another


def _private_in_torch(source):
    private = re.compile(r"(torch|nn|F|dist|fx)(\.\w+)*\._[a-zA-Z]\w*")
    names = [*_names_in(ast.parse(source))]
    return [name for name in names if name in PRIVATE_IN_TORCH or private.fullmatch(name)]


def _names_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (module + name.name for name in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr if node.attr in PRIVATE_IN_TORCH else ast.unparse(node)
        elif isinstance(node, ast.Constant):
            yield str(node.value)


def test_variances_are_computed_in_one_place_only():
    allowed = {"moments.py", "reference.py"}
    calls = [
        (p.name, c)
        for p in HOUSE.files
        if p.name not in allowed
        for c in (".var(", ".std(", "var_mean(")
        if c in code_of(p)
    ]
    assert calls == []


LOADED = (
    "deprecation functional internals kernels kernels.activations kernels.autograd "
    "kernels.batching kernels.build kernels.call kernels.choice kernels.operators "
    "kernels.reference kernels.second_order moments platforms"
).split()


def test_importing_bnkit_loads_its_layers_and_nothing_else_of_its_own(loaded_modules):
    own = [name.removeprefix("bnkit.") for name in loaded_modules if name.startswith("bnkit.")]
    assert sorted(name for name in own if not name.startswith("layers")) == LOADED


@pytest.mark.parametrize(
    "heavy",
    "altair joblib loky pooch rich scipy sklearn triton typer vl_convert".split(),
)
def test_importing_bnkit_does_not_import(heavy, loaded_modules):
    assert heavy not in loaded_modules


@pytest.fixture(scope="module")
def loaded_modules(run_python):
    return run_python(
        "import sys, torch; old = {*sys.modules}; import bnkit; print(*{*sys.modules} - old)"
    )


@pytest.fixture(scope="module")
def run_python():
    """Run a program in a process of its own, and return the words that it prints."""

    def run(program):
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    return run
