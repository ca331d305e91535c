import json

import pytest

from bnkit.lab.claiming.evidence import Evidence
from bnkit.lab.claiming.figures import (
    Axis,
    Dot,
    Dots,
    Line,
    Lines,
    Picture,
    Pictures,
    Rule,
    Surface,
    Surfaces,
)

FIGURES = (
    Lines("a", Axis("x"), Axis("y", True), (Line("l", (1.0,), (None,), "plain"),), Rule(1, "r")),
    Dots("b", Axis("x"), (Dot("row", "name", 1.0, 0.5, 2.0),)),
    Surfaces("c", Axis("x"), Axis("y"), Axis("z"), (Surface("p", (0.0,), (0.0,), ((1.0,),)),)),
    Pictures("d", (Picture("p", ((0.0, 1.0),)),)),
)


def test_evidence_goes_through_json_and_comes_back_equal():
    evidence = Evidence("holds in part", "3 times", "here", FIGURES, ({"seed": 0},))
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


def test_a_verdict_is_one_of_four():
    with pytest.raises(ValueError, match="`verdict` is 'maybe': choose from"):
        Evidence("maybe", "")


def test_a_claim_that_holds_in_part_says_where():
    with pytest.raises(ValueError, match="`where` is empty"):
        Evidence("holds in part", "3 times")
