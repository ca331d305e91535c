import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypedDict, Unpack

import pytest

import bnkit
from bnkit.options import Default, parameters_of, showing, with_options
from bnkit.recalibration import plan_adaptation, plan_recalibration, recalibrate_


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


def test_a_type_keeps_what_else_it_is_annotated_with():
    class Helped(TypedDict, total=False):
        width: Annotated[int, "how wide", Default(3)]

    (width,) = parameters_of(Helped)
    assert (width.annotation, width.default) == (Annotated[int, "how wide"], 3)


@pytest.mark.parametrize(("name", "near"), [("epz", "eps"), ("lasd", "last")])
def test_an_unknown_option_is_answered_with_near_ones(name, near):
    message = rf"^function: unknown option '{name}': did you mean '{near}'\? Choose from eps, last"
    with pytest.raises(TypeError, match=message):
        function(1, **{name: 0})


# Options in a TypedDict


class Few(TypedDict, total=False):
    width: Annotated[int, Default(3)]


class More(Few, total=False):
    label: Annotated[str | None, Default(None)]


@with_options
def typed(first, *, last="4", **options: Unpack[More]):
    """What it does."""
    return first, last, options


class Layer:
    @with_options
    def __init__(self, features: int, **options: Unpack[Few]):
        self.features, self.options = features, options


@with_options
@contextmanager
def block(**options: Unpack[Few]):
    yield options["width"]


def test_typed_options_are_complete_with_their_defaults():
    assert typed(1) == (1, "4", {"width": 3, "label": None})
    assert typed(1, last=5, label="x") == (1, 5, {"width": 3, "label": "x"})
    assert Layer(5).options == {"width": 3}
    with block(width=4) as width:
        assert width == 4


def test_typed_options_are_shown_with_their_types_and_defaults():
    parameters = inspect.signature(typed).parameters
    assert list(parameters) == ["first", "width", "label", "last"]
    assert parameters["label"].annotation == str | None
    assert parameters["width"].default == 3
    assert str(inspect.signature(Layer)) == "(features: int, *, width: int = 3)"
    assert str(inspect.signature(block)) == "(*, width: int = 3)"
    assert (typed.__doc__, typed.__name__) == ("What it does.", "typed")


@pytest.mark.parametrize(
    "call",
    [
        lambda: typed(1, wider=3),
        lambda: Layer(1, wider=3),
        lambda: block(wider=3),
        lambda: bnkit.recalibrate(None, [], wider=3),
        lambda: bnkit.adapted(None, [], wider=3),
    ],
    ids=["function", "constructor", "context", "recalibrate", "adapted"],
)
def test_an_unknown_typed_option_is_refused(call):
    with pytest.raises(TypeError, match=r"^\w+: unknown option 'wider'"):
        call()


def test_all_verbs_of_recalibration_take_the_same_options():
    shared = list(inspect.signature(bnkit.recalibrate).parameters.values())
    assert [p.name for p in shared[2:]] == [
        *("inputs", "where", "estimator", "process_group", "progress")
    ]
    for verb in (recalibrate_, plan_recalibration):
        assert list(inspect.signature(verb).parameters.values()) == shared
    for verb in (bnkit.adapt, bnkit.adapted, plan_adaptation):
        assert list(inspect.signature(verb).parameters.values())[:-1] == shared
