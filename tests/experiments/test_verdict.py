import numpy as np
import pytest

from bnkit.experiments.criteria import STEPS_MARGIN, Arrival, Measured
from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.statistics import Mean, sign_test
from bnkit.experiments.verdict import LEVEL, LOOKS, answer, judge, words

LONGEST = 1500
NEVER = Arrival(LONGEST, reached=False)

# Of (plain, batch norm), seed by seed.
ALL_TRAIN = [(4, 4)] * 8
ONLY_THE_TWIN_TRAINS = [(0, 4)] * 8  # sign test: p = 2 / 2⁸, under 0.05 / 3
ONLY_THE_PLAIN_TRAINS = [(4, 0)] * 8
EVEN = [(1000, 1010), (1010, 1000), (1000, 1000)] * 3
FASTER = [(2000, 1000), (2100, 1000), (1900, 1000)] * 3
SLOWER = [(b, p) for p, b in FASTER]
SCATTERED = [(3000, 1000), (1000, 3000), (1500, 1000)] * 3
AS_GOOD = [(0.9, 0.901), (0.901, 0.9), (0.9, 0.9)] * 3
BETTER = [(0.9, 0.95), (0.9, 0.94), (0.9, 0.96)] * 3
WORSE = [(b, p) for p, b in BETTER]
ANY = [(0.5, 0.9), (0.9, 0.5), (0.7, 0.6)] * 3


def measured(trained=ALL_TRAIN, steps=EVEN, values=AS_GOOD, *, runs=4, **others):
    """Eight seeds, unless lists of another length are given for all three."""
    seeds = min(len(trained), len(steps), len(values))
    arrivals = [
        tuple(step if isinstance(step, Arrival) else Arrival(step, step - 1) for step in pair)
        for pair in steps
    ]
    options = {
        "first": "plain",
        "other": "batch norm",
        "metric": ACCURACY,
        "target": "90% held-out accuracy",
        "margin": 0.01,
    }
    return Measured(
        runs=[runs] * seeds,
        trained=trained[:seeds],
        arrivals=arrivals[:seeds],
        values=values[:seeds],
        **{**options, **others},
    )


def verdict(*evidence, looks=1, **others):
    (found,) = judge([measured(*evidence, **others)], looks=looks)
    return found


def word(criterion, **evidence):
    return verdict(**evidence).finding(criterion).word


@pytest.mark.parametrize(
    "evidence",
    [{"trained": ONLY_THE_TWIN_TRAINS}, {"steps": FASTER}, {"values": BETTER}],
    ids=["reliability", "speed", "quality"],
)
def test_one_finding_for_it_and_none_against_says_helps(evidence):
    assert verdict(**evidence).answer == "helps"
    assert verdict(**evidence).sentences[0] == "Batch norm helps this network."


@pytest.mark.parametrize(
    "evidence",
    [{"trained": ONLY_THE_PLAIN_TRAINS}, {"steps": SLOWER}, {"values": WORSE}],
    ids=["reliability", "speed", "quality"],
)
def test_one_finding_against_it_and_none_for_it_says_hurts(evidence):
    assert verdict(**evidence).answer == "hurts"
    assert verdict(**evidence).sentences[0] == "Batch norm hurts this network."


@pytest.mark.parametrize(
    "evidence",
    [
        {"trained": ONLY_THE_TWIN_TRAINS, "steps": SLOWER},
        {"trained": ONLY_THE_PLAIN_TRAINS, "values": BETTER},
        {"steps": FASTER, "values": WORSE},
    ],
)
def test_findings_that_contradict_each_other_say_mixed(evidence):
    found = verdict(**evidence)
    assert found.answer == "mixed"
    assert found.sentences[0] == "Batch norm helps this network in one way and hurts it in another."


def test_equal_sides_make_no_difference_larger_than_the_margins_that_are_said():
    found = verdict()
    assert found.answer == "no difference"
    assert found.sentences[0] == (
        "Batch norm makes no difference to this network larger than 1.25 times the steps or 1 "
        "point of test accuracy."
    )
    assert found.more_seeds is None


def test_what_is_not_shown_is_never_told_as_no_difference():
    found = verdict(steps=SCATTERED, values=ANY)
    assert found.answer == "not shown"
    assert found.sentences[0].startswith("Not shown: whether batch norm helps this network. By ")
    assert [each.word for each in found.findings[1:]] == ["not shown"] * 2


