"""The matrix: every guest through every verb, with the error, the reason or the fault of each cell.

`python tests/zoo/matrix.py run RESULTS` runs the cells that RESULTS, a file with lines of JSON,
does not hold yet: one network a process, each within a time limit, so that it can be interrupted
and resumed. `--verbs fold convert` runs these cells only, and again. `page RESULTS` writes the
tables of docs/models.md. `one NAME` prints the cells of one network.
"""

import argparse
import collections
import contextlib
import copy
import importlib.metadata
import json
import multiprocessing
import re
import sys
import tempfile
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import torch
import torch.fx

import bnkit
from bnkit.dataflow import as_call
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.roles import is_batch_norm

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo.guests import GUESTS

LIMIT = 240  # seconds for one network
RIGHT = {torch.float32: 1e-3, torch.float64: 1e-9}  # what rounding leaves of an exact change
KINDS = {
    "bnkit": {},
    "torch": {},
    "frozen": {},
    "ghost": {"virtual_batch_size": 1_000_000},
    "renorm": {},
    "group": {},
}
PACKAGES = ("torch", "torchvision", "timm", "transformers", "segmentation-models-pytorch")


# --- one network


def run_guest(name, verbs):
    """Return the cells of one network by verb; each has a `state` and what was seen."""
    guest = GUESTS[name]
    torch.manual_seed(0)
    fresh = guest.build()
    example = guest.batch(2)
    fresh = fresh[0] if isinstance(fresh, tuple) else fresh
    model = with_random_state(copy.deepcopy(fresh)).eval()
    cells = {"batch norms": sum(map(is_batch_norm, model.modules()))}
    for verb in verbs:
        cell, begun = (CELLS | EXPORTERS)[verb], time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the libraries
                found = cell(fresh if verb == "diagnose" else model, example)
        except ValueError as error:
            found = {"state": "refused", "why": str(error)[:300]}
        except Exception as error:  # noqa: BLE001  a cell that crashes is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            found = {"state": "fault", "why": f"{type(error).__name__}: {error} ({where})"[:300]}
        found["seconds"] = round(time.process_time() - begun, 1)
        cells[verb] = found
    return cells


def with_random_state(model):
    """Give all batch norms of `model` weights, biases and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    ends = {"weight": (0.8, 1.2), "bias": (-0.1, 0.1)}
    ends |= {"running_mean": (-0.1, 0.1), "running_var": (0.6, 1.4)}
    for layer in model.modules():
        for name, (low, high) in ends.items() if is_batch_norm(layer) else ():
            tensor = getattr(layer, name, None)
            if tensor is not None:
                with torch.no_grad():
                    random = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(low + (high - low) * random)
    return model


def outputs(model, example):
    args, kwargs = as_call(example)
    torch.manual_seed(0)
    with torch.no_grad():
        return [t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point()]


def error_between(before, after):
    """Return max|a − b| / max|a| over all outputs, infinite where their shapes differ."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.numel()]
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs),
        default=0.0,
    )


def same(model, changed, example, **seen):
    """Return the cell of a change that keeps the function: its error, by runs of our own."""
    before = outputs(model, example)
    error = error_between(before, outputs(changed.eval(), example))
    if error <= RIGHT[torch.float32]:
        return {"state": "right", "error": error, **seen}
    # Such as a detector's choice among scores that are almost equal.
    own = error_between(before, outputs(model, replace_tensors(example, _nudged)))
    state = "rounding" if own >= error / 2 else "fault"
    return {"state": state, "error": error, "of rounding": own, **seen}


def _nudged(tensor):
    return tensor * (1 + 1e-7) if tensor.is_floating_point() else tensor


def reasons(plan):
    """Return why layers were left alone, each with how many and a first one."""
    counted = {}
    for left in plan.left_alone:
        words = re.sub(r"( in)? ?'[^']*'", "", left.why)  # without the names of layers
        counted.setdefault(words[:160], []).append(left.layer)
    return {why: [len(layers), layers[0]] for why, layers in counted.items()}


