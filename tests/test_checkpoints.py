import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import nn

from bnkit.checkpoints import PLAN, load, read, save
from bnkit.layers import BatchNorm2d, FrozenBatchNorm2d
from bnkit.surgery.acceleration import plan_acceleration
from bnkit.surgery.addition import plan_addition
from bnkit.surgery.conversion import plan_conversion
from bnkit.surgery.folding import plan_folding
from bnkit.surgery.insertion import plan_insertion
from bnkit.surgery.operations import Edit, replay
from bnkit.surgery.plan import Plan
from bnkit.surgery.removal import plan_removal
from bnkit.surgery.standardization import plan_standardization
from zoo.catalogue import conv, dense, images
from zoo.checks import fingerprint, random_state

SUFFIXES = [".safetensors", ".pt", ".pth"]


def build():
    return nn.Sequential(conv(), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.Flatten(), dense(216, 3))


def build_normalised():
    return nn.Sequential(
        *(conv(bias=False), nn.BatchNorm2d(4), nn.ReLU()),  # folds into the layer before it
        *(nn.MaxPool2d(3), BatchNorm2d(4, activation="relu")),  # folds into none
        *(nn.Flatten(), dense(16, 3)),
    )


def trained(build):
    """Return the network with statistics and parameters that a fresh one does not have."""
    torch.manual_seed(1)
    network = build()
    with torch.no_grad():
        network.train()(images())
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter))
    return network


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def batches():
    return [images(), images() + 1]


def after_activation(model, example):
    return plan_addition(model, example, placement="after_activation")


def to_ghost(model, example):
    return plan_conversion(model, "ghost", example, virtual_batch_size=2)


def to_group(model, data):
    return plan_conversion(model, "group", data, num_groups=2)


# What was built, the change, and what it is planned from.
VERBS = {
    "add": (build, plan_addition, images),
    "add after the activation": (build, after_activation, images),
    "insert": (build, plan_insertion, batches),
    "fold": (build_normalised, plan_folding, images),
    "remove": (build_normalised, plan_removal, images),
    "convert": (build_normalised, to_ghost, images),
    "convert to what computes something else": (build_normalised, to_group, batches),
    "standardize": (build, plan_standardization, batches),
    "accelerate": (build_normalised, plan_acceleration, images),
}


def changed(verb):
    """Return the plan of a verb, and the trained network that it changed."""
    builder, planner, data = VERBS[verb]
    network = trained(builder)
    plan = planner(network, data())
    return plan, plan.apply(network)


PROGRAM = """
import sys, json, torch, test_checkpoints
from bnkit.checkpoints import load
for verb, path in json.loads(sys.argv[1]):
    torch.manual_seed(2)  # other initial values
    fresh = test_checkpoints.VERBS[verb][0]()
    model = load(fresh, path)
    output = model.eval()(test_checkpoints.images())
    torch.save({"output": output, "state": model.state_dict(), "text": str(model)}, path + ".out")
"""