def test_one_criterion_of_no_difference_is_not_enough_for_the_answer():
    assert word("speed", values=ANY) == "no difference"
    assert verdict(values=ANY).answer == "not shown"


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    ("trained", "steps", "values"),
    [([(0, 1)], [(NEVER, 25)], [(0.1, 0.9)]), ([(1, 1)], [(100, 100)], [(0.9, 0.9)])],
    ids=["nothing against everything", "all alike"],
)
def test_under_three_seeds_nothing_is_shown_however_large_or_small(seeds, trained, steps, values):
    found = verdict(trained * seeds, steps * seeds, values * seeds, runs=1)
    assert found.answer == "not shown"
    assert {each.word for each in found.findings} == {"not shown"}
    assert {(each.low, each.high) for each in found.findings} == {(None, None)}


def test_two_of_two_against_none_of_two_says_how_many_more_seeds_would_do():
    found = verdict([(0, 1)] * 2, [(NEVER, Arrival(25))] * 2, [(0.1, 0.9)] * 2, runs=1)
    assert found.more_seeds == 1
    assert "2 of 2 runs train with batch norm, 0 without it" in found.sentences[1]
    assert found.sentences[0] == (
        "Not shown: whether batch norm helps this network. By the spread seen, 1 more seed would "
        "be enough."
    )


