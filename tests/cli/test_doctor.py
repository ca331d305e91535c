import importlib
import json
import re
import shlex
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bnkit
from bnkit import cli
from bnkit.surgery.operations import OPERATIONS

SICK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=0.99), nn.ReLU(), nn.Linear(6, 2)
    )

def twice():
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(6, momentum=0.99), nn.BatchNorm1d(6)
    network = nn.Sequential(nn.Linear(4, 6, bias=False), *norms, nn.ReLU(), nn.Linear(6, 2))
    return network.eval()  # no fix takes a batch norm out of a network that trains

def well():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

def loaders():
    torch.manual_seed(1)
    return [torch.randn(16, 4) for _ in range(4)]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_networks(tmp_path, monkeypatch):
    (tmp_path / "patients.py").write_text(SICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "patients", raising=False)


def run(text):
    done = CliRunner().invoke(cli.app, ["doctor", *shlex.split(text)])
    return done.exit_code, done.stdout, done.stderr


def test_a_warning_is_in_the_table_and_in_the_exit_code():
    code, stdout, _ = run("patients:build --example 8,4")
    assert code == 1
    assert "momentum-convention" in stdout


def test_a_healthy_network_has_exit_code_0():
    code, _, stderr = run("patients:well --data patients:loaders")
    assert (code, stderr) == (0, "")


def test_the_bar_and_what_is_skipped_decide_on_the_exit_code():
    assert run("patients:build --example 8,4 --fail-on error")[0] == 0
    assert run("patients:build --example 8,4 --skip momentum-convention")[0] == 0
    assert run("patients:build --example 8,4 --skip momentum-conv:*")[0] == 0
    assert run("patients:well --example 8,4 --fail-on info")[0] == 1


def test_json_and_sarif_are_for_machines():
    findings = json.loads(run("patients:build --example 8,4 --json")[1])["findings"]
    assert "momentum-convention" in {finding["rule"] for finding in findings}
    log = json.loads(run("patients:build --example 8,4 --sarif")[1])
    assert log["version"] == "2.1.0"
    assert "momentum-convention" in {result["ruleId"] for result in log["runs"][0]["results"]}


def restored(build, path):
    patients = importlib.import_module("patients")
    return bnkit.load(getattr(patients, build)(), path)


def test_a_mended_network_is_written_loads_again_and_is_found_well():
    code, _, stderr = run("patients:build --example 8,4 --fix mended.safetensors")
    assert code == 1
    assert stderr.endswith("Checkpoint: mended.safetensors\n")
    assert restored("build", "mended.safetensors")[1].momentum == 0.01
    again = "patients:build --example 8,4 --checkpoint mended.safetensors"
    assert run(again)[0] == 0


def test_changes_of_the_structure_are_in_the_file_also_after_others():
    # Two batch norms in a row become one; then that one, of the file, gets torch's momentum.
    skipped = "--skip momentum-convention"
    assert run(f"patients:twice --example 8,4 {skipped} --fix one.safetensors")[0] == 1
    assert isinstance(restored("twice", "one.safetensors")[2], nn.Identity)
    second = "patients:twice --example 8,4 --checkpoint one.safetensors --fix both.safetensors"
    assert run(second)[0] == 1
    network = restored("twice", "both.safetensors")
    assert isinstance(network[2], nn.Identity)
    assert network[1].momentum == 0.01


def test_a_mend_that_could_not_be_loaded_again_is_not_written(monkeypatch, tmp_path):
    monkeypatch.delitem(OPERATIONS, "set_numbers")
    code, _, stderr = run("patients:build --example 8,4 --fix mended.safetensors")
    assert code == 2
    assert "'set_numbers'" in stderr
    assert not (tmp_path / "mended.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patients:build --fail-on fatal", "fatal"),
        ("patients:build --html sick.pdf", "give the name of a file that ends in .html"),
        ("patients:build --json --sarif", "--json and --sarif both ask for stdout: leave one out"),
        ("patients:build --skip no-such-rule", "no-such-rule"),
        ("patients:build --fix mended.zip", "mended.zip"),
    ],
)
def test_wrong_use_is_answered_in_one_sentence(text, message):
    code, stdout, stderr = run(text)
    assert (code, stdout) == (2, "")
    assert message in stderr