def planned(model, example, planner, *more, **options):
    plan = planner(model, example, *more, **options)
    seen = {"edits": len(plan.edits), "left": reasons(plan)}
    if not plan.edits:
        return {"state": "left alone", **seen}
    if plan.proof is not None:
        seen["in float64"] = plan.proof.error_in_float64
    return same(model, plan.apply(model), example, **seen)


def folds(model, example):
    return {
        **planned(model, example, bnkit.surgery.plan_folding),
        "by torch.fx": folded_by_fx(model),
    }


def folded_by_fx(model):
    """Return how many batch norms torch.fx's fusion takes out, None where it does not trace."""
    # Here: torch imports TorchScript with it, which warns that it is deprecated.
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    try:
        before = torch.fx.symbolic_trace(copy.deepcopy(model).eval())
        after = fuse(copy.deepcopy(model).eval())
    except Exception:  # noqa: BLE001  most networks are not traced
        return None
    return called_in(before) - called_in(after)


def called_in(traced):
    """Return how many batch norms the graph of a traced network calls."""
    called = (node.target for node in traced.graph.nodes if node.op == "call_module")
    return sum(is_batch_norm(traced.get_submodule(path)) for path in called)


def removes(model, example):
    return planned(model, example, bnkit.surgery.plan_removal)


def accelerates(model, example):
    return planned(model, example, bnkit.surgery.plan_acceleration)


def adds(model, example):
    plan = bnkit.surgery.plan_addition(model, example)
    seen = {"edits": len(plan.edits), "left": reasons(plan)}
    if not plan.edits:
        return {"state": "left alone", **seen}
    return {"state": "right", **seen, **trains(plan.apply(model), example)}


