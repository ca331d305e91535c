"""The claims' house keeps its floors, and the two distributions are of one version."""

import tomllib
from pathlib import Path

import pytest

import bnkit
import bnkit_claims
from architecture import House, first_line_of

HOUSE = House(bnkit_claims, "core claims published report cli".split())
ROOT = Path(__file__).parents[2]
each_file = pytest.mark.parametrize("path", HOUSE.files, ids=HOUSE.short)


@each_file
def test_a_module_imports_only_from_its_own_floor_and_those_above(path):
    if path != HOUSE.root / "__init__.py":
        assert HOUSE.imports_from_later_floors(path) == []


@each_file
def test_a_file_says_in_its_first_line_what_it_is_for(path):
    assert first_line_of(path).endswith((".", ":"))


def test_packages_only_hand_names_on():
    assert HOUSE.more_than_names_handed_on() == []


def test_every_public_function_and_class_has_a_docstring():
    assert HOUSE.undocumented() == []


def test_the_two_distributions_are_of_one_version_and_pin_each_other():
    claims = tomllib.loads((ROOT / "claims" / "pyproject.toml").read_text())["project"]
    version = bnkit.__version__
    assert bnkit_claims.__version__ == version
    assert claims["dependencies"] == [f"bnkit[cli,compare,report]=={version}"]
