"""How the verbs grow with depth: plan, fold, insert, recalibrate, diagnose and the Monitor.

    python benchmarks/depth.py [--depths 100 200 500 1000 2000] [--keep]

The network is a chain of blocks, Linear(8, 8), batch norm and ReLU, as many as there are batch
norms, so that nearly all time is bnkit's own. Correctness first: each verb must have worked on
every layer. A verb is run once untimed, then timed REPEATS times, of which the fastest counts.
Growth is the exponent p of seconds ~ depth^p between a depth and the one before: 1 is linear, 2
quadratic. One thread, whose own time is taken. With --keep the figures go to benchmarks/depth.json.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bnkit
from bnkit.experiments.provenance import environment
from bnkit.surgery import plan_addition
from bnkit.tables import text_table

DEPTHS, REPEATS, WIDTH = (100, 200, 500, 1000, 2000), 3, 8
FIGURES = Path(__file__).with_suffix(".json")


def chain(depth: int, *, normalised: bool = True) -> nn.Sequential:
    """Return the network, with its batch norms or without."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), *[nn.BatchNorm1d(WIDTH)] * normalised, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2))


def batch() -> Tensor:
    return torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1))


def planning(depth: int) -> Callable[[], int]:
    plain = chain(depth, normalised=False)
    return lambda: len(plan_addition(plain, batch()).edits)


def folding(depth: int) -> Callable[[], int]:
    model = chain(depth).eval()
    return lambda: sum(type(m) is nn.Identity for m in bnkit.fold(model, batch()).modules())


def inserting(depth: int) -> Callable[[], int]:
    plain = chain(depth, normalised=False)
    return lambda: batch_norms_of(bnkit.insert(plain, [batch()], tolerance=math.inf))


def recalibrating(depth: int) -> Callable[[], int]:
    model = chain(depth)
    return lambda: len(bnkit.recalibrate_(model, [batch()] * 2, progress=False).layers)


def diagnosing(depth: int) -> Callable[[], int]:
    model = chain(depth)
    bnkit.recalibrate_(model, [batch()], progress=False)

    def diagnose() -> int:
        bnkit.diagnose(model, [batch()] * 2, progress=False)
        return batch_norms_of(model)

    return diagnose


def monitoring(depth: int) -> Callable[[], int]:
    model = chain(depth)

    def record() -> int:
        with bnkit.Monitor(model, every=1) as monitor:
            model(batch()).sum().backward()
        return len(monitor.records)

    return record


VERBS: dict[str, Callable[[int], Callable[[], int]]] = {
    "plan": planning,
    "fold": folding,
    "insert": inserting,
    "recalibrate": recalibrating,
    "diagnose": diagnosing,
    "Monitor": monitoring,
}


def batch_norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d) for module in model.modules())


def seconds_of(verb: str, depth: int) -> float:
    run = VERBS[verb](depth)
    assert run() == depth, f"{verb} must reach each of the {depth} batch norms"
    taken = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--keep", action="store_true", help=f"write the figures to {FIGURES.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {verb: {n: seconds_of(verb, n) for n in sorted(given.depths)} for verb in given.verbs}
    print(text_table(["verb", *map(str, sorted(given.depths))], map(row_of, found.items())))
    if given.keep:
        figures = {"environment": environment(), "seconds": found}
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


def row_of(item: tuple[str, dict[int, float]]) -> list[str]:
    """Return a row of the table: seconds, and the growth from the depth before."""
    verb, seconds = item
    depths = list(seconds)
    cells = [f"{seconds[depths[0]]:.2f} s"]
    for before, now in itertools.pairwise(depths):
        growth = math.log(seconds[now] / seconds[before]) / math.log(now / before)
        cells.append(f"{seconds[now]:.2f} s, ^{growth:.1f}")
    return [verb, *cells]


if __name__ == "__main__":
    main()
