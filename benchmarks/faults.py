"""Five faults planted in networks that are trained here: found, fixed, and what each costs.

    python benchmarks/faults.py [--data-dir FOLDER] [--seeds 3] [--only FAULT]

A small VGG is trained on Fashion-MNIST with each fault, and without it. `bnkit.diagnose` looks at
the faulty network, what it says is fixed, and the fixed network is diagnosed again. The figures
go to benchmarks/faults.json, the tables made from them into docs/faults.md.
"""

import argparse
import copy
import json
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import bnkit
from bnkit.diagnosis import Diagnosis, Finding
from bnkit.experiments.data import Data, load
from bnkit.experiments.provenance import environment
from bnkit.experiments.training import accuracy
from bnkit.layers.domains import DomainBatchNorm
from bnkit.observation import evaluating

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "faults.md"
BESIDE_THE_REPOSITORY = ROOT.parent / "shared" / "data"
SIDES = ("faulty", "fixed", "healthy", "healthy, recalibrated")

Batch = tuple[Tensor, Tensor]
DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: x, "negative": lambda x: 1 - x}


@dataclass(frozen=True)
class Size:
    """How large everything is: images trained on, mini-batches, feature maps, and how long."""

    images: int = 6_000
    batch: int = 100
    epochs: int = 3
    maps: tuple[int, ...] = (8, 16, 32)
    hidden: int = 64
    rate: float = 0.05  # of SGD with momentum 0.9
    diagnosed: int = 20  # mini-batches


