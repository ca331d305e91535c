from bnkit.diagnosis import Finding
from bnkit.diagnosis.finding import groups_of


def finding(rule, severity="warning", layer="bn", **options):
    return Finding(rule, severity, (layer,), {}, "Why.", **{"fix": "Do it.", **options})


def shape(groups):
    return [(group.first.rule, len(group.findings), shape(group.below)) for group in groups]


def test_findings_that_say_the_same_are_one_group():
    found = [finding("a", layer=str(number)) for number in range(3)]
    assert shape(groups_of([*found, finding("a", fix="Or that.")])) == [("a", 3, []), ("a", 1, [])]


def test_what_follows_from_members_of_a_group_is_one_group_below_it():
    causes = [finding("a", layer=str(number)) for number in range(3)]
    following = [finding("b", layer=cause.layers[0], causes=(cause,)) for cause in causes]
    last = finding("c", causes=(following[1],))
    assert shape(groups_of([*causes, last, *following])) == [("a", 3, [("b", 3, [("c", 1, [])])])]


def test_a_finding_with_two_causes_is_shown_once():
    causes = [finding("a"), finding("b")]
    both = finding("c", causes=tuple(causes))
    assert shape(groups_of([*causes, both])) == [("a", 1, [("c", 1, [])]), ("b", 1, [])]


def test_a_cause_that_is_not_among_the_findings_hides_nothing():
    assert shape(groups_of([finding("b", causes=(finding("a"),))])) == [("b", 1, [])]


def test_a_group_with_an_error_below_it_stands_before_a_warning():
    cause = finding("a", "info")
    found = [finding("b"), cause, finding("c", "error", causes=(cause,))]
    assert [group.first.rule for group in groups_of(found)] == ["a", "b"]
