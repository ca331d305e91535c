from dataclasses import replace

import pytest
import torch
from torch import nn

from bnkit_claims.claims.covariate_shift import (
    CLAIM,
    KINDS,
    CovariateShift,
    Noisy,
    disturbed,
    drift,
    judge,
    percentiles,
    run,
)
from bnkit_claims.core.evidence import Part

TOY = CLAIM.sizes["toy"]
INVENTED = replace(TOY, seeds=4, steps=100, every=10)


def found(*, drifts, shifts, steps, seeds=4):
    """What four seeds would find, a little apart, with one value for each kind of network."""
    return [
        {
            "kind": kind,
            "activation": "sigmoid",
            "seed": seed,
            "typical": [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]],
            "drift": drifts[place] * (1 + 0.01 * (seed if place else 0)),
            "gradient_shift": shifts[place],
            "accuracy": [None if s == 0 else 0.9 * (10 * s >= steps[place]) for s in range(11)],
        }
        for place, kind in enumerate(KINDS)
        for seed in range(seeds)
    ]


FASTER = "when noise moves them more, batch norm is still 2.5 times as fast (sigmoid)"
NO_FASTER = "when noise moves them more, batch norm is no faster (sigmoid)"
UNSURE = "these runs cannot tell whether stability speeds up training"


@pytest.mark.parametrize(
    ("drifts", "shifts", "steps", "verdict", "shown", "told"),
    [
        ((3, 1, 4), (2, 1, None), (50, 10, 50), "holds", (True, True, True), NO_FASTER),
        ((3, 1, 4), (2, 1, None), (50, 10, 20), "holds in part", (True, True, False), FASTER),
        ((1, 3, 4), (1, 2, None), (50, 10, 20), "does not hold", (False, False, False), FASTER),
        # Noise that moves the inputs less than the plain network's asks nothing of the cause.
        ((3, 1, 2), (2, 1, None), (50, 10, 20), "holds in part", (True, True, None), UNSURE),
        # The plain network never gets there: its full length counts.
        (
            (3, 1, 4),
            (2, 1, None),
            (999, 10, 20),
            "holds in part",
            (True, True, False),
            FASTER.replace("2.5", "5"),
        ),
    ],
)
def test_the_verdict_follows_from_the_evidence(drifts, shifts, steps, verdict, shown, told):
    evidence = judge(INVENTED, found(drifts=drifts, shifts=shifts, steps=steps))
    assert tuple(part.shown for part in evidence.parts) == shown
    assert evidence.verdict == verdict
    far = "3" if drifts[0] == 3 else "0.33"
    moved = f"Without batch norm a layer's inputs move {far} (sigmoid) times as far"
    assert evidence.headline == f"{moved}; {told}."
    against = (
        "Contrary to Ioffe and Szegedy, and as Santurkar et al. found, batch norm with sigmoid is "
        "faster than the plain network even when noise moves its inputs more."
    )
    assert evidence.notes == ((against,) if shown[-1] is False else ())


def test_parts_tell_how_far_inputs_and_gradients_move_and_what_noise_does():
    evidence = judge(INVENTED, found(drifts=(3, 1, 4), shifts=(2, 1, None), steps=(50, 10, 20)))
    inputs, gradients, cause = evidence.parts
    assert inputs.what == "steadier inputs of sigmoid units"
    assert inputs.figures == "move 2.96 (2.90 to 3.02) times as far without batch norm"
    assert gradients == Part(
        "steadier gradients of sigmoid layers",
        "move 2.00 (2.00 to 2.00) times as far without batch norm",
        True,
    )
    assert cause == Part(
        "steadier inputs cause the speed with sigmoid",
        "noise moves the inputs 1.35 (1.33 to 1.38) times as far as plain; plain takes 2.50 (2.50 "
        "to 2.50) times the steps to 50%",
        False,
    )


def test_inputs_that_no_run_could_follow_move_an_unknown_distance():
    none = found(drifts=(3, 1, 4), shifts=(2, 1, None), steps=(50, 10, 20))
    evidence = judge(INVENTED, [{**each, "drift": None} for each in none])
    assert [part.shown for part in evidence.parts] == [None, True, None]
    assert evidence.parts[0].figures == "move an unknown number of times as far without batch norm"
    assert evidence.headline == f"How far a layer's inputs move is unknown; {UNSURE}."


def test_two_seeds_show_nothing():
    few = found(drifts=(3, 1, 4), shifts=(2, 1, None), steps=(50, 10, 50), seeds=2)
    evidence = judge(INVENTED, few)
    assert evidence.verdict == "not shown"
    assert UNSURE in evidence.headline


def test_a_toy_run_watches_every_kind_of_network():
    evidence = run(replace(TOY, seeds=1))
    assert [row["kind"] for row in evidence.details] == list(KINDS)
    assert [figure.kind for figure in evidence.figures] == ["lines", "dots", "dots", "lines"]
    assert {line.panel for line in evidence.figures[0].lines} == set(KINDS)
    drifts = {row["kind"]: row["drift"] for row in evidence.details}
    assert drifts["noisy batch norm"] > drifts["batch norm"]  # whatever the seed


def test_drift_is_the_mean_move_and_its_unit_the_distance_of_the_outer_percentiles():
    seen = [torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [1.0], [4.0]])]
    assert drift(seen) == pytest.approx((1 + 0 + 2) / 3)
    assert drift(seen, in_spreads=True) == pytest.approx((1 + 0 + 2) / 3 / 2)
    assert drift(seen[:1]) is None


def test_percentiles_are_of_the_inputs_of_the_last_activation():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.fill_(1.0)
    inputs = torch.arange(101.0)[:, None]
    assert percentiles(model, inputs).flatten().tolist() == pytest.approx([31, 101, 171])


def test_noise_has_the_mean_and_the_scale_that_the_settings_give_it():
    torch.manual_seed(0)
    noisy = Noisy(nn.Identity(), CovariateShift())
    draws = torch.stack([noisy(torch.ones(50, 20)) for _ in range(200)])  # steps, examples, units
    assert draws.mean().item() == pytest.approx(1.125, abs=0.02)  # scale 1 to 1.25, mean 0
    of_steps = draws.mean(1)  # varies by the unit's mean, uniform in ±0.5, and its scale
    expected = (1 / 12 + 0.25**2 / 12 + (0.25 + 1 / 12) / 50) ** 0.5
    assert of_steps.std().item() == pytest.approx(expected, rel=0.05)


def test_noise_comes_before_every_activation():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    kinds = [type(layer) for layer in disturbed(model, "relu", TOY).children()]
    assert kinds == [nn.Linear, Noisy, nn.Linear, Noisy, nn.Linear]
