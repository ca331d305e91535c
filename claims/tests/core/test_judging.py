import pytest

from bnkit_claims.core.judging import beyond, together, word_for


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1.01, 9.0, True),
        (0.5, 1.05, False),  # at most an effect that nobody would care for
        (1.0, 1.05, False),
        (0.5, 2.0, None),
        (None, None, None),  # too few pairs for an interval
    ],
)
def test_an_interval_shows_refutes_or_cannot_tell(low, high, found):
    assert beyond(low, high, bar=1, negligible=1.1) is found


def test_a_claim_with_parts_of_all_kinds_holds_in_part():
    assert together([True, None, False, True]) == "holds in part"


def test_refuted_parts_and_unknown_ones_do_not_add_up_to_a_claim():
    assert together([False, None]) == "does not hold"


@pytest.mark.parametrize(
    ("part", "verdict"), [(True, "holds"), (False, "does not hold"), (None, "not shown")]
)
def test_parts_that_agree_are_the_verdict(part, verdict):
    assert together([part, part]) == word_for(part) == verdict
