"""Files that would run code if they were unpickled, handed to every command that takes a file."""

import io
import zipfile

import pytest
import torch
from torch import nn

import bnkit
import hostile
from cli.commands import run

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
"""
COMMANDS = {
    "doctor": "doctor networks:build --checkpoint {}",
    "fold": "fold networks:build --example 8,4 --checkpoint {}",
    "insert": "insert networks:build --data networks:build --checkpoint {}",
    "convert": "convert networks:build renorm --checkpoint {}",
    "standardize": "standardize networks:build --data networks:build --checkpoint {}",
    "remove": "remove networks:build --example 8,4 --checkpoint {}",
}


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """Return the folder that an exploit makes in the current one, which holds a network."""
    (tmp_path / "networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "networks", raising=False)
    return tmp_path / "ran"


def in_a_dictionary(marker):
    """Return a checkpoint in which one of the values is an exploit."""
    file = io.BytesIO()
    torch.save({"0.weight": torch.ones(6, 4), "extra": hostile.Exploit(marker)}, file)
    return file.getvalue()


def old_format(marker):
    """Return a file of torch.save as it was before it wrote archives."""
    file = io.BytesIO()
    torch.save(hostile.Exploit(marker), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def scripted(marker):  # noqa: ARG001  TorchScript pickles nothing of Python's
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(4, 2), torch.ones(1, 4)), file)
    return file.getvalue()


PICKLES = [hostile.pickled, hostile.saved_by_torch, in_a_dictionary, old_format]


@pytest.mark.parametrize("exploit", PICKLES)
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.safetensors"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_is_in_a_checkpoint(command, name, exploit, marker, tmp_path):
    (tmp_path / name).write_bytes(exploit(marker))
    code, stdout, stderr = run(COMMANDS[command].format(name))
    assert (code, stdout) == (2, "")
    assert stderr.startswith("Error: ")
    assert name in stderr
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("content", [*PICKLES, scripted])
def test_load_runs_nothing_either(content, marker, tmp_path):
    (tmp_path / "net.pt").write_bytes(content(marker))
    with pytest.raises(ValueError, match=r"net\.pt"):
        bnkit.load(nn.Linear(4, 2), tmp_path / "net.pt")
    assert not marker.exists()


@pytest.mark.parametrize("exploit", PICKLES)
@pytest.mark.parametrize("name", ["net.pt2", "net.onnx"])
def test_the_doctor_runs_no_file_that_calls_itself_exported(name, exploit, marker, tmp_path):
    if name == "net.onnx":
        pytest.importorskip("onnx", reason="the package onnx is not installed")
    (tmp_path / name).write_bytes(exploit(marker))
    code, stdout, stderr = run(f"doctor {name}")
    assert (code, stdout) == (2, "")
    assert f"`program` is '{name}', which is not a" in stderr
    assert not marker.exists()


@pytest.mark.parametrize("exploit", [hostile.pickled, hostile.saved_by_torch])
def test_the_doctor_reads_the_graph_of_an_archive_and_runs_no_member(exploit, marker, tmp_path):
    members = hostile.program(tmp_path / "net.pt2")

    def change(name, content):
        pickled = "/data/" in name and not name.endswith(".json")
        return exploit(marker) if pickled else hostile.all_weights_pickled(name, content)

    hostile.rewritten(tmp_path / "net.pt2", change)
    code, stdout, _ = run("doctor net.pt2")
    assert code == 0
    assert "exported-batch-norm" in stdout
    assert not marker.exists()
    # Each member of the archive, the graph too.
    for name in members:
        hostile.program(tmp_path / "net.pt2")
        hostile.rewritten(
            tmp_path / "net.pt2", lambda n, c, name=name: exploit(marker) if n == name else c
        )
        assert run("doctor net.pt2")[0] in (0, 2)
        assert not marker.exists()


def test_an_archive_without_a_graph_is_refused_in_a_sentence(marker, tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/data/weights/weight_0", hostile.pickled(marker))
    code, _, stderr = run("doctor net.pt2")
    assert code == 2
    assert "it holds no graph (models/*.json)" in stderr
    assert not marker.exists()
