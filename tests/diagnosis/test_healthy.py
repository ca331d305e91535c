"""Networks with nothing wrong: fresh, after short training, and in eval mode."""

import pytest
import torch
import torch.nn.functional as F

import bnkit
from bnkit.diagnosis import diagnose
from bnkit.experiments import networks
from bnkit.experiments.data import load
from zoo.checks import fingerprint, random_state

ROWS, STEPS = 32, 20
NETWORKS = {name: found for name, found in networks.NETWORKS.items() if name != "logistic"}


@pytest.fixture(scope="module")
def batches():
    """Return labelled digits, enlarged to 18×18, which all networks take."""
    digits = load("digits").train
    images = F.interpolate(digits.inputs[: ROWS * STEPS], 18)
    return list(zip(images.split(ROWS), digits.targets.split(ROWS), strict=False))


def bad(model, batches, **options):
    found = diagnose(model, batches, progress=False, **options)
    assert not found.not_run
    return [str(finding) for finding in found.at_least("warning")]


def fitted(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_wrong_with_a_network_of_the_lab(name, batches):
    torch.manual_seed(0)
    plain = NETWORKS[name].build((1, 18, 18), 10, activation="relu")
    model = bnkit.add(plain, batches[0][0])
    assert bad(model, batches[:4]) == []
    optimizer = fitted(model, batches)
    before, state = fingerprint(model), random_state()
    assert bad(model, batches[:4], optimizer=optimizer, loss=F.cross_entropy) == []
    assert (fingerprint(model), random_state()) == (before, state)


@pytest.mark.parametrize("name", ["mlp", "dlology"])
def test_nothing_is_wrong_with_a_trained_network_in_eval_mode(name, batches):
    torch.manual_seed(0)
    plain = NETWORKS[name].build((1, 18, 18), 10, activation="relu")
    model = bnkit.add(plain, batches[0][0])
    for _ in range(4):  # epochs, after which the averages are those of the last weights
        fitted(model, batches)
    assert bad(model.eval(), batches[:8], loss=F.cross_entropy) == []
