"""What torch keeps private: it is where it was seen, and bnkit works without it."""

import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm

from bnkit import internals

SEEN = "2.9", "2.13", "2.14"
# The attributes that are looked up in torch itself, by the expression of their owner.
NAMES = {
    "torch._C": (
        "_current_graph_task_id",
        "_len_torch_dispatch_stack",
        "_functorch",
        "_dynamo",
    ),
    "torch._C._functorch": ("peek_interpreter_stack",),
    "torch._C._dynamo": ("eval_frame",),
    "torch._C._dynamo.eval_frame": ("get_eval_frame_callback",),
    "torch.autograd.forward_ad": ("_current_level",),
    "torch": ("_check",),
    "torch.utils": ("_pytree",),
    "torch.nn.modules.batchnorm": ("_BatchNorm",),
    "torch.nn.modules.conv": ("_ConvNd", "_ConvTransposeNd"),
    "torch.nn.modules.instancenorm": ("_InstanceNorm",),
    "torch.nn.BatchNorm1d": ("_check_input_dim",),
    "torch.nn.Conv2d": ("_conv_forward",),
    "torch.UntypedStorage": ("_cdata",),
}
PAIRS = [(owner, name) for owner, names in NAMES.items() for name in names]


def test_torch_is_a_version_in_which_the_private_names_were_seen():
    assert torch.__version__.startswith(SEEN), "see whether all of these are still there"


@pytest.mark.parametrize(("owner", "name"), PAIRS)
def test_the_private_name_is_there(owner, name):
    found = torch
    for part in owner.split(".")[1:]:
        found = getattr(found, part)
    assert hasattr(found, name)


# Torch itself needs many of these names, so each is taken away between the import of torch and
# that of bnkit, and stays away only while bnkit is imported and runs what is its own.
PROGRAM = """
import os, sys, traceback
import torch
from torch import nn
import torch.nn.modules.batchnorm, torch.nn.modules.conv, torch.nn.modules.instancenorm

def run_without(owner, name):
    x = torch.randn(4, 2)
    kept = getattr(owner, name)
    delattr(owner, name)
    import bnkit
    from bnkit.internals import AnyBatchNorm, AnyConv, AnyInstanceNorm, AnyTransposedConv
    layer = bnkit.BatchNorm1d(2, activation="relu")
    y = layer(x, residual=x)
    running_var = layer.running_var.clone()
    eval_y = layer.eval()(x)
    assert isinstance(layer.norm, AnyBatchNorm) and isinstance(nn.SyncBatchNorm(1), AnyBatchNorm)
    assert isinstance(nn.ConvTranspose2d(1, 1, 1), (AnyConv, AnyTransposedConv))
    assert isinstance(nn.InstanceNorm3d(1), AnyInstanceNorm)
    setattr(owner, name, kept)
    theirs = nn.BatchNorm1d(2)
    torch.testing.assert_close(y, torch.relu(theirs(x) + x))
    torch.testing.assert_close(running_var, theirs.running_var)
    torch.testing.assert_close(eval_y, torch.relu(theirs.eval()(x)))
    y.sum().backward()
    assert layer.weight.grad.isfinite().all()

with torch.no_grad():  # what torch imports when it is first used
    nn.BatchNorm1d(2)(torch.randn(4, 2))
for pair in sys.argv[1:]:
    owner, _, name = pair.rpartition(".")
    process = os.fork()
    if process == 0:
        try:
            run_without(eval(owner), name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        print(pair)
"""
OF_CLASSES = {"torch.nn.BatchNorm1d", "torch.UntypedStorage"}  # with tests of their own, below


def test_bnkit_and_its_plain_layers_work_without_any_one_of_them():
    names = [f"{owner}.{name}" for owner, name in PAIRS if owner not in OF_CLASSES]
    command = [sys.executable, "-c", PROGRAM, *names]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stdout == "", ran.stderr


def test_a_layer_without_a_check_of_its_rank_takes_any():
    internals.check_rank(SimpleNamespace(), torch.ones(1))
    with pytest.raises(ValueError, match="expected 4D input"):
        internals.check_rank(nn.BatchNorm2d(1), torch.ones(1))


def test_bases_of_the_layers_are_those_of_torch():
    assert internals.AnyBatchNorm is batchnorm._BatchNorm
    assert internals.AnyConv is conv._ConvNd
    assert internals.AnyTransposedConv is conv._ConvTransposeNd
    assert internals.AnyInstanceNorm is instancenorm._InstanceNorm


