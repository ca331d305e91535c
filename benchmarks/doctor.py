"""The doctor as an instrument: what it finds of planted faults, what it says of healthy networks.

    python benchmarks/doctor.py sick --label after            # the sick models of the tests
    python benchmarks/doctor.py troubles --label after        # the programs of public troubles
    python benchmarks/doctor.py healthy --label after         # public networks, a process each

Planted faults are those of the tests, disguised ones too; a fault is found if the rule that is
meant speaks, its layer is right if a finding of that rule names it, and its cause comes first if
the first group of the diagnosis is of that rule. Public networks
(tests/zoo/guests.py) are fresh: each finding at warning or worse is an alarm. Another checkout of
bnkit is measured in its folder, with its sources in PYTHONPATH; a fault that it cannot be given,
since it has no such layer, is left out and named. The figures go to benchmarks/doctor.json, and
the table made from them into docs/doctor.md.
"""

import argparse
import json
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import bnkit
from bnkit.experiments.provenance import environment

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "doctor.md"
SAMPLES, BATCHES, SECONDS = 8, 2, 240


def sick() -> dict[str, Any]:
    """Return how many of the planted faults are found, at the right layer, as the first cause."""
    sys.path.insert(0, str(ROOT / "tests"))
    cases = [case for name in ("structure", "state") for case in _planted(name)]
    measured = {str(case): _measured(case) for case in cases}
    found = [each for each in measured.values() if each is not None]
    serious = [each for each in found if each["severity"] != "info"]
    return {
        "faults": len(found),
        "found": sum(each["found"] for each in found),
        "right layer": sum(each["layer"] for each in found),
        "warnings and errors": len(serious),
        "right cause first": sum(each["first"] for each in serious),
        "missed": [each["fault"] for each in found if not each["found"]],
        "another cause first": [each["fault"] for each in serious if not each["first"]],
        "cannot be planted": [fault for fault, each in measured.items() if each is None],
    }


def troubles() -> dict[str, Any]:
    """Return which of the programs of public troubles end without an error."""
    programs = sorted((ROOT / "tests" / "troubles").glob("[0-9]*.py"))
    sys.path.insert(0, str(programs[0].parent))  # as Python does for a program
    wrong = []
    for program in programs:
        try:
            runpy.run_path(str(program), run_name="__main__")
        except Exception as error:  # noqa: BLE001  whatever a wrong answer raises
            wrong.append(f"{program.stem}: {type(error).__name__}")
    return {"situations": len(programs), "right": len(programs) - len(wrong), "wrong": wrong}


def _planted(name: str) -> Iterator[Any]:
    yield from import_module(f"diagnosis.rules.test_{name}").SICK


def _measured(case: Any) -> dict[str, Any] | None:
    torch.manual_seed(0)
    try:
        model, batches = case.build(), case.batches()
    except Exception as error:  # noqa: BLE001  whatever an older checkout lacks
        print(f"{case} is not built: {type(error).__name__}: {error}")
        return None
    layer = case.layers[0] if hasattr(case, "layers") else case.layer
    found: tuple[Any, ...] = ()
    try:
        diagnosis = bnkit.diagnose(model, batches, progress=False)
        found, groups = diagnosis.findings, diagnosis.groups
    except Exception as error:  # noqa: BLE001  a fault on which it fails is not found
        print(f"{case}: {type(error).__name__}: {error}")
        groups = ()
    own = [each for each in found if each.rule == case.rule]
    first = next(iter(groups), None)
    return {
        "fault": str(case),
        "severity": case.severity,
        "found": bool(own),
        "layer": any(layer in each.layers for each in own),
        "first": first is not None and first.first.rule == case.rule,
    }


def healthy(names: list[str]) -> dict[str, Any]:
    """Return the alarms of each public network, a process each; what fails says why."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "one", "--network", name]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=True
            )
            found[name] = json.loads(run.stdout.splitlines()[-1])
        except subprocess.SubprocessError as error:
            found[name] = {"failed": type(error).__name__}
        print(name, found[name], flush=True)
    return summary(found)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return the sums over all networks beside the alarms of each."""
    ran = {name: each for name, each in found.items() if "failed" not in each}
    alarmed = {name: each["alarms"] for name, each in ran.items() if each["alarms"]}
    return {
        "networks": len(ran),
        "batch norms": sum(each["batch norms"] for each in ran.values()),
        "networks with alarms": len(alarmed),
        "alarms": sum(sum(rules.values()) for rules in alarmed.values()),
        "alarmed": alarmed,
        "not measured": {n: each["failed"] for n, each in found.items() if "failed" in each},
    }


def one(name: str) -> dict[str, Any]:
    """Return what is said of one public network at warning or worse: how often each rule speaks."""
    guest = guests()[name]
    torch.manual_seed(0)
    model = guest.build().train()
    batches = [guest.batch(SAMPLES) for _ in range(BATCHES)]
    diagnosis = bnkit.diagnose(model, batches, progress=False)
    rules = [finding.rule for finding in diagnosis.at_least("warning")]
    alarms = {rule: rules.count(rule) for rule in sorted(set(rules))}
    return {"batch norms": diagnosis.batch_norms, "alarms": alarms}


def guests() -> dict[str, Any]:
    """Return the public networks by their names."""
    sys.path.insert(0, str(ROOT / "tests"))
    return import_module("zoo.guests").GUESTS  # type: ignore[no-any-return]


def table(figures: dict[str, Any]) -> str:
    """Return the Markdown table of the figures, a column for each label."""
    labels = [label for label in ("before", "after") if label in figures]
    lines = [f"| | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for title, what, name, of in (
        ("planted faults found", "sick", "found", "faults"),
        ("at the right layer", "sick", "right layer", "faults"),
        ("right cause first", "sick", "right cause first", "warnings and errors"),
        ("public situations told right", "troubles", "right", "situations"),
        ("healthy networks with an alarm", "healthy", "networks with alarms", "networks"),
        ("alarms on them", "healthy", "alarms", "batch norms"),
    ):
        if not all(what in figures[label] for label in labels):
            continue
        cells = [f"{figures[label][what][name]} of {figures[label][what][of]}" for label in labels]
        unit = " (of batch norms)" if of == "batch norms" else ""
        lines.append(f"| {title}{unit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_figures(page: str, figures: dict[str, Any]) -> str:
    """Return the page with the table in its place."""
    place = f"<!-- instrument -->\n{table(figures)}<!-- end -->"
    return re.sub(r"<!-- instrument -->\n.*?<!-- end -->", lambda _: place, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["sick", "troubles", "healthy", "one"])
    parser.add_argument("--label", default="after", choices=["before", "after"])
    parser.add_argument("--network", help="of tests/zoo/guests.py")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.what == "one":
        print(json.dumps(one(options.network)))
        return
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    own = figures.setdefault(options.label, {})
    if options.what == "sick":
        own["sick"] = sick()
    elif options.what == "troubles":
        own["troubles"] = troubles()
    else:
        own["healthy"] = healthy([options.network] if options.network else [*guests()])
    own[f"environment of {options.what}"] = environment()
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(with_figures(PAGE.read_text(), figures))
    print(json.dumps(own, indent=1))


if __name__ == "__main__":
    main()
