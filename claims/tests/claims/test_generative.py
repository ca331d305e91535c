from dataclasses import replace

import pytest
import torch

from bnkit_claims.claims.generative import CLAIM, KINDS, judge, run
from bnkit_claims.core.evidence import Beside, Part

TOY = CLAIM.sizes["toy"]


def found(*scores, seeds=3):
    """What seeds would find, a little apart, with one score for each of the four networks."""
    return [
        {
            "kind": kind,
            "seed": seed,
            "distances": [9.0, 8.0, score],
            "score": None if score is None else score * (1 + 0.01 * seed * (kind == "neither")),
            "real": 0.2,
            "classes": 10,
            "samples": [[0.0, 1.0], [1.0, 0.0]] if seed == 0 else None,
            "data": [[1.0, 1.0], [1.0, 0.0]] if seed == 0 else None,
        }
        for kind, score in zip(KINDS, scores, strict=True)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("evidence", "verdict", "shown"),
    [
        (found(30.0, 10.0, 15.0, 2.0), "holds", [True, True, True]),
        (found(30.0, 40.0, 15.0, 2.0), "holds in part", [False, True, True]),
        (found(30.0, 40.0, 35.0, 32.0), "does not hold", [False, False, False]),
        (found(30.0, 10.0, 15.0, 2.0, seeds=2), "not shown", [None, None, None]),
        # Without batch norm no run ends in finite numbers: there is no ratio, and it is needed.
        (found(None, 10.0, 15.0, 2.0), "holds", [True, True, True]),
        (found(30.0, None, 15.0, 2.0), "holds in part", [None, True, True]),
    ],
    ids=["for", "mixed", "against", "too few seeds", "neither fails", "the generator's fails"],
)
def test_the_verdict_follows_from_the_evidence(evidence, verdict, shown):
    judged = judge(TOY, evidence)
    assert judged.verdict == verdict
    assert [part.shown for part in judged.parts] == shown


@pytest.mark.parametrize(
    ("scores", "both", "discriminator", "generator"),
    [
        ((30.0, 10.0, 15.0, 2.0), "15×", "2×", "3×"),
        ((30.0, 40.0, 35.0, 50.0), "0.61×", "0.87×", "0.76×"),
        ((30.0, None, 15.0, 2.0), "15×", "2×", "an unknown number of times"),
    ],
    ids=["for", "against", "unknown"],
)
def test_the_headline_says_how_close_samples_come(scores, both, discriminator, generator):
    assert judge(TOY, found(*scores)).headline == (
        f"Batch norm in both networks brings samples {both} closer to the data, in the "
        f"discriminator only {discriminator}, in the generator only {generator}."
    )


def test_ratios_are_neither_over_with():
    judged = judge(TOY, found(30.0, 10.0, 15.0, 2.0, seeds=1))
    assert judged.parts == (
        Part("closer samples, batch norm in the generator only", "3.00 times", None),
        Part("closer samples, batch norm in the discriminator only", "2.00 times", None),
        Part("closer samples, batch norm in both networks", "15.00 times", None),
    )
    assert judged.beside == (
        Beside("median distance without batch norm", "30"),
        Beside("median distance with batch norm in the generator only", "10"),
        Beside("median distance with batch norm in the discriminator only", "15"),
        Beside("median distance with batch norm in both networks", "2"),
        Beside("median distance of held-out images", "0.2"),
    )
    assert "15.0 times as far" in judged.figures[0].title


def test_runs_without_batch_norm_that_are_never_finite_are_told():
    judged = judge(TOY, found(None, 10.0, 15.0, 2.0))
    finite = "finite in 0/3 runs without, 3/3 with batch norm"
    assert [part.figures for part in judged.parts] == [finite] * 3
    assert judged.beside[0] == Beside("median distance without batch norm", "finite in no run")
    assert judged.headline == (
        "Without batch norm no run ends in finite numbers; with it in both networks 3 of 3 do."
    )


def test_runs_of_which_some_are_not_finite_are_counted():
    rows = found(30.0, 10.0, 15.0, 2.0, seeds=4)
    rows = [{**r, "score": None} if (r["kind"], r["seed"]) == ("both", 3) else r for r in rows]
    judged = judge(TOY, rows)
    figures = judged.parts[2].figures
    assert (
        figures == "15.15 (14.78 to 15.53) times, finite in 4/4 runs without, 3/4 with batch norm"
    )
    assert [part.shown for part in judged.parts] == [True, True, True]


def test_a_toy_run_scores_every_placement_and_shows_its_samples():
    before = torch.get_rng_state()
    evidence = run(replace(TOY, seeds=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["kind"] for row in evidence.details] == list(KINDS)
    assert all(row["score"] > row["real"] >= 0 for row in evidence.details)  # six steps of training
    curves, pictures = evidence.figures
    assert all(line.x == (2, 4, 6) and len(line.y) == 3 for line in curves.lines)
    names = [line.name for line in curves.lines]
    assert [picture.panel for picture in pictures.pictures] == [*names, "data"]
    for picture in pictures.pictures:
        assert [len(row) for row in picture.values] == [
            30
        ] * 30  # 3 images of 8 pixels with margins
        assert all(0 <= value <= 1 for row in picture.values for value in row)
    assert run(replace(TOY, seeds=1)) == evidence  # all randomness comes from the seeds
