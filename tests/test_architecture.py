"""The house keeps its floors: who imports whom, what each file says it is for, what is public."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnkit

PACKAGE = Path(bnkit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    "internals moments tables names references files progress source_code kernels functional "
    "layers observation roles dataflow batches norms recalibration parameters gap surgery "
    "checkpoints diagnosis monitoring experiments benchmarking report cli"
).split()


def floor_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_and_those_above(path):
    if path == PACKAGE / "__init__.py":
        return
    own = FLOORS.index(floor_of(path))
    ours = [name.split(".")[1] for name in imports_of(path) if name.startswith("bnkit.")]
    assert [name for name in ours if FLOORS.index(name) > own] == []


def test_the_report_names_no_torch():
    named = {
        name.partition(".")[0]
        for path in (PACKAGE / "report").rglob("*.py")
        for name in imports_of(path)
    }
    assert "torch" not in named


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_in_its_first_line_what_it_is_for(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert text.splitlines()[0].endswith((".", ":"))


def test_packages_only_hand_names_on():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body[1:]
        assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign) for node in body), (
            path
        )


def test_the_public_surface_is_sorted_documented_and_complete():
    public = {
        name
        for name, value in vars(bnkit).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert sorted(public | {"functional", "layers"}) == bnkit.__all__
    assert [name for name in bnkit.__all__ if not getattr(bnkit, name).__doc__] == []


def test_every_public_function_and_class_has_a_docstring():
    bare = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                bare += [] if ast.get_docstring(node) else [f"{path.name}: {node.name}"]
    assert bare == []


# `Flows.training` of the diagnosis is a dataflow
SWITCHES = re.compile(r"register_forward|\.eval\(\)|\.train\(|(?<!flows)\.training = ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_hooks_and_modes_are_switched_in_one_place_only(path):
    if path.name != "observation.py":
        assert SWITCHES.findall(_code(path)) == []


PRIVATE_IN_TORCH = (
    "_modules _parameters _buffers _non_persistent_buffers_set _forward_hooks _forward_pre_hooks "
    "_backward_hooks _backward_pre_hooks _check_input_dim _conv_forward _version _cdata _orig_mod "
    "_get_backend _timeout"
).split()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
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
        for p in FILES
        if p.name not in allowed
        for c in (".var(", ".std(", "var_mean(")
        if c in _code(p)
    ]
    assert calls == []


def _code(path):
    """Return the source without its strings, in which docstrings show what users write."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "heavy",
    "altair joblib numba pooch rich scipy sklearn triton typer vl_convert".split(),
)
def test_importing_bnkit_does_not_import(heavy, loaded_modules):
    assert heavy not in loaded_modules


@pytest.fixture(scope="module")
def loaded_modules():
    program = "import sys, torch; old = {*sys.modules}; import bnkit; print(*{*sys.modules} - old)"
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
