import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bnkit.checkpoints import load, read
from bnkit.cli import operation
from bnkit.cli import surgery as command
from bnkit.surgery.verification import SurgeryError
from cli.commands import TESTS, run

OWN = """
import torch
from torch import nn

def seeded(*layers):
    return nn.Sequential(*layers)

def build():
    print("building")
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

def build_normalised():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))

class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 2), nn.Linear(4, 3), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(torch.cat([self.a(x), self.b(x)], 1))

def batches():
    print("loading")
    torch.manual_seed(0)
    return [(torch.randn(20, 4), torch.zeros(20)) for _ in range(3)]

def loaders():
    return batches(), None

def generated():
    yield from batches()

def breaking():
    yield batches()[0]
    raise RuntimeError("the disk is gone")

def dictionaries():
    return [{"input": inputs, "labels": labels} for inputs, labels in batches()]

def tensor():
    return batches()[0][0]

def empty():
    return []
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Code of the user's own in the current folder."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(TESTS)
    import own_networks  # noqa: PLC0415  it has just been written

    return own_networks


# bnkit add


def test_add_prints_the_plan_as_a_table_or_as_json():
    code, stdout, _ = run("add users:build --example 8,4")
    assert code == 0
    assert "normalise 8 features, drop bias" in stdout
    document = json.loads(run("add users:build --example 8,4 --json")[1])
    assert [edit["layer"] for edit in document["edits"]] == ["0"]
    after = run("add users:build --example 8,4 --placement after")[1]
    assert "drop bias" not in after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users:build --example 8,5", "the model fails on `example` of shape (8, 5) in layer '0'"),
        ("users:build --example 8,5", "8,128:30522 --example mask=8,128:bool, or --data brings"),
        ("users:build --example 8,x", "'8,x': pass integers with commas between them"),
        ("users:build --example 8,-4", "--example is '8,-4': pass sizes of at least 1, as in"),
        ("users:build --example 0,4", "--example is '0,4': pass sizes of at least 1, as in"),
        ("users:build --example ''", "--example is '': pass sizes of at least 1, as in"),
        ("users:biuld --example 8,4", "did you mean 'build'?"),
        ("users:cut --example 8,4", "`model` (cut) fails: TypeError: cut() missing 1 required"),
        ("users:loaders --example 8,4", "`model` is a tuple: pass a torch.nn.Module"),
    ],
)
def test_add_answers_wrong_use_in_one_sentence(text, message):
    code, stdout, stderr = run(f"add {text}")
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_add_says_what_it_found_where_nothing_can_be_normalised():
    code, stdout, stderr = run("add torch.nn:Identity --example 8,4")
    assert code == 1
    assert "layer" in stdout
    assert "Nothing was changed" in stderr


def test_add_takes_data_paths_and_a_checkpoint_and_writes_the_twin(own, tmp_path):
    plain = own.build()
    torch.save(plain.state_dict(), "plain.pt")
    code, stdout, _ = run(
        "add own_networks.py:build --data own_networks:dictionaries --where 2 "
        "--checkpoint plain.pt --out twin.safetensors"
    )
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines() if "normalise" in line] == ["2"]
    twin = load(own.build(), tmp_path / "twin.safetensors")
    assert torch.equal(twin[2].weight, plain[2].weight)
    assert isinstance(twin[2].batchnorm, nn.BatchNorm1d)


def test_add_takes_several_inputs_by_name():
    source = "from torch import nn\n\nclass Two(nn.Module):\n"
    source += "    def __init__(self):\n        super().__init__()\n"
    source += "        self.table, self.dense = nn.Embedding(9, 4), nn.Linear(4, 4)\n"
    source += "        self.last = nn.Linear(4, 2)\n"
    source += "    def forward(self, ids, mask):\n"
    source += "        return self.last(self.dense(self.table(ids)).relu() * mask)\n"
    Path("own_two.py").write_text(source)
    code, stdout, _ = run("add own_two:Two --example ids=3,5:9 --example mask=3,5,1:bool")
    assert code == 0
    assert "normalise 4 features" in stdout


def test_a_checkpoint_in_the_place_of_the_network_is_answered_with_the_option():
    code, _, stderr = run("fold trained.pt --example 8,4")
    assert code == 2
    assert "'trained.pt' is a checkpoint, which holds values and no network" in stderr
    assert "--checkpoint trained.pt" in stderr


def test_an_error_of_the_users_code_names_its_file_and_line():
    Path("own_failing.py").write_text("def build():\n    raise RuntimeError('my own bug')\n")
    code, _, stderr = run("fold own_failing:build --example 8,4")
    assert code == 2
    assert "RuntimeError: my own bug (own_failing.py, line 2)" in stderr
    assert "Traceback" not in stderr


def test_traceback_shows_where_an_error_was_raised(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bnkit", "--traceback", "fold"])
    code, _, stderr = run("fold own_networks:nothing --example 8,4")
    assert code == 2
    assert "Traceback (most recent call last)" in stderr
    assert "Error: 'own_networks:nothing'" in stderr


# The verbs that change a network

INSERT = "insert own_networks:build --data own_networks:loaders"
FOLD = "fold own_networks:build_normalised --example 5,4"
REMOVE = "remove own_networks:build_normalised --example 5,4"
VERBS = {
    "insert": (INSERT, "normalise 8 features, absorb bias", "own_batch_norm_at"),
    "fold": (FOLD, "fold into '0' (Linear)", "fold_away"),
    "remove": (REMOVE, "become ChannelAffine(8)", "use_channel_affine"),
    "convert": (
        "convert own_networks:build_normalised gh --option virtual_batch_size=4 --example 8,4",
        "GhostBatchNorm1d",
        "convert_layer",
    ),
}
PROOF = "Same function: error "


@pytest.mark.parametrize(("text", "action", "_operation"), VERBS.values(), ids=VERBS)
def test_a_verb_prints_its_plan_with_the_proof_and_writes_nothing(
    tmp_path, text, action, _operation
):
    code, stdout, stderr = run(text)
    assert code == 0, stderr
    assert action in stdout
    assert PROOF in stdout
    assert "building" not in stdout
    assert [path.name for path in tmp_path.glob("*.*")] == ["own_networks.py"]
    document = json.loads(run(f"{text} --json")[1])
    assert any(action in edit["change"] for edit in document["edits"])
    assert document["proof"]["error"] < 1e-5


def test_a_plan_names_all_layers_that_take_a_batch_norm_in():
    code, stdout, stderr = run("fold own_networks:Joined --example 5,4")
    assert code == 0, stderr
    assert all(part in stdout for part in ("'a'", "'b'", "cat()", PROOF))
    (edit,) = json.loads(run("fold own_networks:Joined --example 5,4 --json")[1])["edits"]
    assert edit["change"] == "fold into 'a' (Linear) and 'b' (Linear)"
    assert edit["why"] == "the layers before it, each for what it brings into cat()"


def keep(network, path):
    """Write the values of a trained network as people do, and return what it computes."""
    torch.manual_seed(3)
    with torch.no_grad():
        network.train()(torch.randn(50, 4))
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter))
    torch.save(network.state_dict(), path)
    return network.eval()(torch.ones(2, 4))


@pytest.mark.parametrize("verb", VERBS)
def test_a_checkpoint_goes_in_and_one_that_computes_the_same_comes_out(own, tmp_path, verb):
    text, _, operation = VERBS[verb]
    build = own.build if verb == "insert" else own.build_normalised
    expected = keep(build(), tmp_path / "in.pt")
    code, stdout, stderr = run(f"{text} --checkpoint in.pt --out new/out.pth")
    assert code == 0, stderr
    assert PROOF in stdout
    assert stderr.endswith("Checkpoint: new/out.pth\n")
    (plan,) = read("new/out.pth").plans
    assert operation in {edit["structure"]["operation"] for edit in plan["edits"]}
    torch.testing.assert_close(load(build(), "new/out.pth").eval()(torch.ones(2, 4)), expected)


def test_a_second_change_follows_the_first(own, tmp_path):
    expected = keep(own.build(), tmp_path / "in.pt")
    first = run(f"{INSERT} --checkpoint in.pt --where 0 --out one.pt")
    second = run(f"{INSERT} --checkpoint one.pt --where 2 --out two.pt")
    assert (first[0], second[0]) == (0, 0)
    assert len(read("two.pt").plans) == 2
    twice = load(own.build(), "two.pt")
    assert [hasattr(layer, "batchnorm") for layer in twice] == [True, False, True, False, False]
    torch.testing.assert_close(twice.eval()(torch.ones(2, 4)), expected)


@pytest.mark.parametrize("data", "loaders batches generated dictionaries tensor".split())
def test_data_are_taken_in_every_form(data):
    code, stdout, stderr = run(f"insert own_networks:build --data own_networks:{data} --json")
    assert code == 0, stderr
    assert json.loads(stdout)["batches"] == (1 if data == "tensor" else 3)
    code, stdout, stderr = run(f"fold own_networks:build_normalised --data own_networks:{data}")
    assert code == 0, stderr
    assert PROOF in stdout


def test_where_chooses_layers_by_their_paths():
    document = json.loads(run(f"{INSERT} --where '[0-1],5*,2' --json")[1])
    assert [edit["layer"] for edit in document["edits"]] == ["0", "2"]
    document = json.loads(run(f"{INSERT} --where 2 --json")[1])
    assert [edit["layer"] for edit in document["edits"]] == ["2"]


GROUP = "convert own_networks:build_normalised group --option num_groups=4"
STANDARDIZE = "standardize own_networks:build --data own_networks:loaders"


@pytest.mark.parametrize("data", ["loaders", "batches"])
def test_layers_that_compute_something_else_are_calibrated_on_all_data(data):
    code, stdout, stderr = run(f"{GROUP} --data own_networks:{data} --json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert [edit["layer"] for edit in document["edits"]] == ["1", "3"]
    assert document["movement"]["batches"] == 3
    assert "proof" not in document


def test_inputs_are_standardised_by_all_data(own):
    code, stdout, stderr = run(f"{STANDARDIZE} --out out.pt --json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert document["edits"][0]["change"] == "standardise 'input': 4 features on axis 1"
    inputs = torch.cat([inputs for inputs, _ in own.batches()])
    state = load(own.build(), "out.pt").state_dict()
    torch.testing.assert_close(state["standardize.mean"], inputs.mean(0))
    torch.testing.assert_close(state["standardize.std"], inputs.std(0, correction=0))


def test_the_axis_and_the_argument_are_taken():
    code, _, stderr = run(f"{STANDARDIZE} --channel-axis 5")
    assert code == 2
    assert "channel_axis" in stderr
    code, _, stderr = run(f"{STANDARDIZE} --argument picture")
    assert code == 2
    assert "picture" in stderr


def test_the_placement_is_taken():
    stdout = run(f"{INSERT} --placement after")[1]
    assert "absorb bias" not in stdout
    assert "normalise 8 features" in stdout


# What is refused

NOTHING = [
    ("fold own_networks:build --example 5,4", "Nothing to change"),
    ("insert own_networks:build_normalised --data own_networks:loaders", "left alone"),
    (f"{FOLD} --where 3", "left alone"),
]


@pytest.mark.parametrize(("text", "plan"), NOTHING)
def test_where_nothing_can_be_done_the_plan_says_so_and_no_file_is_written(tmp_path, text, plan):
    code, stdout, stderr = run(f"{text} --out out.pt")
    assert code == 1
    assert plan in stdout
    assert "Nothing was changed, and no file is written." in stderr
    assert not (tmp_path / "out.pt").exists()


def test_a_promise_that_is_not_kept_is_no_wrong_use(tmp_path, monkeypatch):
    def broken(*_arguments, **_options):
        raise SurgeryError("the changed model does not compute the same")

    monkeypatch.setattr("bnkit.surgery.plan_folding", broken)
    code, stdout, stderr = run(f"{FOLD} --out out.pt")
    assert (code, stdout) == (1, "")
    assert stderr.strip() == "Error: the changed model does not compute the same"
    assert not (tmp_path / "out.pt").exists()


def test_the_tolerance_is_taken():
    code, stdout, stderr = run(f"{INSERT} --tolerance 1e-12")
    assert (code, stdout) == (1, "")
    assert "at most 1e-12 is allowed" in stderr


WRONG = {
    "no data": ("insert own_networks:build", "--data is missing: give the function that returns"),
    "no inputs": ("fold own_networks:build", "the network is run on one mini-batch: give either"),
    "both inputs": (f"{FOLD} --data own_networks:loaders", "give either its shape, as in --exampl"),
    "no reference": (
        "fold own_networks --example 5,4",
        "'own_networks' is not a reference: write",
    ),
    "no network": ("fold own_networks:batches --example 5,4", "`model` is a list: pass a torch.nn"),
    "no loaders": (f"{INSERT}x", "module 'own_networks' has no 'loadersx'; did you mean 'loaders'"),
    "no mini-batches": (
        "insert own_networks:build --data torch.nn:Identity",
        "'torch.nn:Identity' returned what are not mini-batches: TypeError: `batches` is a ",
    ),
    "a loader that fails": (
        "insert own_networks:build --data own_networks:breaking",
        "reading `data` fails: RuntimeError: the disk is gone",
    ),
    "data without a mini-batch": (
        "insert own_networks:build --data own_networks:empty",
        "`batches` gave no mini-batch: the list is empty; pass at least one",
    ),
    "data of another shape": (
        "insert torch.nn:Identity --data own_networks:loaders --where 5",
        "--where '5' fits no layer: the network has only one",
    ),
    "an example of another shape": (
        "fold own_networks:build_normalised --example 5,7",
        "the model fails on `example` of shape (5, 7) in layer '0'",
    ),
    "calibration without data": (
        f"{GROUP} --example 5,4",
        "--data is missing: to become 'group', layers are calibrated on it",
    ),
    "data that are used up after one pass": (
        f"{GROUP} --data own_networks:generated",
        "used up after one pass, and calibration passes over them once for each layer",
    ),
    "no such kind": ("convert own_networks:build gost --example 5,4", "`to` is 'gost': choose one"),
    "an option of another kind": (
        "convert own_networks:build_normalised ghost --option num_groups=4 --example 5,4",
        "'ghost' has no option `num_groups`: it takes",
    ),
    "statistics without data": ("standardize own_networks:build", "--data is missing: give the f"),
    "no such layer": (f"{INSERT} --where 'fc*'", "--where 'fc*' fits no layer: the paths are 0, 1"),
    "no such placement": (
        f"{INSERT} --placement inside",
        "unknown placement 'inside': choose from",
    ),
    "no checkpoint": (f"{FOLD} --checkpoint nowhere.pt", "there is no checkpoint nowhere.pt"),
    "a suffix to read": (
        f"{FOLD} --checkpoint a.h5",
        "the suffix of a.h5 is '.h5': a checkpoint",
    ),
    "a suffix to write": (f"{FOLD} --out a.bin", "the suffix of a.bin is '.bin': a checkpoint is"),
    "a folder to write": (f"{INSERT} --out own_networks.py/a.pt", "own_networks.py/a.pt cannot be"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_answered_in_one_sentence(text, message):
    code, _, stderr = run(text)
    sentences = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == 2
    assert message in sentences[0]
    assert len(sentences) == 1
    assert "Traceback" not in stderr


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "in.pt")
    code, stdout, stderr = run(f"{FOLD} --checkpoint in.pt")
    assert (code, stdout) == (2, "")
    assert "in.pt does not fit the model (Sequential): it lacks '0.weight', '0.bias'" in stderr


def test_long_lists_of_layers_are_cut():
    network = nn.Sequential(*(nn.Identity() for _ in range(11)))
    subject = operation.Operation(network, (), None, None)
    with pytest.raises(ValueError, match=r"the paths are 0, 1, 2, 3, 4, 5, 6, 7 and 3 more$"):
        subject.where("fc")


def test_every_verb_takes_the_options_that_all_share():
    for verb in VERBS:
        shared = {"model", "data", "checkpoint", "where", "tolerance", "out", "as_json"}
        assert shared <= set(inspect.signature(getattr(command, verb)).parameters)


@pytest.mark.parametrize("verb", ["fold", "remove", "add"])
def test_short_memory_is_answered_in_one_sentence(tmp_path, verb):
    (tmp_path / "large.py").write_text(
        "import torch\n"
        "class Large(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.empty(2**50)\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.BatchNorm1d(4), Large())\n"
    )
    code, stdout, stderr = run(f"{verb} large:build --example 2,4")
    assert (code, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("Error: memory is too short (the model fails on `ex")
    assert stderr.endswith("smaller mini-batches; the model is as it was\n")
