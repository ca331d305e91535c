import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from bnkit.references import blaming, called, import_reference, reference_to


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refused(reference):
    with pytest.raises(ValueError, match=re.escape(repr(reference))) as raised:
        import_reference(reference)
    return str(raised.value)


def test_a_module_is_found_from_the_current_folder(folder):
    (folder / "references_plain.py").write_text("def build():\n    return 'built'\n")
    assert import_reference("references_plain:build")() == "built"


def test_a_module_inside_a_package_is_found(folder):
    (folder / "references_package").mkdir()
    (folder / "references_package" / "inner.py").write_text("class Build:\n    pass\n")
    assert import_reference("references_package.inner:Build").__name__ == "Build"


def test_the_current_folder_is_put_on_the_path_once(folder):
    for _ in range(2):
        import_reference("math:sqrt")
    assert sys.path.count(str(folder)) == 1


class SlowPath(list):
    """A path that takes its time to look, so that several threads look at once."""

    def __contains__(self, item):
        found = super().__contains__(item)
        time.sleep(0.01)
        return found


def test_several_threads_put_it_there_once(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", SlowPath(sys.path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(import_reference, ["math:sqrt"] * 8))
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize("text", ["", "module", "module:", ":name", ":"])
def test_text_of_another_form_is_answered_with_the_form(text):
    assert refused(text) == (
        f"{text!r} is not a reference: write it as package.module:function, or as "
        f"folder/file.py:function"
    )


def test_a_file_is_a_module_of_the_current_folder(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "net.py").write_text("def build(): return 3\n")
    assert import_reference("deep/net.py:build")() == 3
    assert import_reference(f"{folder}/deep/net.py:build")() == 3
    assert refused("deep/none.py:build") == (
        f"'deep/none.py:build': there is no file 'deep/none.py' in {folder}"
    )


def test_a_file_elsewhere_is_refused_with_what_to_do(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "net.py"
    path.touch()
    assert f"the file is not in the current folder, {folder}: go to" in refused(f"{path}:build")


def test_a_module_that_is_absent_is_named_with_the_folder(folder):
    assert refused("references_absent:build") == (
        f"'references_absent:build': module 'references_absent' cannot be imported from {folder}: "
        f"ModuleNotFoundError: No module named 'references_absent'"
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "raise RuntimeError('no licence')",
            "RuntimeError: no licence (references_bad.py, line 1)",
        ),
        (
            "import references_missing",
            "ModuleNotFoundError: No module named 'references_missing' (references_bad.py, line 1)",
        ),
        ("1 +", "SyntaxError: invalid syntax (references_bad.py, line 1)"),
        (
            "import sys; sys.exit(3)",
            "SystemExit: 3 (references_bad.py, line 1)",
        ),  # a script without a guard
    ],
)
def test_a_module_that_raises_on_import_is_named_with_its_error(folder, source, error):
    (folder / "references_bad.py").write_text(source)
    assert refused("references_bad:build") == (
        f"'references_bad:build': module 'references_bad' cannot be imported from {folder}: {error}"
    )


def test_a_relative_module_is_refused(folder):
    assert f"'.relative' cannot be imported from {folder}: TypeError" in refused(".relative:build")


def test_an_absent_name_is_answered_with_the_nearest_one():
    assert refused("math:xyzzy") == "'math:xyzzy': module 'math' has no 'xyzzy'"
    assert refused("math:sqroot") == (
        "'math:sqroot': module 'math' has no 'sqroot'; did you mean 'sqrt'?"
    )


def test_what_cannot_be_called_is_named_with_its_kind():
    assert refused("math:pi") == "'math:pi' is a float: it must be a function without arguments"


def test_a_function_that_works_is_called():
    assert called(lambda: [1], "data") == [1]


NOT_FOUND = "FileNotFoundError: [Errno 2] No such file (LINE)"


class Broken:
    def __call__(self):
        raise KeyError("weights")


def fail():
    raise OSError(2, "No such file")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fail, f"`build` (fail) fails: {NOT_FOUND}"),
        (Broken(), "`build` (Broken) fails: KeyError: 'weights' (LINE)"),
        (
            partial(fail),
            "`build` (partial) fails: FileNotFoundError: [Errno 2] No such file (LINE)",
        ),
        ((1, 2), "`build` (tuple) fails: TypeError: 'tuple' object is not callable"),
    ],
    ids=["function", "object", "partial", "no function"],
)
def test_a_function_that_fails_is_named_with_its_error(function, text):
    with pytest.raises(ValueError, match="fails") as raised:
        called(function, "build")
    assert re.sub(r"\(\S*test_references.py, line \d+\)", "(LINE)", str(raised.value)) == text
    assert raised.value.__cause__ is not None


def test_ctrl_c_is_nobodys_fault():
    with pytest.raises(KeyboardInterrupt), blaming("`build` fails"):
        raise KeyboardInterrupt


def test_people_call_a_function_by_its_module_and_name():
    assert reference_to(fail) == f"{__name__}:fail"
    assert reference_to(Broken()) == f"{__name__}:Broken"
    assert reference_to(partial(fail)) == "functools:partial"
