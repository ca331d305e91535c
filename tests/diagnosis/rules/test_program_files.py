"""Files of torch.export.save: only their graph is read, so nothing in them runs."""

import zipfile

import pytest
import torch
from torch import nn

import bnkit
import hostile
from bnkit.diagnosis import diagnose_export
from bnkit.diagnosis.rules import programs

# torch warns of itself while it copies a program.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def convolutions(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


class Residual(nn.Module):
    """The convolution's output is read by the batch norm and by the sum."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "bn": nn.BatchNorm2d(3)})

    def forward(self, x):
        y = self.body["conv"](x)
        return self.body["bn"](y) + y


@pytest.mark.parametrize("decompose", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("training", [False, True], ids=["in eval mode", "in training mode"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: convolutions(nn.BatchNorm2d(4), nn.ReLU()),
        lambda: convolutions(nn.Tanh(), nn.BatchNorm2d(4)),
        lambda: convolutions(nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: convolutions(bnkit.BatchNorm2d(4, activation="relu"), nn.BatchNorm2d(4)),
        lambda: convolutions(nn.ReLU()),
        Residual,
    ],
    ids=["fed", "not fed", "without statistics", "two", "none", "read twice"],
)
def test_a_file_says_what_the_program_says(build, training, decompose, tmp_path):
    program = torch.export.export(build().train(training), (torch.ones(2, 3, 6, 6),))
    program = program.run_decompositions() if decompose else program
    torch.export.save(program, tmp_path / "net.pt2")
    in_memory, in_file = diagnose_export(program), diagnose_export(tmp_path / "net.pt2")
    assert [f.to_json() for f in in_file] == [f.to_json() for f in in_memory]


def test_a_file_of_an_older_torch_is_read(tmp_path):
    """Until 2.7 the graph was a member of its own, beside pickles."""
    hostile.program(tmp_path / "new.pt2", training=True)
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as old:
        old.writestr("version", "8.14")
        old.writestr("serialized_exported_program.json", hostile.graph_in(tmp_path / "new.pt2"))
        for name in ("state_dict", "constants", "example_inputs"):
            old.writestr(f"serialized_{name}.pt", hostile.saved_by_torch(tmp_path / "ran"))
    (finding,) = diagnose_export(tmp_path / "old.pt2")
    assert (finding.severity, finding.layers) == ("error", ("1",))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("exploit", [hostile.pickled, hostile.saved_by_torch])
def test_no_pickle_in_a_file_is_read(exploit, tmp_path):
    path, marker = tmp_path / "net.pt2", tmp_path / "ran"
    members = hostile.program(path)
    pickles = [n for n in members if "/data/" in n and not n.endswith(".json")]
    assert any("sample_inputs" in name for name in pickles)
    assert any("weights" in name for name in pickles)

    def change(name, content):
        return exploit(marker) if name in pickles else hostile.all_weights_pickled(name, content)

    hostile.rewritten(path, change)
    (finding,) = diagnose_export(path)
    assert finding.severity == "info"
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011  what torch raises; it has run by then
        torch.export.load(path)
    assert marker.exists()  # so the file is one that would run


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: None if "/models/" in name else content,
        lambda name, content: content[:-9] if "/models/" in name else content,
        lambda name, content: b"[]" if "/models/" in name else content,
        lambda name, content: b'{"graph_module": 3}' if "/models/" in name else content,
        lambda name, content: b"[" * 200_000 if "/models/" in name else content,
        lambda name, content: b"\xff\xfe" if "/models/" in name else content,
        lambda name, content: hostile.pickled("ran") if "/models/" in name else content,
    ],
    ids=["no graph", "cut", "a list", "another form", "too deep", "no text", "a pickle"],
)
def test_a_damaged_graph_is_refused_in_a_sentence(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile.program(tmp_path / "net.pt2")
    hostile.rewritten(tmp_path / "net.pt2", change)
    with pytest.raises(ValueError, match=r"'.*net\.pt2', which is not a file of torch.export.sa"):
        diagnose_export(tmp_path / "net.pt2")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused_in_a_sentence(share, tmp_path):
    path = tmp_path / "net.pt2"
    hostile.program(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"which is not a file of torch.export.save"):
        diagnose_export(path)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_LARGEST", 10**6)
    with zipfile.ZipFile(tmp_path / "net.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", b" " * 10**8)
    with pytest.raises(ValueError, match=r"its graph has more than 1,000,000 bytes"):
        diagnose_export(tmp_path / "net.pt2")


def test_many_small_graphs_are_bounded_together(tmp_path, monkeypatch):
    hostile.program(tmp_path / "one.pt2")
    graph = hostile.graph_in(tmp_path / "one.pt2")
    monkeypatch.setattr(programs, "_LARGEST", 2 * len(graph))
    for copies in (2, 3):
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as many:
            for index in range(copies):
                many.writestr(f"net/models/{index}.json", graph)
        if copies == 2:
            assert len(diagnose_export(tmp_path / "net.pt2").findings) == 1
        else:
            with pytest.raises(ValueError, match=r"its graph has more than"):
                diagnose_export(tmp_path / "net.pt2")
