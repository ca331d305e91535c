import pytest

from bnkit.experiments.statistics import paired_difference, paired_ratio
from bnkit.experiments.verdict import judge

# Of (plain, batch norm), each with no evidence, evidence for, and evidence against.
BOTH_TRAIN = [(True, True)] * 6
ONLY_THE_TWIN_TRAINS = [(False, True)] * 6  # p = 2 / 64
ONLY_THE_PLAIN_TRAINS = [(True, False)] * 6
EVEN = [(100, 110), (110, 100), (100, 100)]
FASTER = [(200, 100), (210, 100), (190, 100)]
SLOWER = [(100, 200), (100, 210), (100, 190)]
AS_GOOD = [(0.9, 0.91), (0.91, 0.9), (0.9, 0.9)]
BETTER = [(0.9, 0.95), (0.9, 0.94), (0.9, 0.96)]
WORSE = [(0.95, 0.9), (0.94, 0.9), (0.96, 0.9)]


def verdict(successes=BOTH_TRAIN, steps=EVEN, metrics=AS_GOOD, slowdown=None):
    return judge(successes=successes, steps=steps, metrics=metrics, slowdown=slowdown)


@pytest.mark.parametrize(
    "evidence",
    [{"successes": ONLY_THE_TWIN_TRAINS}, {"steps": FASTER}, {"metrics": BETTER}],
    ids=["reliability", "speed", "quality"],
)
def test_one_criterion_for_it_and_none_against_says_helps(evidence):
    assert verdict(**evidence).answer == "helps"


@pytest.mark.parametrize(
    "evidence",
    [{"successes": ONLY_THE_PLAIN_TRAINS}, {"steps": SLOWER}, {"metrics": WORSE}],
    ids=["reliability", "speed", "quality"],
)
def test_one_criterion_against_it_and_none_for_it_says_hurts(evidence):
    assert verdict(**evidence).answer == "hurts"


@pytest.mark.parametrize(
    "evidence",
    [
        {"successes": ONLY_THE_TWIN_TRAINS, "steps": SLOWER},
        {"successes": ONLY_THE_PLAIN_TRAINS, "metrics": BETTER},
        {"steps": FASTER, "metrics": WORSE},
    ],
)
def test_criteria_that_contradict_each_other_say_mixed(evidence):
    assert verdict(**evidence).answer == "mixed"


@pytest.mark.parametrize(
    "weak",
    [
        pytest.param({"successes": [(False, True)] * 5}, id="p is 0.0625 for five of five"),
        pytest.param({"successes": [(True, False)] * 5}, id="the same against it"),
        pytest.param({"steps": [(200, 100), (210, 100)]}, id="two pairs have no interval"),
        pytest.param({"steps": [(900, 100), (110, 100), (100, 100)]}, id="ratios too far apart"),
        pytest.param({"steps": [(None, 100)] * 9}, id="pairs without the target on both sides"),
        pytest.param({"metrics": [(0.5, 0.9), (0.5, 0.9)]}, id="two differences"),
        pytest.param({"metrics": [(0.1, 0.9), (0.9, 0.91), (0.9, 0.9)]}, id="too far apart"),
        pytest.param({"metrics": [(None, 0.9)] * 9}, id="no accuracy of the plain side"),
        pytest.param({"slowdown": 9.0}, id="the price decides nothing"),
    ],
)
def test_what_its_interval_or_test_does_not_show_counts_for_nothing(weak):
    assert verdict(**weak).answer == "no clear difference"


def test_a_weak_criterion_does_not_contradict_a_strong_one():
    assert verdict(steps=FASTER, metrics=[(0.95, 0.9)] * 2).answer == "helps"


def test_without_pairs_there_is_nothing_to_compare():
    empty = verdict([], [], [])
    assert empty.answer == "nothing to compare"
    assert empty.p_value == 1
    assert str(empty) == "There are no finished pairs of runs to compare."


def test_without_a_step_or_an_accuracy_the_sentences_say_so():
    found = verdict([(False, False)], [(None, None)], [(None, None)])
    assert found.sentences == (
        "Batch norm makes no clear difference to this network.",
        "With batch norm 0 of 1 runs train, without it 0 (not clear: sign test p = 1).",
        "At their best settings no pair of runs reaches the target on both sides.",
        "No pair of runs has a test accuracy on both sides.",
    )


def test_the_measurements_are_those_of_the_pairs():
    pairs = [(True, True), (False, True), (False, True), (True, False), (False, False)]
    found = verdict(pairs, FASTER, [*BETTER, (None, 0.1), (0.1, None)], 1.5)
    assert (found.pairs, found.trained_plain, found.trained_batch_norm) == (5, 2, 3)
    assert (found.only_batch_norm, found.only_plain, found.p_value) == (2, 1, 1.0)
    assert found.steps == paired_ratio(FASTER)
    assert found.quality == paired_difference(BETTER)
    assert found.slowdown == 1.5


def test_the_sentences_give_the_answer_and_each_measurement():
    found = verdict(ONLY_THE_TWIN_TRAINS, FASTER, BETTER, 1.25)
    # t(0.975, 2) = 4.303: 0.05 ± 4.303 · 0.01 / √3, and the logarithms of 2, 2.1 and 1.9
    assert found.sentences == (
        "Batch norm helps this network.",
        "With batch norm 6 of 6 runs train, without it 0 (clear: sign test p = 0.031).",
        (
            "Each at its own best setting, the plain network takes 2.00 (1.76 to 2.26) times the "
            "steps to the target."
        ),
        "Its test accuracy differs by +5.00 points with batch norm (+2.52 to +7.48).",
        "A training step takes 1.25 times as long with batch norm.",
    )
    assert str(found) == "\n".join(found.sentences)


def test_without_an_interval_a_sentence_has_the_mean_alone():
    found = verdict(steps=FASTER[:1], metrics=[(0.5, 0.25)])
    assert "takes 2.00 times the steps" in found.sentences[2]
    assert found.sentences[3] == "Its test accuracy differs by -25.00 points with batch norm."


@pytest.mark.parametrize(
    ("evidence", "sentence"),
    [
        ({}, "Batch norm makes no clear difference to this network."),
        ({"steps": SLOWER}, "Batch norm hurts this network."),
        (
            {"steps": SLOWER, "metrics": BETTER},
            "Batch norm helps this network in one way and hurts it in another.",
        ),
    ],
)
def test_the_first_sentence_is_the_answer(evidence, sentence):
    assert verdict(**evidence).sentences[0] == sentence