@pytest.mark.parametrize(("training", "code"), [(True, 1), (False, 0)])
def test_an_exported_program_is_read_from_its_file(training, code):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).train(training)
    torch.export.save(torch.export.export(model, (torch.ones(8, 4),)), "net.pt2")
    found = run("net.pt2 --json")
    assert found[0] == code
    (finding,) = json.loads(found[1])["findings"]
    assert finding["rule"] == "exported-batch-norm"
    assert finding["severity"] == ("error" if training else "info")


def test_an_exported_program_is_not_run():
    code, _, stderr = run("net.onnx --example 8,4 --fix out.safetensors")
    assert code == 2
    assert "and not run: leave out --example, --fix" in stderr


def test_nothing_that_is_asked_of_an_exported_program_is_left_undone_in_silence():
    code, _, stderr = run("net.onnx --key ema --skip exported-batch-norm")
    assert code == 2
    assert "read by one rule, and not run: leave out --key, --skip" in stderr


@pytest.mark.parametrize("name", ["nowhere.onnx", "nowhere.pt2"])
def test_an_exported_program_that_is_not_there_is_wrong_use(name):
    code, _, stderr = run(name)
    assert (code, stderr) == (2, f"Error: `program` is '{name}', and there is no such file\n")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_that_torch_did_not_export_is_wrong_use(zipped):
    with zipfile.ZipFile("net.pt2", "w") as archive:  # such as a checkpoint
        archive.writestr("weights", "1")
    if not zipped:
        Path("net.pt2").write_text("torch")
    code, stdout, stderr = run("net.pt2")
    assert (code, stdout) == (2, "")
    assert "`program` is 'net.pt2', which is not a file of torch.export.save" in stderr


def test_a_lacking_package_for_onnx_is_told_in_a_sentence(monkeypatch):
    Path("net.onnx").write_text("")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, stderr = run("net.onnx")
    assert code == 2
    assert 'needs onnx, which is not installed: pip install "bnkit[onnx]"' in stderr


def test_what_needs_no_mending_is_found_well_and_not_written(tmp_path):
    code, stdout, stderr = run("patients:well --data patients:loaders --fix mended.safetensors")
    assert code == 0
    assert "in Sequential with 1 batch norm layer" in stdout
    assert "mended.safetensors was not written" in stderr
    assert not (tmp_path / "mended.safetensors").exists()


def test_sarif_says_in_which_line_of_which_file_the_network_is_made():
    log = json.loads(run("patients:build --example 8,4 --sarif")[1])
    (place,) = log["runs"][0]["results"][0]["locations"]
    line = SICK.splitlines().index("def build():") + 1
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "patients.py"},
        "region": {"startLine": line},
    }
    assert place["logicalLocations"] == [{"fullyQualifiedName": "Sequential.1"}]


def test_sarif_of_an_exported_program_names_its_file():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    torch.export.save(torch.export.export(model, (torch.ones(8, 4),)), "net.pt2")
    (result,) = json.loads(run("net.pt2 --sarif")[1])["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert (uri, result["ruleId"], result["level"]) == ("net.pt2", "exported-batch-norm", "note")


def test_the_format_for_github_is_the_table_and_a_command_a_finding():
    code, stdout, _ = run("patients:build --example 8,4 --format github")
    commands = [line for line in stdout.splitlines() if line.startswith("::")]
    assert code == 1
    assert "severity" in stdout
    assert all(re.match(r"::(error|warning|notice) file=.*,line=\d+,title=", c) for c in commands)
    assert any(",title=bnkit%3A " in command for command in commands)