def test_hooks_are_seen_of_each_kind():
    def seen_with(register, **kind):
        layer = nn.ReLU()
        getattr(layer, register)(lambda *_: None)
        return internals.has_hooks(layer, **kind)

    after = ("register_forward_hook", "register_full_backward_hook")
    before = ("register_forward_pre_hook", "register_full_backward_pre_hook")
    assert [seen_with(name) for name in (*after, *before)] == [True] * 4
    assert [seen_with(name, before=False) for name in (*after, *before)] == [True] * 2 + [False] * 2
    assert not internals.has_hooks(nn.ReLU())


def test_a_module_without_its_tables_is_read_by_what_is_public():
    stripped = nn.Sequential(nn.ReLU())
    children, parameters = {"0": nn.ReLU()}, {"weight": torch.zeros(1)}
    bare = SimpleNamespace(
        named_children=children.items,
        named_parameters=lambda recurse: parameters.items(),  # noqa: ARG005  torch's name
        named_buffers=lambda recurse: (),  # noqa: ARG005  torch's name
    )
    assert internals.children_of(bare) == children
    assert internals.registered_names(bare) == ["weight"]
    assert not internals.has_hooks(bare)
    assert list(internals.children_of(stripped)) == ["0"]


def test_what_is_not_saved_is_taken_over_as_not_saved():
    layer, made = nn.Module(), nn.Module()
    layer.register_buffer("old", torch.zeros(1), persistent=False)
    layer.register_buffer("saved", torch.zeros(1))
    made.register_buffer("new", torch.zeros(1), persistent=False)
    internals.take_over_registered(layer, made, frozenset(["old"]))
    assert internals.registered_names(layer) == ["new", "saved"]
    assert list(layer.state_dict()) == ["saved"]


def test_tensors_have_no_versions_and_share_addresses_without_the_private_names():
    class Storage:
        def data_ptr(self):
            return 7

    tensor = SimpleNamespace(is_inference=lambda: False, untyped_storage=Storage)
    assert internals.version_of(tensor) == 0
    assert internals.memory_of(tensor) == 7


@pytest.mark.parametrize(
    "tree", [{"x": (torch.ones(2), 3), "y": [torch.zeros(1)]}, [], "text", torch.ones(3)], ids=str
)
def test_trees_are_walked_the_same_without_those_of_torch(tree, monkeypatch):
    leaves, structure = internals.leaves_of(tree)
    replaced = internals.replace_tensors(tree, len)
    monkeypatch.setattr(internals, "_trees", None)
    assert internals.replace_tensors(tree, len) == replaced
    own_leaves, own_structure = internals.leaves_of(tree)
    assert list(map(str, own_leaves)) == list(map(str, leaves))
    assert own_structure
    assert structure


def test_structures_differ_where_trees_do_without_those_of_torch(monkeypatch):
    monkeypatch.setattr(internals, "_trees", None)
    trees = [[1], (1,), {"a": 1}, {"b": 1}, [1, 1], [[1]], 1]
    assert len({internals.leaves_of(tree)[1] for tree in trees}) == len(trees)


def test_a_named_tuple_stays_one_without_trees_of_torch(monkeypatch):
    monkeypatch.setattr(internals, "_trees", None)
    size = torch.nn.utils.rnn.PackedSequence(torch.ones(1), torch.ones(1), None, None)
    assert internals.replace_tensors(size, lambda tensor: tensor + 1) is not size
    pair = internals.replace_tensors({"x": size}, lambda tensor: tensor + 1)["x"]
    assert type(pair) is type(size)
    assert pair.data == 2


def test_ranks_wait_half_an_hour_where_a_group_does_not_say_how_long():
    assert internals.time_limit(SimpleNamespace()) == timedelta(minutes=30)


def test_ranks_wait_as_long_as_the_group_says():
    group = SimpleNamespace(
        _get_backend=lambda device: SimpleNamespace(  # noqa: ARG005  torch's name
            options=SimpleNamespace(_timeout=timedelta(seconds=2))
        )
    )
    assert internals.time_limit(group) == timedelta(seconds=2)
    assert not dist.is_initialized()


def test_a_model_that_is_not_compiled_is_not_inside_one(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert not internals.compiler_is_loaded()
    assert internals.inside_compiled(nn.ReLU()) is None
