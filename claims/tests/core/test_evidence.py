import json

from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.core.figures import (
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