@pytest.fixture(scope="module")
def in_another_process(tmp_path_factory):
    """Load every checkpoint in one new process; return the changed models and what came out."""
    folder = tmp_path_factory.mktemp("checkpoints")
    originals, jobs = {}, []
    for verb in VERBS:
        for suffix in [".safetensors", ".pt"]:
            plan, model = changed(verb)
            path = save(model, folder / f"{verb}{suffix}", plan=plan)
            originals[verb, suffix] = model
            jobs.append((verb, str(path)))
    subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(jobs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        check=True,
    )
    return lambda verb, suffix: (
        originals[verb, suffix],
        torch.load(folder / f"{verb}{suffix}.out", weights_only=True),
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_changed_network_comes_back_in_another_process(in_another_process, verb, suffix):
    original, found = in_another_process(verb, suffix)
    assert found["text"] == str(original)
    assert list(found["state"]) == list(original.state_dict())
    assert torch.equal(found["output"], original.eval()(images()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_change_is_kept_beside_the_first(tmp_path, suffix):
    first = plan_addition(build(), images(), where=lambda path, _: path == "0")
    once = load(build(), save(first.apply(build()), tmp_path / f"once{suffix}", plan=first))
    second = plan_addition(once, images(), placement="after_activation")
    plans = read(tmp_path / f"once{suffix}").plans
    twice = second.apply(once)
    path = save(twice, tmp_path / f"twice{suffix}", plan=[*plans, second])
    found = load(build(), path)
    assert str(found) == str(twice)
    assert torch.equal(found.eval()(images()), twice.eval()(images()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_carries_the_whole_plan(tmp_path, suffix):
    plan = plan_insertion(build(), batches())
    path = save(plan.apply(build()), tmp_path / f"a{suffix}", plan=plan)
    assert list(read(path).plans) == [json.loads(json.dumps(plan.to_json()))]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_plan_the_model_is_the_one_that_was_built(tmp_path, suffix):
    model = trained(build)
    found = load(build(), save(model, tmp_path / f"a{suffix}"))
    assert str(found) == str(model)
    assert torch.equal(found(images()), model(images()))


def test_the_fresh_model_and_the_random_state_stay_as_they_are(tmp_path):
    plan, model = changed("add")
    path = save(model, tmp_path / "a.pt", plan=plan)
    fresh = build().eval()
    before, state = fingerprint(fresh), random_state()
    found = load(fresh, path)
    assert fingerprint(fresh) == before
    assert random_state() == state
    assert not any(module.training for module in found.modules() if module.training)


def test_dtype_and_what_trains_are_the_fresh_models(tmp_path):
    plan, model = changed("add")
    path = save(model, tmp_path / "a.pt", plan=plan)
    fresh = build().double()
    fresh[0].weight.requires_grad_(False)
    found = load(fresh, path)
    assert {t.dtype for t in found.parameters()} == {torch.float64}
    assert not found[0].weight.requires_grad
    assert torch.equal(found[0].weight, model[0].weight.double())


def test_options_that_are_not_finite_come_back(tmp_path):
    plan = plan_conversion(build_normalised(), "renorm", images(), r_max=float("inf"), d_max=2.0)
    path = save(plan.apply(build_normalised()), tmp_path / "a.pt", plan=plan)
    assert load(build_normalised(), path)[1].r_max == float("inf")


# Tensors that share memory, or have gaps


class Tied(nn.Module):
    """A weight under two names, a buffer that looks into it, and a transposed one."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("row", self.embedding.weight.detach()[1])
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("nothing_else", torch.empty(0))

    def forward(self, ids):
        return self.head(self.embedding(ids))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shared_and_non_contiguous_tensors_come_back(tmp_path, suffix):
    model = trained_tied()
    found = load(Tied(), save(model, tmp_path / f"a{suffix}"))
    assert found.head.weight is found.embedding.weight
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def trained_tied():
    torch.manual_seed(1)
    model = Tied()
    model.turned.add_(1)
    return model


def test_a_shared_weight_is_kept_once_and_read_by_safetensors_itself(tmp_path):
    model, other = trained_tied(), Tied()
    del model.row, other.row  # safetensors drops what is a part of another tensor
    path = save(model, tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == "embedding.weight nothing nothing_else turned".split()
    assert load_model(other, path) == (set(), [])
    assert torch.equal(other.head.weight, model.head.weight)


# How files are written


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path, suffix):
    path = tmp_path / "new folder" / f"a{suffix}"
    save(nn.Linear(50, 50), path)
    model = nn.Linear(2, 2)
    save(model, path)
    assert torch.equal(load(nn.Linear(2, 2), path).weight, model.weight)
    assert names_in(path.parent) == [path.name]


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = save(nn.Linear(2, 2), tmp_path / "a.pt")
    before = path.read_bytes()

    def full(_document, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"a\.pt cannot be written \(No space left on device\): ch"):
        save(nn.Linear(2, 2), path)
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["a.pt"]


@pytest.mark.skipif(os.name != "posix", reason="a limit for files is a thing of POSIX")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_full_disk_lets_the_formats_raise_is_one_sentence(tmp_path, suffix):
    import resource  # noqa: PLC0415  as above

    path, limits = tmp_path / f"a{suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = save(nn.Linear(2, 2), path).read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"a\{suffix} cannot be written \(.*\): choose another$"):
            save(nn.Linear(200, 200), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert names_in(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a\.pt cannot be written \(.*\): choose another"):
        save(nn.Linear(2, 2), tmp_path / "file" / "a.pt")


# What is refused on saving


def test_an_unknown_suffix_is_refused(tmp_path):
    message = r"the suffix of .*a\.bin is '\.bin': a checkpoint is a file of safetensors \(\.safe"
    with pytest.raises(ValueError, match=message):
        save(nn.Linear(2, 2), tmp_path / "a.bin")
    message = r"the suffix of .*a\.h5 is '\.h5': .* or of torch \(\.pt, \.pth, \.ckpt, \.bin\)"
    with pytest.raises(ValueError, match=message):
        load(nn.Linear(2, 2), tmp_path / "a.h5")


def test_a_plan_that_cannot_be_made_again_is_refused(tmp_path):
    plan, model = changed("add")
    silent = replace(plan, edits=(replace(plan.edits[0], operation=""),))
    message = "`plan` does not say by which operation layer '0' was changed .*: save the state_dict"
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "a.pt", plan=silent)
    assert names_in(tmp_path) == []


def by_callable(model, example):
    return plan_conversion(model, freezing, example)


def by_an_option(model, example):
    return plan_conversion(model, "renorm", example, r_max=torch.sqrt)


def freezing(layer):
    return FrozenBatchNorm2d(layer.num_features)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("planner", "name"), [(by_callable, "freezing"), (by_an_option, "sqrt")])
def test_a_change_by_a_function_is_refused_before_anything_is_written(
    tmp_path, planner, name, suffix
):
    plan = planner(build_normalised(), images())
    model = plan.apply(build_normalised())
    message = (
        rf"`plan` changes layer '1' by '.*{name}', a function, which cannot be saved, so the file "
        rf"could not be loaded: save the state_dict, and make the change again in code before you"
    )
    for given in (plan, plan.to_json(), [plan]):
        with pytest.raises(ValueError, match=message):
            save(model, tmp_path / f"a{suffix}", plan=given)
    assert names_in(tmp_path) == []


class WithState(nn.Linear):
    """A layer with state that is not a tensor."""

    def __init__(self, state):
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


class Thing:
    """What only code can make again."""


def test_plain_data_among_the_state_come_back_from_a_torch_file(tmp_path):
    path = save(WithState({"step": 3, "names": ["a"]}), tmp_path / "a.pt")
    assert load(WithState({}), path).state == {"step": 3, "names": ["a"]}


def test_objects_among_the_state_are_refused_before_they_are_written(tmp_path):
    message = "'_extra_state' of the model's state is a Thing, which could only be read by running"
    with pytest.raises(ValueError, match=message):
        save(WithState(Thing()), tmp_path / "a.pt")
    assert names_in(tmp_path) == []


def test_what_safetensors_cannot_hold_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"'_extra_state' of the model's state is not a tensor, and "
    ):
        save(WithState(3), tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"safetensors has no dtype torch.complex128: write a \.pt"
    ):
        save(nn.Linear(2, 2, dtype=torch.complex128), tmp_path / "a.safetensors")
    assert names_in(tmp_path) == []


# What is refused on loading


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_refused(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=rf"^there is no checkpoint .*nowhere\{suffix}$"):
        load(build(), tmp_path / f"nowhere{suffix}")


def cut_short(data):
    return data[: len(data) // 2]


def overwritten(data):
    return data[:20] + b"\xff" * 60 + data[80:]


DAMAGE = {
    "empty": lambda _: b"",
    "something else": lambda _: b"hello world, I am no checkpoint",
    "cut short": cut_short,
    "overwritten in part": overwritten,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, suffix, damage):
    path = save(build(), tmp_path / f"a{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged") as refusal:
        load(build(), path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


class Malicious:
    """What a pickle may hold: a call of anything, here of what would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda it, path: path.write_bytes(pickle.dumps(it))])
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path, write):
    path, mark = tmp_path / "a.pt", tmp_path / "it ran"
    write({"state_dict": {}, PLAN: "[]", "more": Malicious(mark)}, path)
    with pytest.raises(ValueError, match=r"a\.pt holds pickled objects, which may run any code"):
        load(build(), path)
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(build(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"pickled objects.*: .*save model\.state_dict\(\) alone$"):
        load(build(), tmp_path / "a.pt")


def test_a_file_that_holds_no_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds a list and no state dict: save model"):
        load(build(), tmp_path / "a.pt")


def foreign_torch(path):
    torch.save(build().state_dict(), path)


def foreign_safetensors(path):
    save_file(build().state_dict(), path)


FOREIGN = [
    pytest.param(foreign_torch, ".pt", id="torch"),
    pytest.param(foreign_safetensors, ".safetensors", id="safetensors"),
]


@pytest.mark.parametrize(("write", "suffix"), FOREIGN)
def test_of_a_file_without_a_plan_the_values_are_loaded(tmp_path, write, suffix):
    path = tmp_path / f"a{suffix}"
    write(path)
    assert list(load(build(), path).state_dict()) == list(build().state_dict())
    found = read(path)
    assert found.plans is None
    assert list(found.restore(build()).state_dict()) == list(build().state_dict())


PLANS = {
    "no JSON": "{",
    "no list": "3",
    "no edits": '[{"left_alone": []}]',
    "no structure": '[{"edits": [{"layer": "0"}]}]',
    "edits of another kind": '[{"edits": 5}]',
    "no text at all": 5,
    "no format": '{"plans": []}',
    "a format that is not a number": '{"format": "new", "plans": []}',
    "no plans": '{"format": 2}',
}


@pytest.mark.parametrize("document", PLANS.values(), ids=PLANS)
def test_a_damaged_plan_is_refused(tmp_path, document):
    torch.save({"state_dict": build().state_dict(), PLAN: document}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"^the plan in .*a\.pt is damaged \(\w+: .*\): write the"):
        load(build(), tmp_path / "a.pt")


def mismatch(model, path):
    with pytest.raises(ValueError, match=r"does not fit the model") as refusal:
        load(model, path)
    return str(refusal.value)


def test_a_plan_for_another_model_is_refused_with_the_layer(tmp_path):
    plan, model = changed("add")
    path = save(model, tmp_path / "a.pt", plan=plan)
    message = mismatch(nn.Sequential(nn.Flatten(), dense(144, 3)), path)
    assert message.startswith(f"the plan of {path} does not fit the model: change 2 (own_batch_no")
    assert "is of the layer '2', which the model (Sequential) does not have: build it" in message


def test_an_edited_model_is_refused(tmp_path):
    plan, model = changed("add")
    path = save(model, tmp_path / "a.pt", plan=plan)
    assert "has a `batchnorm` already" in mismatch(plan.apply(build()), path)


def test_names_and_shapes_that_differ_are_listed(tmp_path):
    plan, model = changed("add")
    path = save(model, tmp_path / "a.pt", plan=plan)
    other = build()
    other[5] = dense(216, 4)
    other.append(nn.PReLU())
    assert mismatch(other, path) == (
        f"{path} does not fit the model (Sequential) as the plan changes it: it lacks '6.weight'; "
        f"'5.weight' is (3, 216) in the file, (4, 216) in the model; "
        f"'5.bias' is (3,) in the file, (4,) in the model"
    )
    short = nn.Sequential(*build()[:5])
    assert mismatch(short, path).endswith(": it has '5.weight', '5.bias', which the model lacks")


def test_long_lists_of_names_are_cut(tmp_path):
    path = save(nn.Sequential(*(dense() for _ in range(6))), tmp_path / "a.pt")
    message = mismatch(nn.Sequential(*(dense(5, 5) for _ in range(7))), path)
    assert "it lacks '6.weight', '6.bias'; '0.weight' is (4, 4) in the file, (5, 5)" in message
    assert message.endswith("and 4 more shapes differ")
    message = mismatch(nn.Sequential(nn.Identity()), path)
    assert message.endswith("'3.weight', '3.bias' and 4 more, which the model lacks")


def test_what_load_state_dict_itself_refuses_passes_through(tmp_path):
    class Choosy(nn.Linear):
        def _load_from_state_dict(self, *args):
            args[-1].append("not on a Sunday")

    path = save(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "not on a Sunday" in mismatch(Choosy(2, 2), path)


# Files of 0.1.0, whose plans have no number of their format

OLD = Path(__file__).parent / "checkpoints_of_0_1_0"  # each less than 9 KB


def plain_of_0_1_0():
    layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def normalised_of_0_1_0():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.99), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
    )


# The first was inserted into, accelerated and standardised, the second fixed by the doctor, rid of
# some batch norms and converted.
OF_0_1_0 = {"inserted.safetensors": plain_of_0_1_0, "fixed.pt": normalised_of_0_1_0}


@pytest.mark.parametrize("name", OF_0_1_0)
def test_files_of_0_1_0_load_and_compute_what_they_did(name):
    model = load(OF_0_1_0[name](), OLD / name).eval()
    x = torch.arange(144.0).mul(0.7).sin().reshape(2, 2, 6, 6)
    expected = torch.tensor(json.loads((OLD / "outputs.json").read_text())[name])
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_plan_says_its_format(tmp_path, suffix):
    plan, model = changed("add")
    path = save(model, tmp_path / f"a{suffix}", plan=plan)
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            text = file.metadata()[PLAN]
    else:
        text = torch.load(path, weights_only=True)[PLAN]
    assert json.loads(text) == {"format": 2, "plans": [json.loads(json.dumps(plan.to_json()))]}


def test_a_plan_of_a_later_format_is_refused(tmp_path):
    later = json.dumps({"format": 3, "plans": "in another form"})
    torch.save({"state_dict": build().state_dict(), PLAN: later}, tmp_path / "a.pt")
    message = (
        r"^the plan in .*a\.pt is of format 3, and this version of bnkit reads up to format 2: a "
        r"later version wrote the file, so update bnkit to load it$"
    )
    with pytest.raises(ValueError, match=message):
        load(build(), tmp_path / "a.pt")


def test_values_are_left_out_of_a_plan_that_holds_them(tmp_path):
    plan = plan_insertion(build(), batches())
    path = save(plan.apply(build()), tmp_path / "a.pt", plan=plan.to_json(values=True))
    assert list(read(path).plans) == [json.loads(json.dumps(plan.to_json()))]


class Versioned(nn.Module):
    """As MNASNet of torchvision has it: it loads no state of which it does not know the version."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def forward(self, x):
        return self.body(x)

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_classes_that_ask_for_their_version_load(tmp_path, suffix):
    model, x = Versioned().eval(), torch.randn(3, 2)
    plan = plan_folding(model, x)
    path = save(plan.apply(model), tmp_path / f"model{suffix}", plan=plan)
    assert torch.equal(load(Versioned(), path).eval()(x), plan.apply(model)(x))


# Files of others, as people have them


def values():
    return trained(build_normalised).state_dict()


def prefixed(prefix):
    return {f"{prefix}{name}": value for name, value in values().items()}


OTHERS = {
    "plain.pt": values,
    "of DDP.pt": lambda: prefixed("module."),
    "of compile.pth": lambda: prefixed("_orig_mod."),
    "of both.pt": lambda: prefixed("module._orig_mod."),
    "compiled inside.pt": lambda: {
        name.replace(".", "._orig_mod.", 1): value for name, value in values().items()
    },
    "in a dictionary.pt": lambda: {"model": values(), "optimizer": {"state": {}}, "epoch": 3},
    "of Lightning.ckpt": lambda: {"state_dict": prefixed("network."), "loops": {}, "epoch": 3},
    "of Hugging Face.bin": lambda: prefixed("bert."),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_are_read(tmp_path, name):
    torch.save(OTHERS[name](), tmp_path / name)
    found = load(build_normalised(), tmp_path / name)
    wanted = values()
    assert list(found.state_dict()) == list(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


def test_of_several_state_dicts_one_is_chosen(tmp_path):
    nested = {"ema": values(), "last": values()}
    content = {"net": values(), "average": {n: 0 * v for n, v in values().items()}, "best": nested}
    torch.save(content, path := tmp_path / "a.pt")
    message = (
        r"a\.pt holds several state dicts, under 'net', 'average', 'best\.ema', 'best\.last': "
        r"choose one by `key`, on the command line by --key$"
    )
    with pytest.raises(ValueError, match=message):
        load(build_normalised(), path)
    assert load(build_normalised(), path, key="average")[0].weight.abs().sum() == 0
    assert load(build_normalised(), path, key="best.ema")[0].weight.abs().sum() > 0
    with pytest.raises(ValueError, match=r"no state dict under the key 'nte': it does under 'net'"):
        load(build_normalised(), path, key="nte")


def test_names_that_only_some_prefix_fits_are_refused_as_they_are(tmp_path):
    torch.save({**prefixed("module."), "loss.weight": torch.ones(3)}, path := tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"it lacks '0\.weight', .*; it has 'module"):
        load(build_normalised(), path)


# Plans that say anything


WRONG = [None, True, -1, 7, 10**30, float("nan"), "x", ["0"], {}, {"a": 1}]


def hostile_plans():
    """Yield verbs and checkpoints: each part of a plan replaced by each wrong value.

    All that stands beside the plan is right, so that only the plan can be refused.
    """
    for verb in VERBS:
        plan, model = changed(verb)
        state, document = model.state_dict(), {"format": 2, "plans": [plan.to_json()]}
        for path in places_in(document):
            for wrong in WRONG:
                copy = json.loads(json.dumps(document))
                put(copy, path, wrong)
                yield verb, path, wrong, {"state_dict": state, PLAN: json.dumps(copy)}


def places_in(value, path=()):
    if path:
        yield path
    # Of a list the first: the others are alike
    items = enumerate(value[:1]) if isinstance(value, list) else ()
    for name, each in value.items() if isinstance(value, dict) else items:
        yield from places_in(each, (*path, name))


def put(document, path, value):
    for name in path[:-1]:
        document = document[name]
    document[path[-1]] = value


# What could stand in a plan of another model, of which only a call tells that it is not this one.
POSSIBLE = [
    *(("axis", number) for number in (-1, 7, 10**30)),
    *(("channel_axis", number) for number in (-1, 7, 10**30)),
    ("rank", None),
]


def test_a_plan_that_says_anything_is_refused_in_a_sentence_or_gives_a_model_that_runs(tmp_path):
    path, refused, loaded = tmp_path / "a.pt", Counter(), 0
    fresh = {verb: builder() for verb, (builder, _, _) in VERBS.items()}
    before = {verb: fingerprint(model) for verb, model in fresh.items()}
    for verb, place, wrong, content in hostile_plans():
        path.unlink(missing_ok=True)  # faster than writing over it
        torch.save(content, path)
        try:
            found = load(fresh[verb], path)
        except ValueError as error:
            refusal = str(error)
            assert str(path) in refusal
            assert len(refusal) < 1500
            refused["plan" if refusal.startswith("the plan") else "values"] += 1
        else:
            loaded += 1
            # The words of a plan are for people: only its structure can change what is computed.
            if "structure" in place and (place[-1], wrong) not in POSSIBLE:
                for training in (True, False):
                    assert found.train(training)(images()).isfinite().all(), (verb, place, wrong)
        assert fingerprint(fresh[verb]) == before[verb]
    assert refused["plan"] > 800
    assert refused["values"] < 0.01 * (refused.total() + loaded)
    assert loaded > 800


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 2, "plans": ' + "[" * 100_000])
def test_a_plan_that_is_nested_deep_is_damaged(tmp_path, text):
    torch.save({"state_dict": {}, "bnkit_plan": text}, path := tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the plan in .*a\.pt is damaged \(RecursionError"):
        load(build(), path)


def test_the_work_grows_as_the_edits_do(monkeypatch):
    # How often a path is looked up, and how many modules are walked: no times
    counted = Counter()
    for name in ("get_submodule", "named_modules"):
        original = getattr(nn.Module, name)

        def counting(*args, _name=name, _original=original, **kwargs):
            counted[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(nn.Module, name, counting)
    costs = []
    for edits in (100, 400):
        model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(edits)))
        structures = [
            {"operation": "set_numbers", "layer": str(at), "eps": 0.5} for at in range(edits)
        ]
        counted.clear()
        replay(model, structures)
        costs.append(sum(counted.values()) / edits)
    assert costs[1] <= 1.1 * costs[0]


USES = {
    "apply": lambda plan, model, _new, _path: plan.apply(model),
    "print": lambda plan, _model, _new, _path: str(plan),
    "save": lambda plan, _model, new, path: save(new, path, plan=plan),
    "load": lambda _plan, model, _new, path: load(model, path),
    "to JSON": lambda plan, *_: Plan.from_json(plan.to_json(values=True)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_each_use_of_a_plan_grows_as_its_edits_do(tmp_path, use):
    # Counted are calls of Python functions: no times
    costs = []
    for blocks in (4, 16):
        model = nn.Sequential(
            *(nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(10))) for _ in range(blocks))
        )
        edits = tuple(
            Edit(f"{n // 10}.{n % 10}", "BatchNorm1d", "", "", "set_numbers", {"eps": 0.5})
            for n in range(10 * blocks)
        )
        plan = Plan(edits, ())
        new = plan.apply(model)
        path = save(new, tmp_path / "a.pt", plan=plan)
        costs.append(calls_in(partial(use, plan, model, new, path)) / blocks)
    assert 0 < costs[1] <= 1.1 * costs[0]


def calls_in(act):
    """Return how many Python functions `act` calls."""
    calls = Counter()

    def note(_frame, event, _argument):
        calls[event] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return calls["call"]