def trains(model, example):
    args, kwargs = as_call(example)
    try:
        model.train()(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  such as one value per channel, or no targets
        return {"training": f"{type(error).__name__}: {error}"[:200]}
    return {"training": "runs"}


def inserts(model, example):
    plan = bnkit.surgery.plan_insertion(model, [example], inputs=as_call)
    seen = {"edits": len(plan.edits), "left": reasons(plan)}
    if not plan.edits:
        return {"state": "left alone", **seen}
    seen["in float64"] = plan.proof.error_in_float64
    return same(model, plan.apply(model), example, **seen)


def converts(model, example):
    found = {}
    for kind, options in KINDS.items():
        given = [example] if kind == "group" else example
        inputs = {"inputs": as_call} if kind == "group" else {}
        try:
            plan = bnkit.surgery.plan_conversion(model, kind, given, **inputs, **options)
        except ValueError as error:
            found[kind] = {"state": "refused", "why": str(error)[:200]}
            continue
        seen = {"edits": len(plan.edits), "left": reasons(plan)}
        changed = plan.apply(model)
        if kind == "group":
            found[kind] = {"state": "right" if plan.edits else "left alone", **seen}
        else:
            found[kind] = same(model, changed, example, **seen)
    worst = max((cell["state"] for cell in found.values()), key=ORDER.index)
    errors = [cell["error"] for cell in found.values() if "error" in cell]
    return {"state": worst, "kinds": found, "error": max(errors, default=None)}


ORDER = ["right", "left alone", "rounding", "refused", "fault"]


def recalibrates(model, example):
    """Compare the statistics with those of hooks of our own, all in float64."""
    wide = copy.deepcopy(model).double()
    batches = [replace_tensors(example, _wide), replace_tensors(example, _moved)]
    plan = bnkit.recalibration.plan_recalibration(wide, batches, inputs=as_call, progress=False)
    layers = {shift.layer for shift in plan.layers}
    seen, counts = truth(wide, layers, batches)
    worst = 0.0
    for path, (mean, variance) in seen.items():
        new = plan.new[path]
        scale = variance.sqrt() + 1e-12
        worst = max(worst, float(((new.mean - mean).abs() / scale).max()))
        worst = max(worst, float(((new.variance - variance).abs() / (variance + 1e-12)).max()))
    seen = {"layers": len(layers), "left": sorted(set(plan.left_alone.values()))}
    state = "right" if worst <= 1e-6 else "fault"
    return {"state": state, "error": worst, **seen, "calls": max(counts.values())}


def truth(model, layers, batches):
    """Return mean and unbiased variance of the inputs of layers that normalise as in training."""
    inputs, counts = {path: [] for path in layers}, dict.fromkeys(layers, 0)
    copied = copy.deepcopy(model).eval()
    for path in layers:
        layer = copied.get_submodule(path)

        def note(_module, args, kwargs, path=path):
            x = args[0] if args else next(iter(kwargs.values()))
            inputs[path].append(x.detach().movedim(1, 0).flatten(1))
            counts[path] += 1

        layer.register_forward_pre_hook(note, with_kwargs=True)
        layer.train()
    for batch in batches:
        outputs(copied, batch)
    pooled = {path: torch.cat(parts, 1) for path, parts in inputs.items()}
    return {path: (x.mean(1), x.var(1)) for path, x in pooled.items()}, counts


def _wide(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def _moved(tensor):
    return 1.5 * tensor.double() + 0.25 if tensor.is_floating_point() else tensor


def explains(model, example):
    gap = bnkit.explain_gap(model, example, inputs=as_call)
    state = "right" if gap.layers else "left alone"
    return {"state": state, "layers": len(gap.layers), "diverging": len(gap.diverging)}


def diagnoses(model, example):
    diagnosis = bnkit.diagnose(copy.deepcopy(model).train(), [example], inputs=as_call)
    found = {}
    for finding in diagnosis.findings:
        found.setdefault(f"{finding.severity} {finding.rule}", []).append(list(finding.layers)[:2])
    worst = diagnosis.findings[0].severity if diagnosis.findings else None
    not_run = [str(why)[:160] for why in diagnosis.not_run]
    state = "warned" if worst in ("warning", "error") else "right"
    return {"state": state, "findings": found, "not run": not_run}


def saves(model, example):
    plan = bnkit.surgery.plan_removal(model, example)
    changed = plan.apply(model)
    with tempfile.TemporaryDirectory() as folder:
        path = bnkit.save(changed, f"{folder}/model.safetensors", plan=plan)
        again = bnkit.load(copy.deepcopy(model), path)
    error = error_between(outputs(changed, example), outputs(again.eval(), example))
    return {"state": "right" if error == 0 else "fault", "error": error}


def exports(model, example):
    """Export the model without batch norms, as it is shipped; and the original, to compare."""
    args, kwargs = as_call(example)
    try:
        torch.export.export(copy.deepcopy(model), args, kwargs)
    except Exception as error:  # noqa: BLE001  whatever torch.export raises
        return {"state": "left alone", "why": f"the original fails: {type(error).__name__}"}
    changed = bnkit.surgery.plan_removal(model, example).apply(model).eval()
    program = torch.export.export(changed, args, kwargs).module()
    error = error_between(outputs(changed, example), outputs(program, example))
    return {"state": "right" if error <= 1e-4 else "fault", "error": error}


# --- exporters, beside torch.export


def exported_by(run):
    """Return the cell of an exporter: `run(model, args)` gives what comes out of the export.

    What `remove` returns and what `accelerate` returns are exported. Each may differ from itself as
    the original differs from itself, and by what rounding leaves.
    """

    def cell(model, example):
        args, kwargs = as_call(example)
        if kwargs:
            return {"state": "not run", "why": "the exporters are given positional arguments"}

        def error_of(model):
            model = model.eval()
            return error_between(outputs(model, example), run(copy.deepcopy(model), args))

        try:
            own = error_of(model)
        except Exception as error:  # noqa: BLE001  whatever an exporter raises
            return {"state": "left alone", "why": f"the original fails: {type(error).__name__}"}
        plans = {"removed": bnkit.surgery.plan_removal, "ours": bnkit.surgery.plan_acceleration}
        errors = {name: error_of(plan(model, example).apply(model)) for name, plan in plans.items()}
        bound = RIGHT[torch.float32] + 2 * own
        state = "right" if max(errors.values()) <= bound else "fault"
        return {"state": state, "error": max(errors.values()), "own": own, "errors": errors}

    return cell


def by_onnx(dynamo):
    """Return the run of a model that goes through torch.onnx and is run by onnxruntime."""

    def run(model, args):
        onnxruntime = import_module("onnxruntime")
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            torch.onnx.export(model, args, path, dynamo=dynamo, verbose=False)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            given = [tensor.numpy() for tensor in tensors_in(args)]
            named = {one.name: x for one, x in zip(session.get_inputs(), given, strict=True)}
            found = [torch.as_tensor(x) for x in session.run(None, named)]
        return [tensor for tensor in found if tensor.is_floating_point()]

    return run


def quantised(model, args):
    """Return what int8 of torchao's PT2E makes of the example, on which it is calibrated."""
    pt2e = import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = pt2e.prepare_pt2e(torch.export.export(model, args).module(), quantizer)
        prepared(*args)
        found = pt2e.convert_pt2e(prepared)(*args)
    return [tensor for tensor in tensors_in(found) if tensor.is_floating_point()]


EXPORTERS = {
    "onnx": exported_by(by_onnx(dynamo=True)),
    "onnx by TorchScript": exported_by(by_onnx(dynamo=False)),
    "pt2e": exported_by(quantised),
}
CELLS = {
    "fold": folds,
    "remove": removes,
    "accelerate": accelerates,
    "add": adds,
    "insert": inserts,
    "convert": converts,
    "recalibrate": recalibrates,
    "explain_gap": explains,
    "diagnose": diagnoses,
    "save": saves,
    "export": exports,
}


# --- all networks


def run_all(results, only, verbs, limit):
    """Run cells that `results` does not hold, or `verbs` again, each network in its own process."""
    load_libraries()
    torch.set_num_threads(1)
    done = read(results)
    for name in only or GUESTS:
        known = done.get(name, {"cells": {}})
        missing = verbs or [verb for verb in CELLS if verb not in known["cells"]]
        if not missing or (not verbs and "failure" in known):
            continue
        begun = time.monotonic()
        record = {"model": name, "library": GUESTS[name].library, "date": time.strftime("%F")}
        record |= in_another_process(name, missing, limit)
        record["seconds"] = round(time.monotonic() - begun)
        record["versions"] = versions()
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        states = {verb: c["state"] for verb, c in record["cells"].items() if verb in missing}
        print(name, record["seconds"], "s", record.get("failure", states), flush=True)


def load_libraries():
    """Import what the guests need once, before the processes of the networks are forked."""
    for package in ("torchvision", "timm", "transformers", "segmentation_models_pytorch"):
        import_module(package)


def in_another_process(name, verbs, limit):
    """Return the `cells` of a network, none with a `failure` where its process did not end well."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=lambda: other.send(run_guest(name, verbs)))
    process.start()
    other.close()
    try:
        if not mine.poll(limit):
            return {"cells": {}, "failure": f"not done within {limit:g} s"}
        return {"cells": mine.recv()}
    except EOFError:
        process.join()
        return {"cells": {}, "failure": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def versions():
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def read(results):
    """Return the records by network: of each cell, what its last run gave."""
    records = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        before = records.get(record["model"], {"cells": {}})
        record["cells"] = before["cells"] | record["cells"]
        records[record["model"]] = record
    return records


# --- the page


def page(results):
    """Return the table of all results, one line a network, and what it comes to."""
    head = ["network", "BNs", *CELLS]
    records = read(results).values()
    lines = [head, ["---"] * len(head), *map(row, records)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    came = summary([each["cells"] for each in records if "failure" not in each])
    return f"{table}\n\n{came}\n\n{exported(records)}"


def exported(records):
    """Return the table of the exporters, of the networks for which they were run."""
    head = ["network", *EXPORTERS]
    lines = [head, ["---"] * len(head)]
    for record in records:
        cells = [record["cells"].get(name) for name in EXPORTERS]
        if any(cell is not None and cell["state"] != "not run" for cell in cells):
            lines.append([f"`{record['model']}`", *map(shown_export, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown_export(cell):
    """Return the larger error of both changed networks, beside that of the original."""
    if cell is None or "error" not in cell:
        return "–"
    return f"{cell['error']:.1e} ({cell['own']:.1e})" + " fault" * (cell["state"] == "fault")


def summary(networks):
    """Return how much was changed in all networks together, and with what error."""
    has = sum(cells["batch norms"] for cells in networks)
    taken = [
        f"{sum(cells[verb].get('edits', 0) for cells in networks):,} by {verb}"
        for verb in ("fold", "remove", "accelerate")
    ]
    worst = {
        verb: max(c[verb].get("error") or 0 for c in networks if c[verb]["state"] == "right")
        for verb in ("fold", "recalibrate")
    }
    traced = [cells["fold"] for cells in networks if cells["fold"].get("by torch.fx") is not None]
    fewer = sum(cell.get("edits", 0) < cell["by torch.fx"] for cell in traced)
    states = collections.Counter(cells[verb]["state"] for cells in networks for verb in CELLS)
    return (
        f"{len(networks)} networks with {has:,} batch norms, taken: {', '.join(taken)}. Largest "
        f"error of fold {worst['fold']:.1e}, of recalibrate {worst['recalibrate']:.1e}. torch.fx "
        f"traces {len(traced)} of them, and folds more in {fewer}. Cells: "
        + ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    )


def row(record):
    if "failure" in record:
        return [record["model"], "", record["failure"], *[""] * (len(CELLS) - 1)]
    cells = record["cells"]
    shown = [shown_cell(verb, cells[verb], cells["batch norms"]) for verb in CELLS]
    return [f"`{record['model']}`", str(cells["batch norms"]), *shown]


def shown_cell(verb, cell, batch_norms):
    state = cell["state"]
    if state in ("refused", "rounding", "fault", "not run") and verb != "convert":
        return state
    if verb == "diagnose":
        warned = [key.split()[1] for key in cell["findings"] if not key.startswith("info")]
        return ", ".join(warned) or "quiet"
    if verb == "convert":
        kinds = cell.get("kinds", {})
        return " ".join(f"{kind} {c.get('edits', c['state'])}" for kind, c in kinds.items())
    if verb in ("fold", "remove", "accelerate"):
        return f"{cell['edits']} of {batch_norms}"
    counts = {"add": "edits", "insert": "edits", "recalibrate": "layers", "explain_gap": "layers"}
    if verb in counts:
        return str(cell.get(counts[verb], 0))
    return "yes" if state == "right" else "–"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "one", "page"])
    parser.add_argument("argument", help="the file of results, or the name of a network")
    parser.add_argument("only", nargs="*", help="networks to run in this order, by default all")
    parser.add_argument(
        "--verbs", nargs="+", choices=CELLS | EXPORTERS, help="cells to run, also again"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one network")
    given = parser.parse_args()
    if given.command == "one":
        torch.set_num_threads(1)
        print(json.dumps(run_guest(given.argument, given.verbs or CELLS)))
    elif given.command == "run":
        run_all(Path(given.argument), given.only, given.verbs, given.limit)
    else:
        print(page(Path(given.argument)))


if __name__ == "__main__":
    main()
