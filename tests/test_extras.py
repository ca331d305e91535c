"""The light core: what works beside torch, numpy, rich and safetensors, and what is said else."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from bnkit import extras

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# The packages of all extras are made impossible to import, but for one that rich needs.
BLOCKED = {module for modules in extras.EXTRAS.values() for module in modules} - {"markdown_it"}
PROLOGUE = f"""
import sys, tempfile
import torch
from torch import nn

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import bnkit

def network(*norm):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))

plain, net = network(), network(nn.BatchNorm2d(4))
x = torch.randn(8, 3, 8, 8)
folder = tempfile.mkdtemp()
"""
CORE = """
assert bnkit.add(plain, x)(x).shape == (8, 2)
assert bnkit.insert(plain, [x])(x).shape == (8, 2)
assert len(bnkit.fold(net.eval(), x)) == 5
assert "1" in str(bnkit.surgery.plan_folding(net, x))
bnkit.remove(net, x)
bnkit.standardize(net, [x])
bnkit.convert(net, "ghost", x, virtual_batch_size=4)
bnkit.convert(net, "group", [x], num_groups=2)
bnkit.accelerate(net, x)(x)
bnkit.recalibrate(net, [x, x])
bnkit.adapt(net, [x])
bnkit.parameter_groups(net, weight_decay=0.1)
assert "mode" in str(bnkit.explain_gap(net, [x]))
assert "unfolded" in str(bnkit.diagnose(net, [x]))
assert bnkit.diagnose(net, [x]).to_sarif()["version"] == "2.1.0"
with bnkit.Monitor(net.train(), every=1) as monitor:
    net(x).sum().backward()
assert "Step 0" in str(monitor)
bnkit.save(net, folder + "/net.safetensors")
bnkit.load(net, folder + "/net.safetensors")
bnkit.save(net, folder + "/net.pt")
for layer in (bnkit.BatchNorm1d, bnkit.layers.GhostBatchNorm1d, bnkit.layers.BatchRenorm1d):
    layer(4)(torch.randn(8, 4))
"""
REFUSED = {
    "bnkit.compare('mlp', 'digits')": (
        "a comparison needs loky, pooch, scipy and scikit-learn, which are not installed: "
        'pip install "bnkit[compare]"'
    ),
    "bnkit.write_diagnosis(bnkit.diagnose(net), 'net.html')": (
        "the page of a diagnosis needs altair, jinja2 and vl-convert-python, which are not "
        'installed: pip install "bnkit[report]"'
    ),
    "import bnkit.keras": (
        'bnkit.keras needs keras, which is not installed: pip install "bnkit[keras]"'
    ),
    "bnkit.diagnosis.diagnose_export('net.onnx')": (
        "reading the ONNX file 'net.onnx' needs onnx, which is not installed: "
        'pip install "bnkit[onnx]"'
    ),
}


def run(program, **options):
    command = [sys.executable, "-c", PROLOGUE + program]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def distributions(requirements):
    return {re.match(r"[\w-]+", each)[0] for each in requirements}


def test_the_core_is_torch_numpy_rich_and_safetensors():
    assert distributions(PROJECT["dependencies"]) == {"numpy", "rich", "safetensors", "torch"}


def test_the_extras_are_those_of_the_metadata_and_all_is_all_of_them():
    told = {name: set(modules.values()) for name, modules in extras.EXTRAS.items()}
    assert told == {name: distributions(OPTIONAL[name]) for name in OPTIONAL if name != "all"}
    assert OPTIONAL["all"] == [f"bnkit[{','.join(sorted(told))}]"]


def test_the_verbs_work_with_the_core_alone():
    done = run(CORE)
    assert done.returncode == 0, done.stderr


def test_what_needs_an_extra_says_the_line_that_installs_it(tmp_path):
    asked = f"""
for program in {list(REFUSED)}:
    try:
        exec(program)
    except bnkit.extras.MissingExtraError as error:
        print(error)
"""
    (tmp_path / "net.onnx").touch()
    done = run(asked, cwd=tmp_path)
    assert done.stdout.splitlines() == list(REFUSED.values())
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # nothing is written


def test_the_program_without_its_packages_says_so_in_a_line():
    done = run("from bnkit.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stderr == (
        "Error: the command line of bnkit needs typer, which is not installed: "
        'pip install "bnkit[cli]"\n'
    )


def test_python_m_bnkit_is_the_program():
    command = [sys.executable, "-m", "bnkit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"bnkit \d+\.\d+\.\d+, torch \S+, Python \S+\n", done.stdout)


# What other distributions add

OWN = """
from pathlib import Path

from torch import nn

from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.table import Rule
from bnkit.experiments.networks import Network


def look(evidence):
    yield Finding("too-few-layers", "info", (), {}, "It is small.", "Add layers.")


RULE = Rule("too-few-layers", "The network is small", look, folder=Path(__file__).parent)
NETWORK = Network(lambda *_, **options: nn.Flatten(), "nothing but a flattening")
"""
PAGE = """# The network is small

It cannot learn much.

## Measured
Nothing.

## Severity
Information.

## Fix
Add layers.

## Example
None.
"""
ENTRIES = """
[bnkit.rules]
too-few-layers = own_parts:RULE
[bnkit.networks]
flat = own_parts:NETWORK
"""
ASKED = """
import bnkit
from torch import nn
from bnkit.diagnosis.explanation import manual
from bnkit.experiments.networks import network

found = bnkit.diagnose(nn.Linear(1, 1)).findings
print([finding.rule for finding in found], network("flat").summary)
print("too-few-layers" in manual())
"""


def test_rules_and_networks_of_other_distributions_join_by_entry_points(tmp_path):
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "too-few-layers.md").write_text(PAGE)
    metadata = tmp_path / "own-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRIES)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.splitlines() == ["['too-few-layers'] nothing but a flattening", "True"], (
        done.stderr
    )
