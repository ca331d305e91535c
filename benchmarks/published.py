"""Run published experiments with and without batch norm, and put their figures beside ours.

    python benchmarks/published.py --data-dir FOLDER [row ...]

Settings and figures: Udacity's batch-norm lesson (its notebook's printed outcomes; one unseeded run
each) and DLology's Keras post (plots only). Trials are kept in bnkit-report/published and resumed;
the figures go to docs/published.json, the table in docs/published.md is made from them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bnkit.lab.comparison import plan_comparison
from bnkit.lab.records import SIDES, TrialResult
from bnkit.lab.settings import Settings
from bnkit.lab.summary import Comparison

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "published.json"
PAGE = ROOT / "docs" / "published.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"

# TensorFlow's decay 0.99 is torch's momentum 0.01; both posts use the defaults of their framework.
UDACITY = {"optimizer": "sgd", "batch_size": 60, "momentum": 0.01, "eps": 1e-3, "seeds": 5}
LONG = {"steps": 50_000, "evaluate_every": 500}
SHORT = {"steps": 2_000, "evaluate_every": 50}


@dataclass(frozen=True)
class Published:
    """One published experiment: its network, its settings, its figures (validation, test; %)."""

    title: str
    network: str
    settings: Settings
    plain: tuple[float, float] | None
    batch_norm: tuple[float, float] | None


def _udacity(rate: float, activation: str, std: float, length: dict[str, int]) -> Settings:
    return Settings(
        learning_rates=[rate], activations=[activation], init=f"normal:{std:g}", **UDACITY, **length
    )


ROWS = {
    "udacity-2": Published(
        "std 0.05, rate 0.01, ReLU, 2,000 steps",
        "mlp",
        _udacity(0.01, "relu", 0.05, SHORT),
        (82.86, 82.62),
        (95.78, 95.25),
    ),
    "udacity-4": Published(
        "std 0.05, rate 1, ReLU, 50,000 steps",
        "mlp",
        _udacity(1.0, "relu", 0.05, LONG),
        (9.58, 9.80),
        (98.44, 98.34),
    ),
    "udacity-7": Published(
        "std 0.05, rate 1, sigmoid, 2,000 steps",
        "mlp",
        _udacity(1.0, "sigmoid", 0.05, SHORT),
        (92.08, 92.27),
        (95.18, 94.63),
    ),
    "udacity-11": Published(
        "std 5, rate 0.01, ReLU, 50,000 steps",
        "mlp",
        _udacity(0.01, "relu", 5.0, LONG),
        (9.58, 9.80),
        (79.46, 79.90),
    ),
    "dlology-2": Published(
        "conv net, Adam, rate 0.01, sigmoid, 3 epochs",
        "dlology",
        Settings(
            learning_rates=[0.01],
            activations=["sigmoid"],
            init="glorot",
            optimizer="adam",
            batch_size=32,
            momentum=0.01,
            eps=1e-3,
            shuffle=False,
            epochs=3,
            evaluate_every=125,
            training_mode_accuracy=True,
            seeds=3,
        ),
        None,
        None,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="row", help=" ".join(ROWS))
    parser.add_argument("--data-dir", type=Path, help="folder of the MNIST files")
    parser.add_argument("--out", type=Path, default=Path("bnkit-report/published"))
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in options.rows:
        figures[name] = measure(name, ROWS[name], options.data_dir, options.out / name)
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(figures) + END + rest.partition(END)[2])
    print(table(figures))


def measure(name: str, row: Published, data_folder: Path | None, out: Path) -> dict[str, Any]:
    """Return our figures for one row: accuracies in percent, seed by seed, and what made them."""
    sweep = plan_comparison(
        row.network, "mnist", settings=row.settings, data_folder=data_folder, out=out, command=name
    )
    comparison = sweep.run()
    return {
        "settings": dict(comparison.settings),
        "environment": dict(comparison.environment),
        **{side: [_figures(trial) for trial in _trials(comparison, side)] for side in SIDES},
    }


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of published and own figures, in percent."""
    columns = (
        "experiment",
        "side",
        "published: validation, test",
        "ours: validation, median (range)",
        "ours: test, median (range)",
        "trains",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in ROWS.items():
        for side, published in zip(SIDES, (row.plain, row.batch_norm), strict=True):
            if name in figures:
                lines.append(_line(name, row.title, side, published, figures[name][side]))
    return "\n".join(lines) + "\n"


def _line(
    name: str,
    title: str,
    side: str,
    published: tuple[float, float] | None,
    runs: list[dict[str, Any]],
) -> str:
    theirs = "plot only" if published is None else "{:.2f}, {:.2f}".format(*published)
    validation, test = (_spread([run[part] for run in runs]) for part in ("validation", "test"))
    trained = sum(run["succeeds"] for run in runs)
    return (
        f"| {name}: {title} | {side} | {theirs} | {validation} | {test} | {trained}/{len(runs)} |"
    )


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _trials(comparison: Comparison, side: str) -> list[TrialResult]:
    return [trial for trial in comparison.trials if trial.side == side]


def _figures(trial: TrialResult) -> dict[str, Any]:
    return {
        "seed": trial.seed,
        "outcome": trial.outcome,
        "succeeds": trial.succeeds(0.9),
        "validation": round(100 * trial.accuracy, 2),
        "test": round(100 * trial.test_accuracy, 2),
        "best validation": round(100 * max(trial.curve.accuracy), 2),
        "steps": trial.steps,
        "first step at 90%": trial.curve.first_step_at(0.9),
        "milliseconds per step": round(trial.milliseconds_per_step, 3),
        "validation in training mode": [
            round(100 * share, 2) for share in trial.curve.training_mode_accuracy[-1:]
        ],
    }


if __name__ == "__main__":
    main()
