import inspect
from dataclasses import dataclass, field

import pytest

from bnkit.options import parameters_of, showing


@dataclass
class Options:
    size: int
    eps: float = 1e-5
    name: str = field(default="x", metadata={"help": "a name"})


@showing(parameters_of(Options))
def function(first, second=2, *, last=None, **options):
    """What it is for."""
    return first, second, last, options


def test_the_options_stand_between_what_is_given_by_position_and_by_keyword():
    shown = inspect.signature(function)
    assert list(shown.parameters) == ["first", "second", "size", "eps", "name", "last"]
    kinds = [parameter.kind for parameter in list(shown.parameters.values())[2:]]
    assert kinds == [inspect.Parameter.KEYWORD_ONLY] * 4


def test_types_and_defaults_are_those_of_the_fields():
    size, eps, name = parameters_of(Options)
    assert (size.annotation, size.default) == (int, inspect.Parameter.empty)
    assert (eps.annotation, eps.default) == (float, 1e-5)
    assert (name.annotation, name.default) == (str, "x")


def test_what_is_given_is_handed_on_and_nothing_else():
    assert function(1, last=3, eps=0.1) == (1, 2, 3, {"eps": 0.1})
    assert (function.__name__, function.__doc__) == ("function", "What it is for.")


@pytest.mark.parametrize(("name", "near"), [("epz", "eps"), ("lasd", "last")])
def test_an_unknown_option_is_answered_with_near_ones(name, near):
    message = rf"^function: unknown option '{name}': did you mean '{near}'\? Choose from eps, last"
    with pytest.raises(TypeError, match=message):
        function(1, **{name: 0})
