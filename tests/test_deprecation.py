import importlib
import sys
import warnings

import pytest

import bnkit
from bnkit.deprecation import MODULES, find_renamed_modules


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for name in [name for name in sys.modules if name.startswith(tuple(MODULES))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *MODULES.items(),
        ("bnkit.lab.comparison", "bnkit.experiments.comparison"),
        ("bnkit.lab.claiming.claim", "bnkit_claims.core.claim"),
    ],
)
def test_a_module_is_found_under_its_old_name_with_a_warning(old, new):
    module = importlib.import_module(new)
    spec = module.__spec__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the folders that it is in
        importlib.import_module(old.rpartition(".")[0])
    with pytest.warns(DeprecationWarning, match=f"`{old}` is now called `{new}`; the old name"):
        assert importlib.import_module(old) is module
    assert module.__spec__ is spec
    assert module.__name__ == new


def test_a_module_that_is_gone_is_not_found():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("bnkit.lab")
    with (
        pytest.warns(DeprecationWarning, match="is now called"),
        pytest.raises(ModuleNotFoundError, match=r"bnkit\.experiments\.nothing"),
    ):
        importlib.import_module("bnkit.lab.nothing")


def test_other_names_are_not_found_and_the_finder_is_there_once():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bnkit.laboratory")
    before = list(sys.meta_path)
    find_renamed_modules()
    assert sys.meta_path == before
    assert bnkit.__name__ == "bnkit"
