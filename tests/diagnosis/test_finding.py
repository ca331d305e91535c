import dataclasses

import pytest

from bnkit.diagnosis.finding import Finding


def finding(**options):
    given = {"rule": "on-logits", "severity": "warning", "layers": ("a", "b"), "measured": {}}
    return Finding(**{**given, "why": "Why.", "fix": "Do this.", **options})


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding().rule = "other"


def test_an_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="`severity` is 'fatal': choose from"):
        finding(severity="fatal")


def test_numbers_are_shown_with_three_digits_and_counts_whole():
    measured = {"ratio": 1.23456, "rows": 123456, "how": "momentum=0"}
    assert finding(measured=measured).figures == "ratio: 1.23, rows: 123456, how: momentum=0"


@pytest.mark.parametrize("layers", [("",), ()])
def test_the_model_itself_has_a_name_for_people(layers):
    assert finding(layers=layers).place == "(the model)"


def test_plain_data_name_the_causes():
    cause = finding(layers=("x",))
    data = finding(causes=(cause,), automatic_fix=lambda model: model).to_json()
    assert data["causes"] == [{"rule": "on-logits", "layers": ["x"]}]
    assert data["fixable"] is data["mendable"] is True
    assert data["layers"] == ["a", "b"]
