"""Networks that people train, compared as they would: the recipes of the page, and other loops."""

import importlib
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.own_loop import own_loop
from bnkit.experiments.settings import Settings
from pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Import a file of the page, of at most fifteen lines where it is a loop."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, text, _ in blocks(PAGE):
        if title := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / title[1]).write_text(text)

    def imported(name):
        lines = (tmp_path / f"{name}.py").read_text().splitlines()[1:]
        assert name in ("my_code", "diabetes") or len([x for x in lines if x]) <= 15
        return importlib.import_module(name)

    yield imported
    for name in ("my_code", "my_loop", "lightning_loop", "transformers_loop"):
        sys.modules.pop(name, None)


def run(build, data=None, train=None, **options):
    """Return the metric and both results, run in this process."""
    given = {"learning_rates": [0.01], "seeds": 1, "steps": 40} | options
    settings = Settings(**given)
    loop = None if train is None else own_loop(train, settings, {}, given=given)
    sweep = plan_comparison(build, data, settings=settings, out="unused", loop=loop)
    results = [trial.run() for trial in sweep.trials]
    assert [result.reason for result in results] == ["", ""]
    return sweep, *results


def test_the_plain_loop_with_autocast_and_a_schedule(recipe):
    train, build = recipe("my_loop").train, recipe("my_code").build
    _, plain, twin = run(build, train=train)
    assert plain.curve.steps == twin.curve.steps == tuple(range(1, 41))
    assert twin.metric > 0.5


def test_a_lightning_module(recipe):
    lightning = pytest.importorskip("lightning")
    code = recipe("my_code")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss = code.build(), nn.CrossEntropyLoss()

        def training_step(self, batch, _):
            return self.loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.learning_rate)

    def two_loaders():
        train, [test] = code.loaders()
        return train, DataLoader(TensorDataset(*test), 200)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the workers of loaders, and on what is deprecated
        loop = recipe("lightning_loop").train
        sweep, plain, twin = run(Module, two_loaders, loop)
    assert sweep.metric.name == "accuracy"
    assert plain.curve.steps == twin.curve.steps == (20, 40)
    changed = [row[0] for row in sweep.recipe.plan if row[2] != "left alone"]
    assert changed == ["net.0", "net.2"]


def test_a_network_of_transformers(recipe):
    transformers = pytest.importorskip("transformers")

    class Tokens(Dataset):
        ids = torch.randint(0, 20, (64, 6), generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return len(self.ids)

        def __getitem__(self, place):
            ids = self.ids[place]
            return {"input_ids": ids, "labels": (ids[0] > 9).long()}

    def build():
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(vocab_size=20, intermediate_size=32, **sizes)
        return transformers.BertForSequenceClassification(config)

    train = recipe("transformers_loop").train
    _, plain, twin = run(build, lambda: (Tokens(), Tokens()), train)
    assert plain.curve.steps == twin.curve.steps == (20, 40)
    assert twin.buffers > plain.buffers


class Gan(nn.Module):
    """After Radford et al. 2016, with dense layers: batch norm goes into both parts."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def train_gan(model, trial):
    parts = (model.generator, model.critic)
    one, other = (torch.optim.Adam(p.parameters(), trial.learning_rate, (0.5, 0.9)) for p in parts)
    for step in range(1, trial.steps + 1):
        real = torch.randn(64, 2) * 0.5 + torch.tensor([2.0, -1.0])
        fake = model.generator(torch.randn(64, 4))
        scores = model.critic(real), model.critic(fake.detach())
        loss = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        other.zero_grad(), loss.backward(), other.step()
        loss = F.softplus(-model.critic(fake)).mean()
        one.zero_grad(), loss.backward(), one.step()
        distance = (fake.mean(0) - real.mean(0)).norm()
        if trial.report(step, loss=loss, distance=distance):
            break


def test_a_gan_by_a_loop_of_its_own():
    sweep, plain, twin = run(Gan, train=train_gan)
    assert (sweep.metric.name, sweep.metric.higher_is_better) == ("distance", False)
    assert plain.curve.steps == twin.curve.steps == tuple(range(1, 41))
    assert [row[0] for row in sweep.recipe.plan if row[2] != "left alone"] == [
        "generator.0",
        "critic.0",
    ]


# By the built-in loop


def test_a_regression(recipe):
    task = recipe("diabetes")
    sweep, plain, twin = run(task.build, task.loaders, metric="r2", steps=150)
    assert sweep.metric.name == "r2"
    assert min(plain.metric, twin.metric) > 0.2


class UNet(nn.Module):
    """Small, after Ronneberger et al. 2015."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.inside = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        high = self.down(x)
        low = self.inside(F.max_pool2d(high, 2))
        return self.last(torch.cat([high, self.up(low)], 1))


def painted(count, seed):
    """Canvases of 16×16 with a digit 0 or 1 each: background 0, ink 1 or 2, faint pixels 255."""
    draw = torch.Generator().manual_seed(seed)
    digits = load_digits(n_class=2)
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    canvas, classes = torch.zeros(count, 1, 16, 16), torch.zeros(count, 16, 16).long()
    for n in range(count):
        which = int(torch.randint(len(images), (), generator=draw))
        top, left = torch.randint(9, (2,), generator=draw).tolist()
        place = slice(top, top + 8), slice(left, left + 8)
        canvas[(n, 0, *place)] = images[which]
        faint = (images[which] > 0) & (images[which] < 0.3)
        ink = torch.where(images[which] >= 0.3, 1 + int(digits.target[which]), 0)
        classes[(n, *place)] = ink.masked_fill(faint, 255)
    return canvas, classes


def test_a_segmentation():
    batches = [painted(16, seed) for seed in range(8)]
    data = lambda: (batches[:7], batches[7:])  # noqa: E731
    sweep, _, twin = run(UNet, data, learning_rates=[0.01], optimizer="adam", steps=80)
    assert sweep.metric.name == "iou"
    assert twin.metric > 0.4


class Averaged(nn.Module):
    """The mean of what is no padding, of a network on each token."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(12, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 2)

    def forward(self, ids, mask):
        hidden = torch.relu(self.hidden(self.embed(ids))) * mask[..., None]
        return self.last(hidden.sum(1) / mask.sum(1, keepdim=True))


def test_a_sequence_classification_with_masks():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(12, (256, 7), generator=draw)
    mask = (torch.arange(7) < torch.randint(1, 8, (256, 1), generator=draw)).float()
    kind = (((ids > 8) * mask).sum(1) > 0).long()
    parts = TensorDataset(ids, mask, kind)
    loader = DataLoader(parts, 32)
    sweep, _, twin = run(Averaged, lambda: (loader, loader), optimizer="adam", steps=150)
    assert sweep.metric.name == "accuracy"
    assert twin.metric > 0.8


def test_a_convolutional_network_on_time_series():
    def build():
        convs = [nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 5), nn.ReLU()]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))

    draw = torch.Generator().manual_seed(0)
    kind = torch.randint(2, (256,), generator=draw)
    phase = 6.3 * torch.rand(256, 1, generator=draw)
    waves = torch.sin((1 + 0.5 * kind[:, None]) * torch.arange(40) / 2 + phase)
    x = (waves + 0.3 * torch.randn(256, 40, generator=draw))[:, None]
    batches = list(zip(x.split(32), kind.split(32), strict=True))
    _, _, twin = run(build, lambda: (batches[:6], batches[6:]), learning_rates=[0.1], steps=120)
    assert twin.metric > 0.7
