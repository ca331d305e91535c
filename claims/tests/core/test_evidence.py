import json

import pytest

from bnkit.experiments.statistics import PairedRatio
from bnkit_claims.core.charts import (
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
from bnkit_claims.core.evidence import Beside, Evidence, Part, beyond, together, word_for

FIGURES = (
    Lines("a", Axis("x"), Axis("y", True), (Line("l", (1.0,), (None,), "plain"),), Rule(1, "r")),
    Dots("b", Axis("x"), (Dot("row", "name", 1.0, 0.5, 2.0),)),
    Surfaces("c", Axis("x"), Axis("y"), Axis("z"), (Surface("p", (0.0,), (0.0,), ((1.0,),)),)),
    Pictures("d", (Picture("p", ((0.0, 1.0),)),)),
)


PARTS = (Part("steps", "3 times", True), Part("seconds", "1 (0.9 to 1.2) times", None))


def test_evidence_goes_through_json_and_comes_back_equal():
    beside = (Beside("a step", "2 times"),)
    evidence = Evidence("3 times.", PARTS, beside, ("One says 10.",), FIGURES, ({"seed": 0},))
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


def test_the_verdict_follows_from_the_parts_alone():
    assert Evidence("3 times.", PARTS).verdict == "holds in part"
    assert Evidence("3 times.", PARTS).to_json()["verdict"] == "holds in part"
    assert Evidence("3 times.", PARTS[:1]).verdict == "holds"
    assert Evidence("Nothing.", ()).verdict == "not shown"


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1.01, 9.0, True),
        (0.5, 1.05, False),  # at most an effect too small to matter
        (1.0, 1.05, False),
        (0.5, 2.0, None),
        (None, None, None),  # too few pairs for an interval
    ],
)
def test_an_interval_shows_refutes_or_cannot_tell(low, high, found):
    assert beyond(PairedRatio(1.0, low, high, 3, 0, 0, 0), bar=1, negligible=1.1) is found


def test_a_claim_with_parts_of_all_kinds_holds_in_part():
    assert together([True, None, False, True]) == "holds in part"


def test_refuted_parts_and_unknown_ones_do_not_add_up_to_a_claim():
    assert together([False, None]) == "does not hold"


@pytest.mark.parametrize(
    ("part", "verdict"), [(True, "holds"), (False, "does not hold"), (None, "not shown")]
)
def test_parts_that_agree_are_the_verdict(part, verdict):
    assert together([part, part]) == word_for(part) == verdict
