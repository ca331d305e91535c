"""Networks with nothing wrong: fresh, after short training, and in eval mode."""

import json
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


# What public architectures are made of, fresh: nothing is trained or loaded yet


def depthwise():
    """As MobileNetV3: eps 1e-3 above the variance that random depthwise weights give."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.Hardswish(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    nn.init.normal_(net[3].weight, std=0.003)
    return net


class FrozenBatchNorm(nn.Module):
    """As DETR's: buffers only, and no number eps."""

    def __init__(self, features):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((features,), float(value)))

    def forward(self, x):
        weight, bias, mean, variance = (b[:, None, None] for b in self.buffers())
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


def detector():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), FrozenBatchNorm(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Pooled(nn.Module):
    """As the pyramids of PAN and DeepLab: one of five branches has one place for each row."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(self.branch(rate) for rate in (1, 2, 3, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self.branch(1)[0:3])
        self.project = self.branch(1, channels=40)

    @staticmethod
    def branch(rate, channels=3):
        conv = nn.Conv2d(channels, 8, 3, padding=rate, dilation=rate, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        maps = [branch(x) for branch in self.branches]
        maps.append(self.pooled(x).expand_as(maps[0]))
        return self.project(torch.cat(maps, 1)).mean((2, 3))


def dropped():
    """As DeepLabV3: dropout behind the projection, whose output a conv with batch norm reads."""
    head = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Mixed(nn.Module):
    """As MobileViT and CvT: dropout in residual branches, and batch norm in the next projection."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.mixing = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.3))
        self.project = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8))

    def forward(self, x):
        tokens = self.stem(x).permute(0, 2, 3, 1)
        tokens = tokens + self.mixing(tokens)
        tokens = tokens + self.mixing(tokens)
        return self.project(tokens.permute(0, 3, 1, 2)).relu().mean((2, 3))


def starting_at_zero():
    """As branches that begin as nothing: the conv before the batch norm has weights of 0."""
    net = dropped()
    net[3] = nn.Identity()
    nn.init.zeros_(net[4].weight)
    return net


class Activated(nn.BatchNorm2d):
    """As timm's batch norm that ends in an activation."""

    def __init__(self, features):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


FRESH = {
    "depthwise convs and eps 1e-3": (depthwise, 8),
    "frozen batch norms without weights": (detector, 8),
    "a pooled branch": (Pooled, 5),
    "dropout before a conv": (dropped, 16),
    "dropout in residual branches": (Mixed, 16),
    "weights that begin at 0": (starting_at_zero, 8),
}


@pytest.mark.parametrize(("build", "rows"), FRESH.values(), ids=FRESH)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_wrong_with_a_fresh_construct_of_public_architectures(build, rows, seed):
    torch.manual_seed(seed)
    assert bad(build(), [torch.randn(rows, 3, 12, 12) for _ in range(3)]) == []


def test_a_pooled_branch_is_warned_of_where_the_data_of_training_are_that_small():
    torch.manual_seed(0)
    (text,) = bad(Pooled(), [torch.randn(5, 3, 12, 12) for _ in range(8)])
    assert text.startswith("warning noisy-statistics at pooled.2 (effective values per channel: 5")
    assert "of the model: 0." in text


def test_a_trained_network_whose_eps_outweighs_the_variance_is_warned():
    torch.manual_seed(0)
    model, batches = depthwise(), [torch.randn(8, 3, 12, 12) for _ in range(60)]
    for batch in batches:
        model(batch)
    (text,) = bad(model, batches[:4])
    assert "large-eps at 4 (eps: 0.001" in text
    assert "output scale / γ" in text


def test_the_page_has_the_kept_figures_of_the_instrument():
    root = Path(__file__).parents[2]
    program = runpy.run_path(str(root / "benchmarks" / "doctor.py"))
    page = (root / "docs" / "doctor.md").read_text()
    figures = json.loads((root / "benchmarks" / "doctor.json").read_text())
    assert program["with_figures"](page, figures) == page