@dataclass(frozen=True)
class Task:
    """What one network is trained on."""

    data: Data
    size: Size
    seed: int

    def network(
        self, *, momentum: float = 0.1, before: float = 0.0, behind: float = 0.0
    ) -> nn.Sequential:
        """Return a small VGG: blocks of conv, batch norm and ReLU, and a dense layer with one.

        `before` and `behind` the last batch norm such a share of the features is dropped.
        """
        torch.manual_seed(self.seed)
        channels, side, _ = self.data.input_shape
        layers: list[nn.Module] = []
        for maps in self.size.maps:
            layers += [nn.Conv2d(channels, maps, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(maps, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = maps, side // 2
        hidden = self.size.hidden
        layers += [nn.Flatten(), *([nn.Dropout(before)] if before else [])]
        layers += [nn.Linear(channels * side**2, hidden, bias=False)]
        layers += [nn.BatchNorm1d(hidden, momentum=momentum), nn.ReLU()]
        layers += [nn.Dropout(behind)] if behind else []
        return nn.Sequential(*layers, nn.Linear(hidden, 10))

    def loader(self, *, more: int = 0, drop_last: bool = False) -> DataLoader[Any]:
        """Return the mini-batches of an epoch, in an order of this seed."""
        images = self.size.images + more
        examples = self.data.train.inputs[:images], self.data.train.targets[:images]
        generator = Generator().manual_seed(self.seed)
        return DataLoader(
            TensorDataset(*examples),
            self.size.batch,
            shuffle=True,
            drop_last=drop_last,
            generator=generator,
        )

    def inputs(self) -> list[Tensor]:
        """Return the mini-batches that are looked at, of the images trained on."""
        images = self.size.diagnosed * self.size.batch
        return list(self.data.train.inputs[: min(images, self.size.images)].split(self.size.batch))

    def fit(self, model: nn.Module, loader: DataLoader[Any]) -> nn.Module:
        """Return the model, trained for all epochs."""
        for _ in self.epochs(model, loader):
            pass
        return model

    def epochs(self, model: nn.Module, loader: Iterable[Any]) -> Iterator[nn.Module]:
        """Train the model, and yield it after each epoch."""
        optimizer = torch.optim.SGD(model.parameters(), lr=self.size.rate, momentum=0.9)
        for _ in range(self.size.epochs):
            model.train()
            for inputs, targets in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            yield model

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """Return a copy with its statistics measured anew on the inputs that are looked at."""
        return bnkit.recalibrate(model, self.inputs(), progress=False)

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the test images in percent, in eval mode."""
        examples = self.data.test
        with evaluating(model):
            parts = zip(examples.inputs.split(500), examples.targets.split(500), strict=True)
            return 100 * accuracy(model, parts)


@dataclass(frozen=True)
class Planted:
    """A network with a fault, one without it, and what is done about the fault.

    `healthy` is trained on the same data from the same seed. `batches` are those of the diagnosis,
    `fix` is given the diagnosis and the faulty network; `again` makes the second diagnosis, by
    default of the same mini-batches. `recalibrated` measures the statistics anew and changes
    nothing else.
    """

    faulty: nn.Module
    healthy: nn.Module
    batches: Iterable[Any]
    score: Callable[[nn.Module], float]
    recalibrated: Callable[[nn.Module], nn.Module]
    fix: Callable[[Diagnosis, nn.Module], nn.Module] = Diagnosis.fixed
    again: Callable[[nn.Module], Diagnosis] | None = None


@dataclass(frozen=True)
class Fault:
    """One of the five: how it is planted, and the rule that is to find it."""

    title: str
    rule: str
    plant: Callable[[Task], Planted]


def weight_average(task: Task) -> Planted:
    """Average the weights over the ends of the epochs, and leave the buffers of the first one."""
    loader = task.loader()
    epochs = task.epochs(task.network(), loader)
    average = copy.deepcopy(next(epochs))
    for count, model in enumerate(epochs, 2):
        for mean, new in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(new.data, 1 / count)
    healthy = copy.deepcopy(average)
    update_bn(loader, healthy)  # torch's own fix
    return Planted(average.eval(), healthy.eval(), task.inputs(), task.accuracy, task.recalibrated)


def shared_over_domains(task: Task) -> Planted:
    """Train on mini-batches of photographs and of their negatives in turn."""
    images = {name: list(map(change, task.inputs())) for name, change in DOMAINS.items()}
    faulty, healthy = (
        _fitted_in_turn(task, model)
        for model in (task.network(), bnkit.convert(task.network(), "domains", domains=[*DOMAINS]))
    )

    def recalibrated(model: nn.Module) -> nn.Module:
        fixed = copy.deepcopy(model)
        for name, batches in images.items():
            with bnkit.domain(fixed, name):
                bnkit.recalibrate_(fixed, batches, progress=False)
        return fixed

    def per_domain(_: Diagnosis, model: nn.Module) -> nn.Module:
        return recalibrated(bnkit.convert(model, "domains", domains=[*DOMAINS]))

    def again(model: nn.Module) -> Diagnosis:
        with bnkit.domain(model, "negative"):
            return bnkit.diagnose(model, images["negative"], progress=False)

    alternating = list(chain.from_iterable(zip(*images.values(), strict=True)))
    score = partial(_accuracy_over_domains, task)
    return Planted(
        faulty.eval(), healthy.eval(), alternating, score, recalibrated, per_domain, again
    )


def momentum_of_another_framework(task: Task) -> Planted:
    """Take the default momentum of a framework in which it is the share that is kept."""
    faulty = task.fit(task.network(momentum=0.9), task.loader())
    healthy = task.fit(task.network(momentum=0.1), task.loader())
    return Planted(faulty.eval(), healthy.eval(), task.inputs(), task.accuracy, task.recalibrated)


def momentum_in_small_batches(task: Task) -> Planted:
    """Do the same in small mini-batches, with as many images and steps that are as much smaller."""
    size = task.size
    smaller = replace(
        size,
        batch=size.batch * 16 // 100,
        rate=size.rate * 0.16,
        diagnosed=size.diagnosed * 100 // 16,
    )
    return momentum_of_another_framework(replace(task, size=smaller))


def small_last_batch(task: Task) -> Planted:
    """Train on two images more than whole mini-batches hold."""
    loader = task.loader(more=2)
    faulty = task.fit(task.network(), loader)
    healthy = task.fit(task.network(), task.loader())

    def train_without(*_: object) -> nn.Module:
        return task.fit(task.network(), task.loader(more=2, drop_last=True))

    def again(model: nn.Module) -> Diagnosis:
        whole = task.loader(more=2, drop_last=True)
        return bnkit.diagnose(model.train(), whole, progress=False)

    return Planted(
        faulty.train(), healthy, loader, task.accuracy, task.recalibrated, train_without, again
    )


def dropout_before(task: Task) -> Planted:
    """Drop half of the features before the dense layer with batch norm, not behind it."""
    faulty = task.fit(task.network(before=0.5), task.loader())
    healthy = task.fit(task.network(behind=0.5), task.loader())
    return Planted(faulty.eval(), healthy.eval(), task.inputs(), task.accuracy, task.recalibrated)


FAULTS: dict[str, Fault] = {
    "average": Fault("weights averaged, statistics left", "stale-statistics", weight_average),
    "domains": Fault(
        "one batch norm for two domains", "several-distributions", shared_over_domains
    ),
    "momentum": Fault(
        "momentum of another framework", "momentum-convention", momentum_of_another_framework
    ),
    "small": Fault(
        "the same in mini-batches of 16", "momentum-convention", momentum_in_small_batches
    ),
    "last": Fault("a last mini-batch of two", "noisy-statistics", small_last_batch),
    "dropout": Fault("dropout before batch norm", "dropout-before", dropout_before),
}


def _fitted_in_turn(task: Task, model: nn.Module) -> nn.Module:
    """Return the model, trained on mini-batches of the domains in turn, each told which it is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=task.size.rate, momentum=0.9)
    model.train()
    loader = task.loader()
    for _ in range(task.size.epochs):
        for step, (inputs, targets) in enumerate(loader):
            name = list(DOMAINS)[step % 2]
            with _domain(model, name):
                outputs = model(DOMAINS[name](inputs))
            optimizer.zero_grad()
            F.cross_entropy(outputs, targets).backward()
            optimizer.step()
    return model


def _domain(model: nn.Module, name: str) -> Any:
    knows = any(isinstance(layer, DomainBatchNorm) for layer in model.modules())
    return bnkit.domain(model, name) if knows else nullcontext()


def _accuracy_over_domains(task: Task, model: nn.Module) -> float:
    found = []
    for name, change in DOMAINS.items():
        test = replace(task.data.test, inputs=change(task.data.test.inputs))
        with _domain(model, name):
            found.append(replace(task, data=replace(task.data, test=test)).accuracy(model))
    return sum(found) / len(found)


def measure(fault: Fault, task: Task) -> dict[str, Any]:
    """Return the accuracies of the three networks, what was found, and what is found afterwards."""
    planted = fault.plant(task)
    diagnosis = bnkit.diagnose(planted.faulty, planted.batches, progress=False)
    fixed = planted.fix(diagnosis, planted.faulty)
    once_more = planted.again or (
        lambda model: bnkit.diagnose(model, planted.batches, progress=False)
    )
    healthy = planted.healthy
    networks = planted.faulty, fixed, healthy, planted.recalibrated(healthy)
    only = task.recalibrated(planted.faulty)
    return {
        **{side: round(planted.score(each), 2) for side, each in zip(SIDES, networks, strict=True)},
        "faulty, recalibrated": round(planted.score(only), 2),
        "found": [_plain(finding) for finding in diagnosis.at_least("warning")],
        "afterwards": [_plain(finding) for finding in once_more(fixed).at_least("warning")],
    }


def _plain(finding: Finding) -> dict[str, Any]:
    names = ("rule", "severity", "layers", "measured", "causes")
    return {name: finding.to_json()[name] for name in names} | {"line": str(finding)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = BESIDE_THE_REPOSITORY if BESIDE_THE_REPOSITORY.exists() else None
    parser.add_argument("--data-dir", type=Path, default=beside, help="folder of the data's files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=FAULTS, help="one fault, nothing kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, size, began = load("fashion-mnist", folder=options.data_dir), Size(), time.process_time()
    faults: dict[str, Any] = {}
    for name in [options.only] if options.only else FAULTS:
        faults[name] = []
        for seed in range(options.seeds):
            faults[name].append(measure(FAULTS[name], Task(data, size, seed)))
            shown = {k: v for k, v in faults[name][-1].items() if type(v) is float}
            rules = [[f["rule"], *f["layers"]] for f in faults[name][-1]["found"]]
            print(name, seed, shown, rules, faults[name][-1]["afterwards"], flush=True)
    figures = {
        "environment": environment(),
        "settings": {**asdict(size), "optimizer": "SGD, momentum 0.9", "seeds": options.seeds},
        "minutes of the processor": round((time.process_time() - began) / 60, 1),
        "faults": faults,
    }
    print(table(figures))
    if not options.only:
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        PAGE.write_text(with_figures(PAGE.read_text(), figures))


def with_figures(page: str, figures: dict[str, Any]) -> str:
    """Return the page with the table and the findings in their places.

    A place is what stands between <!-- NAME --> and <!-- end -->.
    """
    texts = {"table": table(figures)}
    texts |= {name: f"```text\n{line(figures, name)}\n```\n" for name in figures["faults"]}

    def place(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{texts[found[1]]}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n(.*?)<!-- end -->", place, page, flags=re.DOTALL)


def table(figures: dict[str, Any]) -> str:
    """Return the Markdown table of test accuracies, in percent: medians over seeds, and ranges."""
    heads = "fault", "rule", "with it", "fixed", "never had it", "that, recalibrated"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, runs in figures["faults"].items():
        fault = FAULTS[name]
        columns = [fault.title, f"`{fault.rule}`", *(spread([r[s] for r in runs]) for s in SIDES)]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def line(figures: dict[str, Any], name: str) -> str:
    """Return what the diagnosis of the first seed says of this fault, the first of its findings."""
    run = figures["faults"][name][0]
    found = next(str(f["line"]) for f in run["found"] if f["rule"] == FAULTS[name].rule)
    return textwrap.fill(found, 96)


def spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
