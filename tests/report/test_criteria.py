"""The criteria, as they are shown, lead to the verdict's answer."""

import pytest

from bnkit.report.criteria import criteria
from report.fabricate import comparison, never_run

SMALL = comparison([0.1, 3.0], ["relu"], 3)


@pytest.mark.parametrize("found", [SMALL, comparison(change=never_run)], ids=["helps", "nothing"])
def test_the_criteria_lead_to_the_answer(found):
    speaks = {criterion.speaks for criterion in criteria(found)}
    helps = "for batch norm" in speaks and "against batch norm" not in speaks
    assert helps == (found.verdict.answer == "helps")


def test_criteria_name_their_thresholds():
    reliability, speed, quality = (criterion.measured for criterion in criteria(SMALL))
    assert "p < 0.05" in reliability
    assert "excludes 1" in speed
    assert "excludes 0" in quality
