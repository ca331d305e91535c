"""The commands on Keras models: files that are opened and written, and builders."""

import io
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers as L

import hostile
from bnkit.keras.files import open_model
from bnkit.keras.kernels import array_of
from cli.commands import run
from keras_models import alive, error, sequential

OWN = """
import keras
import numpy as np
from keras import layers as L

def build():
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(8, activation="relu", name="hidden"), L.Dense(3, name="last")]
    )

def normalised():
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(8, name="d"), L.BatchNormalization(momentum=0.1, name="n"),
         L.ReLU(), L.Dense(3, name="last")]
    )

def subclassed():
    class Own(keras.Model):
        def call(self, x):
            return x
    return Own()

def loaders():
    x = np.random.default_rng(0).normal(3, 2, size=(60, 4)).astype("float32")
    return [(x[:30], np.zeros(30)), (x[30:], np.zeros(30))], None

def pair():
    import torch
    batches = [(torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))]
    return batches, batches
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_keras.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_keras", raising=False)
    keras.utils.set_random_seed(0)


X = np.random.default_rng(1).normal(size=(8, 8)).astype("float32")


def test_fold_reads_a_file_and_writes_one_that_opens_without_bnkit(tmp_path):
    model = sequential()
    model.save("net.keras")
    before = (tmp_path / "net.keras").read_bytes()
    code, stdout, stderr = run("fold net.keras --out new/folded.keras")
    assert code == 0, stderr
    assert "fold into 'first' (Dense)" in stdout
    assert "Same function: error" in stdout
    assert stderr.endswith("Model: new/folded.keras\n")
    assert (tmp_path / "net.keras").read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folded.keras"]
    assert error(model(X), open_model("new/folded.keras")(X)) < 1e-6
    program = (
        "import sys; sys.modules['bnkit'] = None; import keras; "
        "print(len(keras.models.load_model('new/folded.keras').layers))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "4"


def test_add_prints_the_plan_of_a_builder_and_writes_the_twin():
    code, stdout, stderr = run("add own_keras:build")
    assert code == 0, stderr
    assert "normalise 8 features, drop bias" in stdout
    assert run("add own_keras:build --out twin.keras")[0] == 0
    assert "hidden_batchnorm" in [layer.name for layer in open_model("twin.keras").layers]
    document = json.loads(run("add own_keras:build --placement after --json")[1])
    assert document["edits"][0]["change"] == "normalise 8 features"


def test_insert_and_remove_take_data_and_globs():
    code, stdout, stderr = run("insert own_keras:build --data own_keras:loaders --where 'hid*'")
    assert code == 0, stderr
    assert "Same function: error" in stdout
    code, stdout, stderr = run("remove own_keras:normalised --example 6,4 --out plain.keras")
    assert code == 0, stderr
    names = [layer.name for layer in open_model("plain.keras").layers]
    assert [names[0], names[-1], len(names)] == ["d", "last", 3]


def test_recalibrate_measures_all_of_the_data():
    command = "recalibrate own_keras:normalised --data own_keras:loaders --out good.keras"
    code, stdout, stderr = run(command)
    assert code == 0, stderr
    assert "2 mini-batches" in stdout
    assert array_of(open_model("good.keras").get_layer("n").moving_mean).any()
    document = json.loads(run(f"{command} --estimator layer_by_layer --json")[1])
    assert document["estimator"] == "layer_by_layer"


def test_the_doctor_finds_and_fixes(tmp_path):
    code, stdout, _ = run("doctor own_keras:normalised --data own_keras:loaders --json")
    assert code == 1
    assert "torch-momentum" in [finding["rule"] for finding in json.loads(stdout)["findings"]]
    code, stdout, stderr = run("doctor own_keras:normalised --fix good.keras --html sick.html")
    assert (code, stderr.splitlines()[-1]) == (1, "Model: good.keras")
    assert open_model("good.keras").get_layer("n").momentum == 0.9
    assert "torch-momentum" in (tmp_path / "sick.html").read_text()
    assert run("doctor good.keras")[0] == 0
    log = json.loads(run("doctor good.keras --sarif")[1])
    (place,) = log["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "good.keras"


@pytest.mark.usefixtures("trials_here")
def test_compare_trains_a_builder_and_a_file(tmp_path):
    rest = "--data own_keras:pair --seeds 1 --steps 2 --momentum 0.9 --eps 0.01 --out kept --json"
    code, stdout, _ = run(f"compare --model own_keras:build --learning-rate 0.1 {rest}")
    assert code == 0
    told = json.loads(stdout)
    assert [trial["outcome"] for trial in told["trials"]] == ["finished"] * 2
    assert (told["settings"]["momentum"], told["settings"]["epsilon"]) == (0.9, 0.01)
    assert "bnkit.keras" in (tmp_path / "kept" / "report.html").read_text()
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(8, activation="relu"), L.Dense(3, name="last")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.RMSprop(0.005), loss)
    model.save("net.keras")
    code, stdout, _ = run(f"compare --model net.keras {rest}")
    told = json.loads(stdout)
    assert (code, told["settings"]["optimizer"]) == (0, "RMSprop")
    assert [trial["learning_rate"] for trial in told["trials"]] == pytest.approx([0.005] * 2)


def test_the_rules_for_keras_are_explained():
    code, stdout, _ = run("explain --keras wrong-axis")
    assert (code, stdout.splitlines()[-1]) == (0, "In the docs: docs/keras-rules.md#wrong-axis")
    assert "training-false-overridden" in run("explain --keras")[1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fold net.h5", "has the old format .h5, which can hold code: open it where you"),
        ("fold nothing.keras", "No such file or directory: 'nothing.keras'"),
        ("fold own_keras:normalised --out net.pt", "a Keras model is written to a .keras file"),
        ("fold own_keras:normalised --checkpoint net.pt", "--checkpoint is for PyTorch"),
        ("fold own_keras:normalised --key ema", "--key ema is of a --checkpoint: give that too"),
        ("compare --model own_keras:build --data own_keras:pair --clip 1", "--clip is for PyTorch"),
        ("compare --model net.h5 --data own_keras:pair", "has the old format .h5"),
        ("compare --model own_keras:build", "the images of digits have (8, 8)"),
        ("fold own_keras:normalised --example 4,x", "'4,x': pass integers"),
        ("fold own_keras:normalised --where x*", "--where 'x*' fits no layer: the paths are"),
        ("add own_keras:build --example 8,4", "--example is for PyTorch networks"),
        ("insert own_keras:build", "--data is missing"),
        ("convert own_keras:normalised ghost --example 8,4", "this command is for PyTorch"),
        ("standardize own_keras:build --data own_keras:loaders", "this command is for PyTorch"),
        ("doctor own_keras:subclassed", "`model` is of the class Own, whose `call` is Python"),
        ("add torch.nn:Identity --out net.keras --example 2,2", "net.keras"),
    ],
)
def test_wrong_use_is_answered_in_one_sentence(command, said):
    code, stdout, stderr = run(command)
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert len(stderr.strip().splitlines()) == 1


# Files of others


def written(change):
    """Write net.keras, a sound file but for what `change(name, content)` makes of its members."""
    model = alive(keras.Sequential([keras.Input((8,)), L.Dense(3), L.BatchNormalization()]))
    model.save("net.keras")
    hostile.rewritten("net.keras", change)


def in_config(**changes):
    """Return what changes the entries of the first layer of the config."""

    def change(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        config["config"]["layers"][1].update(changes)
        return json.dumps(config).encode()

    return change


CODE = "__import__('os').mkdir('ran')"
CUSTOM = {"module": "evil", "class_name": "Evil", "registered_name": "evil>Evil"}
HOSTILE = {
    "a class of a module of its own": (in_config(**CUSTOM), "has the custom object evil>Evil"),
    "a class without a registered name": (
        in_config(module="evil", class_name="Evil", registered_name=None),
        "has the custom object Evil (evil)",
    ),
    "a function of the system": (
        in_config(module="os", class_name="function", config="system", registered_name="system"),
        "has the custom object system (os)",
    ),
    "a lambda": (
        in_config(module="keras.layers", class_name="Lambda", config={"function": CODE}),
        "has a Lambda, which can hold code",
    ),
    "a lambda of the old format": (
        in_config(module=None, class_name="Lambda", config={"function": [CODE, None, None]}),
        "has a Lambda, which can hold code",
    ),
    "a pickled module of torch": (
        in_config(module="keras.layers", class_name="TorchModuleWrapper", config={"module": ""}),
        "has a TorchModuleWrapper, which can hold code",
    ),
    "a vocabulary that names a file": (
        in_config(
            module="keras.layers", class_name="StringLookup", config={"vocabulary": "/etc/passwd"}
        ),
        "has a StringLookup, which can hold code or name other files",
    ),
    "a function that is no layer": (
        in_config(
            module="keras.utils",
            class_name="function",
            config="get_file",
            registered_name="get_file",
        ),
        "cannot be opened",
    ),
    "a config that is not JSON": (
        lambda name, content: b"{" if name == "config.json" else content,
        "is not a .keras file, or it is damaged",
    ),
    "a config of endless lists": (
        lambda name, content: b"[" * 100_000 if name == "config.json" else content,
        "is not a .keras file, or it is damaged",
    ),
    "no config": (
        lambda name, content: None if name == "config.json" else content,
        "is not a .keras file, or it is damaged",
    ),
    "weights that are not HDF5": (
        lambda name, content: b"none" if name.endswith(".h5") else content,
        "cannot be opened",
    ),
}


@pytest.mark.parametrize("command", ["fold", "doctor", "remove --example 4,8"])
@pytest.mark.parametrize(("change", "said"), HOSTILE.values(), ids=HOSTILE)
def test_no_file_runs_code(command, change, said, tmp_path):
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('ran')\nclass Evil: pass\n")
    written(change)
    verb, *more = command.split()
    code, stdout, stderr = run(" ".join([verb, "net.keras", *more]))
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def linked():
    import h5py  # noqa: PLC0415  it comes with Keras

    file = io.BytesIO()
    with h5py.File(file, "w") as weights:
        weights["layers"] = h5py.ExternalLink("/etc/passwd", "/layers")
    return file.getvalue()


def test_weights_that_point_to_another_file_are_refused():
    written(lambda name, content: linked() if name.endswith(".h5") else content)
    code, _, stderr = run("fold net.keras")
    assert code == 2
    assert "'net.keras' cannot be opened" in stderr


@pytest.mark.parametrize("exploit", [hostile.pickled, hostile.saved_by_torch])
def test_a_pickle_that_calls_itself_a_keras_file_is_refused(exploit, tmp_path):
    (tmp_path / "net.keras").write_bytes(exploit(tmp_path / "ran"))
    code, _, stderr = run("fold net.keras")
    assert code == 2
    assert "is not a .keras file, or it is damaged" in stderr
    assert not (tmp_path / "ran").exists()


def test_members_outside_of_the_folder_are_not_written(tmp_path):
    sequential().save("net.keras")
    with zipfile.ZipFile("net.keras", "a") as archive:
        archive.writestr("../ran", "no")
        archive.writestr("assets/../../ran", "no")
    run("fold net.keras")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path.parent / "ran").exists()