def test_as_many_more_seeds_of_the_same_spread_show_it():
    few = [(1000, 800), (1000, 950), (1000, 900)]
    speed = verdict(ALL_TRAIN[:3], few, ANY[:3]).finding("speed")
    assert speed.word == "not shown"
    times = -(-speed.to_differ // 3)
    many = verdict([(4, 4)] * 3 * times, few * times, ANY[:3] * times).finding("speed")
    assert many.word in ("better", "no difference")


def test_seeds_that_show_a_difference_smaller_than_the_margin_are_not_advised():
    # Speed lies within the margin already; 19 seeds would show that it is not quite 1.
    nearly = [(1050, 1000), (1000, 1010), (1010, 1000)] * 3
    found = verdict(steps=nearly, values=ANY)
    speed = found.finding("speed")
    assert (speed.word, speed.to_differ) == ("no difference", 19)
    assert found.more_seeds is None
    assert found.sentences[0].endswith("By the spread seen, 1,000 seeds would not be enough.")


def test_no_difference_is_advised_only_where_reliability_lets_it_stand():
    # In one seed of three more runs train: speed and quality alone do not make the answer.
    uneven = [(4, 4), (4, 2), (2, 4)]
    found = verdict(uneven, EVEN[:3], AS_GOOD[:3])
    assert found.answer == "not shown"
    assert [each.word for each in found.findings] == ["not shown", *["no difference"] * 2]
    assert found.more_seeds == found.finding("reliability").to_agree - 3 > 0


def test_as_few_of_the_seeds_to_come_have_values_as_of_those_seen():
    lacking = [(0.9, None)] * 3  # the better side has all its values
    few = [(0.93, 0.9), (0.9, 0.9), (0.92, 0.9)]
    quality = verdict(values=few + lacking).finding("quality")
    alone = verdict(ALL_TRAIN[:3], EVEN[:3], few).finding("quality")
    assert quality.word == "not shown"
    assert quality.to_differ == 2 * alone.to_differ


def test_a_run_that_never_arrives_counts_with_the_length_of_the_longest_and_is_counted():
    found = verdict(steps=[(NEVER, Arrival(100, 75))] * 8)
    speed = found.finding("speed")
    assert speed.estimate == pytest.approx(15)
    assert speed.word == "better"
    assert "A run that never gets there counts as 1,500 steps: 0 with batch norm, 8 without" in (
        speed.sentence
    )


def test_pairs_in_which_neither_arrives_say_nothing_of_speed():
    found = verdict(steps=[(NEVER, NEVER)] * 8)
    assert found.finding("speed").word == "not shown"
    assert found.answer == "not shown"
    assert "No run of either side gets to 90% held-out accuracy" in found.sentences[2]
    some = verdict(steps=[(NEVER, NEVER)] * 2 + FASTER[:6]).finding("speed")
    assert some.estimate == pytest.approx(2, rel=0.01)
    assert "2 pairs in which neither gets there are left out." in some.sentence


def test_arriving_just_before_the_end_is_not_the_same_as_never():
    late = verdict(steps=[(Arrival(1450, 1449), NEVER)] * 8).finding("speed")
    assert late.word != "no difference"
    assert late.to_agree is None


def test_steps_that_are_measured_coarsely_do_not_prove_a_ratio():
    coarse, fine = Arrival(25, 0), Arrival(25, 24)
    assert word("speed", steps=[(Arrival(50, 25), coarse)] * 3) == "not shown"
    assert word("speed", steps=[(Arrival(50, 49), fine)] * 3) == "better"
    # At the first measurement on both sides: it may be at any step before.
    assert word("speed", steps=[(coarse, coarse)] * 8) == "not shown"
    assert word("speed", steps=[(fine, fine)] * 8) == "no difference"


def test_a_metric_that_is_known_to_a_tenth_does_not_prove_a_difference_of_a_tenth():
    assert word("quality", values=[(0.9, 1.0)] * 3) == "not shown"
    assert word("quality", values=[(0.9, 1.0)] * 8) == "better"


def test_a_difference_that_is_shown_and_smaller_than_the_margin_is_none():
    tiny = [(0.9, 0.901), (0.9, 0.9011), (0.9, 0.9009)] * 3
    quality = verdict(values=tiny).finding("quality")
    assert quality.word == "no difference"
    assert quality.p_value < 0.001
    assert quality.sentence.startswith(
        "Quality: no difference larger than 1 point of test accuracy. With batch norm the "
        "network's test accuracy differs by +0.10 points from that without it ("
    )


@pytest.mark.parametrize("values", [[(None, 0.9)], [(float("nan"), 0.9)]])
def test_a_side_without_a_value_is_not_shown_to_be_as_good(values):
    quality = verdict(values=AS_GOOD[:7] + values).finding("quality")
    assert quality.word == "not shown"
    assert "1 run without it has none." in quality.sentence


def test_the_better_side_must_have_all_its_values():
    lacking = [(0.9, None)]
    assert word("quality", values=BETTER[:7] + lacking) == "not shown"
    assert word("quality", values=WORSE[:7] + lacking) == "worse"


def test_without_any_value_there_is_nothing_to_estimate():
    quality = verdict(values=[(None, None)] * 8).finding("quality")
    assert (quality.word, quality.estimate) == ("not shown", None)
    assert "No pair of runs at the best settings has a test accuracy on both sides." in (
        quality.sentence
    )


def test_of_a_loss_lower_is_better():
    loss = Metric("mse", higher_is_better=False)
    falls = [(2.0, 1.0), (2.1, 1.0), (1.9, 1.05)] * 3
    found = verdict(values=falls, metric=loss, margin=0.1, target="0.5 held-out mse")
    assert found.answer == "helps"
    quality = found.finding("quality")
    assert (quality.word, quality.estimate) == ("better", pytest.approx(-1.0))
    assert "differs by -1 from" in quality.sentence
    assert "each at its own best setting; lower is better." in quality.sentence


def test_without_pairs_there_is_nothing_to_compare():
    empty = verdict([], [], [])
    assert (empty.answer, empty.findings, empty.pairs) == ("nothing to compare", (), 0)
    assert str(empty) == "There are no finished pairs of runs to compare."


def test_sentences_say_which_side_they_are_about():
    found = verdict(
        ONLY_THE_TWIN_TRAINS, FASTER, BETTER, first="batch norm", other="group norm", slowdown=1.25
    )
    helps, reliability, speed, quality, price = found.sentences
    assert helps == "Group norm does better than batch norm in this network."
    assert "32 of 32 runs train with group norm, 0 with batch norm:" in reliability
    assert "about 2 times as many steps with batch norm as with group norm (" in speed
    assert quality.partition(". ")[2].startswith("With group norm the network's test accuracy ")
    assert "points from that with batch norm (" in quality
    assert price == "A training step takes 1.25 times as long with group norm as with batch norm."


def test_the_ratio_is_turned_so_that_it_is_larger_than_one():
    slow = verdict(steps=SLOWER).finding("speed")
    assert slow.estimate == pytest.approx(0.5, rel=0.01)
    assert "takes about 2 times as many steps with batch norm as without it (" in slow.sentence


def test_seconds_are_told_beside_the_steps():
    pair = (Arrival(200, 190, seconds=2.0), Arrival(100, 90, seconds=1.5))
    assert "In seconds it is about 1.3 times." in verdict(steps=[pair] * 8).sentences[2]


def test_seconds_are_told_in_the_direction_of_the_steps():
    pair = (Arrival(100, 90, seconds=1.0), Arrival(200, 190, seconds=3.0))
    sentence = verdict(steps=[pair] * 8).sentences[2]
    assert "takes about 2 times as many steps with batch norm as without it" in sentence
    assert "In seconds it is about 3 times." in sentence


def test_an_interval_excludes_no_difference_exactly_where_one_is_shown():
    for evidence in (FASTER, SLOWER, SCATTERED):
        speed = verdict(steps=evidence).finding("speed")
        assert (speed.word == "not shown") == (speed.low < 1 < speed.high)
    within = verdict().finding("speed")
    assert 1 / STEPS_MARGIN < within.low < within.high < STEPS_MARGIN


def test_more_looks_and_more_sides_ask_for_more():
    weak = [(1000, 800), (1000, 700), (1000, 750), (1000, 850)] * 2
    assert word("speed", steps=weak[:4], trained=ALL_TRAIN[:4], values=ANY[:4]) == "better"
    (looked_at,) = judge([measured(ALL_TRAIN[:4], weak[:4], ANY[:4])], looks=5)
    assert looked_at.finding("speed").word == "not shown"
    two = judge([measured(ALL_TRAIN[:4], weak[:4], ANY[:4], other=o) for o in ("a", "b", "c", "d")])
    assert two[0].finding("speed").word == "not shown"


@pytest.mark.parametrize(
    ("found", "as_reliable", "expected"),
    [
        (("not shown", "no difference", "no difference"), True, "no difference"),
        (("not shown", "no difference", "no difference"), False, "not shown"),
        (("no difference", "no difference", "no difference"), False, "no difference"),
        (("no difference", "no difference", "not shown"), True, "not shown"),
        (("better", "no difference", "no difference"), False, "helps"),
        (("not shown", "worse", "not shown"), True, "hurts"),
        (("better", "worse", "not shown"), False, "mixed"),
    ],
)
def test_the_answer_follows_from_the_words(found, as_reliable, expected):
    assert answer(found, as_reliable=as_reliable) == expected


# How often it is wrong: sweeps in which all is known, looked at as `seeds="auto"` does

SWEEPS = 10_000
CLOSE = (0.0, 0.002, 0.001, -0.05)  # the qualities of settings, less that of the first
ONE, EIGHT = (0.0, *[-0.05] * 7), (0.0,) * 8


def simulated(rng, *, speed=0.0, quality=0.0, settings=(CLOSE, CLOSE)):
    """Sweeps of (plain, batch norm): logarithms of steps and qualities of each run.

    Each is (sides, settings, seeds, sweeps). A seed moves both sides alike, as shared initial
    arrays do. Both sides are best at settings of their own, which lie close together.
    """
    by_setting = np.array(settings)[:, :, None, None]
    shape = (2, by_setting.shape[1], LOOKS[-1], SWEEPS)
    shared = rng.normal(0, 0.01, (1, 1, *shape[2:]))
    values = 0.9 + by_setting + shared + rng.normal(0, 0.006, shape)
    steps = 6 + 20 * shared + rng.normal(0, 0.15, shape)
    values[1] += quality
    steps[1] -= speed
    return steps, values


def words_at(steps, values, seeds, level):
    """The words on reliability, speed and quality, (sweeps, 3), each side at its best median."""
    seen_steps, seen = steps[:, :, :seeds], values[:, :, :seeds]
    best = np.median(seen, axis=2).argmax(axis=1)[:, None, None]  # (sides, 1, 1, sweeps)
    at_best = [np.take_along_axis(each, best, axis=1)[:, 0] for each in (seen_steps, seen)]
    speed = Mean.of(at_best[0][0] - at_best[0][1])
    quality = Mean.of(at_best[1][1] - at_best[1][0])
    trained = (seen > 0.88).sum(axis=1)  # (sides, seeds, sweeps)
    more, fewer = ((trained[a] > trained[b]).sum(axis=0) for a, b in ((1, 0), (0, 1)))
    settings = seen.shape[1]
    share = Mean.of((trained[1] - trained[0]) / settings, rounding=2 / settings**2 / 12)
    return words(
        np.stack([sign_test(more, fewer), speed.p_different(), quality.p_different()], -1),
        np.stack([share.p_within(0.25), speed.p_within(np.log(1.25)), quality.p_within(0.01)], -1),
        np.stack([more - fewer, speed.mean, quality.mean], -1),
        level,
    )


def ever_said(steps, values, level):
    """Which words are said of which criterion at any look: a dict of (sweeps, 3)."""
    looks = [words_at(steps, values, seeds, level) for seeds in LOOKS]
    return {
        word: np.any([found == word for found in looks], axis=0)
        for word in ("better", "worse", "no difference")
    }


def test_without_a_difference_one_is_claimed_in_at_most_a_twentieth_of_the_sweeps():
    steps, values = simulated(np.random.default_rng(0))
    said = ever_said(steps, values, LEVEL / len(LOOKS))
    false = (said["better"] | said["worse"]).any(axis=-1).mean()
    assert false <= LEVEL
    assert said["no difference"][:, 1:].all(axis=-1).mean() > 0.9  # and none is found, mostly
    # Without dividing the level over looks and findings, it would be claimed far more often.
    careless = [
        Mean.of(d[:seeds]).p_different() <= LEVEL
        for d in (steps[0, 0] - steps[1, 0], values[1, 0] - values[0, 0])
        for seeds in LOOKS
    ]
    assert np.any(careless, axis=0).mean() > 2 * LEVEL


@pytest.mark.parametrize("direction", [1, -1])
def test_of_a_difference_at_the_margin_none_is_claimed_in_at_most_a_twentieth(direction):
    at_margin = {"speed": direction * np.log(1.25), "quality": direction * 0.01}
    steps, values = simulated(np.random.default_rng(1), **at_margin)
    said = ever_said(steps, values, LEVEL / len(LOOKS))
    assert said["no difference"][:, 1:].any(axis=-1).mean() <= LEVEL
    wrong, right = ("worse", "better")[::direction]
    assert said[wrong][:, 1:].any(axis=-1).mean() <= LEVEL / 5
    assert said[right][:, 1:].any(axis=-1).mean() > 0.9


@pytest.mark.parametrize("settings", [(ONE, EIGHT), (EIGHT, EIGHT)], ids=["one", "eight"])
def test_the_luck_of_the_best_setting_claims_no_difference_too_often(settings):
    """The best of eight equal settings is a lucky one, and that of one good setting is not."""
    steps, values = simulated(np.random.default_rng(4), settings=settings)
    said = ever_said(steps, values, LEVEL / len(LOOKS))
    assert (said["better"] | said["worse"])[:, 1:].any(axis=-1).mean() <= LEVEL
    once = words_at(steps, values, 8, LEVEL)[:, 1:]
    assert np.isin(once, ["better", "worse"]).any(axis=-1).mean() <= LEVEL + 0.005


def test_the_luck_of_the_best_setting_hides_a_difference_as_often_as_the_docs_say():
    at_margin = {"speed": -np.log(1.25), "quality": -0.01}
    steps, values = simulated(np.random.default_rng(5), settings=(ONE, EIGHT), **at_margin)
    said = ever_said(steps, values, LEVEL / len(LOOKS))["no difference"]
    assert said[:, 1:].any(axis=-1).mean() <= 0.06
    once = words_at(steps, values, 12, LEVEL)[:, 1:] == "no difference"
    assert once.any(axis=-1).mean() <= 0.075


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.7), (5, 0.99)])
def test_a_large_difference_is_seen_at_the_first_looks(seeds, share):
    steps, values = simulated(np.random.default_rng(2), speed=np.log(13))
    assert (words_at(steps, values, seeds, LEVEL / len(LOOKS))[:, 1] == "better").mean() > share


def test_verdicts_of_records_have_the_words_of_the_simulation():
    steps, values = simulated(np.random.default_rng(3), speed=0.2, quality=0.008)
    expected = words_at(steps, values, 8, LEVEL)
    for sweep in range(40):
        seen = values[:, :, :8, sweep]
        best = np.median(seen, axis=2).argmax(axis=1)
        pairs = list(zip(*(seen[side, best[side]] for side in (0, 1)), strict=True))
        logarithms = [steps[side, best[side], :8, sweep] for side in (0, 1)]
        arrivals = [
            tuple(Arrival(step, step) for step in pair)  # known exactly
            for pair in zip(*map(np.exp, logarithms), strict=True)
        ]
        trained = list(zip(*(seen > 0.88).sum(axis=1).tolist(), strict=True))
        found = verdict(trained, arrivals, pairs)
        assert [each.word for each in found.findings] == expected[sweep].tolist()
