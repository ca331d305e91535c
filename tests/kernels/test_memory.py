"""Recycled memory is seen from outside only: by addresses, by what is idle, by what tensors do."""

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from bnkit.kernels import memory
from bnkit.kernels.choice import missing_core
from bnkit.kernels.memory import empty_like, idle_bytes, limit_idle_bytes, release

pytestmark = pytest.mark.skipif(bool(missing_core()), reason="without the core nothing is kept")
LIKE = torch.zeros(9, 512, 257)  # of a size that no other test uses
SIZE = LIKE.numel() * 4


@pytest.fixture(autouse=True)
def _nothing_idle():
    before = memory.idle_limit()
    release()
    yield
    limit_idle_bytes(before)
    release()


def test_memory_goes_to_the_next_tensor_of_its_size():
    first = empty_like(LIKE)
    address = first.data_ptr()
    assert idle_bytes() == 0
    del first
    assert idle_bytes() == SIZE
    assert empty_like(torch.zeros(5)).data_ptr() != address
    assert empty_like(LIKE).data_ptr() == address


def test_two_living_tensors_never_share_memory():
    tensors = [empty_like(LIKE).fill_(n) for n in range(4)]
    assert [t.unique().item() for t in tensors] == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(16, 64, 48, 48),
        torch.zeros(16, 64, 48, 48).to(memory_format=torch.channels_last),
        torch.zeros(4, 64, 20, 24, 24).to(memory_format=torch.channels_last_3d),
        torch.zeros(4000, 700),
        torch.zeros(1500, 700, 2)[..., 0],  # with gaps: left to torch
        torch.zeros(700, 3100, requires_grad=True),
    ],
    ids=["planes", "channels last", "volumes", "plain", "a view with gaps", "a parameter"],
)
def test_tensors_are_as_torch_makes_them(x, dtype):
    ours, theirs = empty_like(x.to(dtype)), torch.empty_like(x.to(dtype))
    for ask in (
        torch.Tensor.size,
        torch.Tensor.stride,
        torch.Tensor.storage_offset,
        torch.Tensor.is_contiguous,
        torch.Tensor._is_view,
        lambda t: (t.dtype, t.requires_grad, t.is_leaf, t.is_inference(), t.device),
        lambda t: t.data_ptr() % 64,
        lambda t: t.untyped_storage().nbytes(),
    ):
        assert ask(ours) == ask(theirs)


def in_a_process(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Who keeps a storage alive keeps its memory: each of these is all that is left of the tensor.
KEEPERS = {
    "a view": lambda t: t[1:],
    "detach": torch.Tensor.detach,
    "a transposed view of a view": lambda t: t[1].t(),
    "the storage": torch.Tensor.untyped_storage,
    "numpy": torch.Tensor.numpy,
    "a slice of numpy": lambda t: t.numpy()[2, ::3],
    "a memoryview": lambda t: memoryview(t.numpy()),
    "another dtype": lambda t: t.view(torch.int32),
    "a graph": lambda t: torch.ones((), requires_grad=True) * t,
    "a graph of a view": lambda t: (torch.ones((), requires_grad=True) * t.detach()[0]).sum(),
    "set_": lambda t: torch.empty(0).set_(t),
    "a parameter": torch.nn.Parameter,
    "a cycle": lambda t: (cycle := [t], cycle.append(cycle))[0],
    "dlpack": np.from_dlpack,
    "a thread's local": lambda t: threading.Thread(target=lambda: t),
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_memory_is_not_reused_while_anything_refers_to_it(keep):
    tensor = empty_like(LIKE)
    kept = keep(tensor)
    del tensor
    gc.collect()
    assert idle_bytes() == 0
    del kept
    gc.collect()
    assert idle_bytes() == SIZE


def test_values_saved_for_backward_survive_new_tensors():
    saved = empty_like(LIKE).fill_(3)
    factor = torch.ones((), requires_grad=True)
    product = (factor * saved).sum()
    del saved
    empty_like(LIKE).fill_(7)
    product.backward()
    assert factor.grad == 3 * LIKE.numel()


def test_storages_that_die_in_the_garbage_collector_are_kept():
    # The collector may run inside any allocation, so also in the middle of this module.
    before = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(200):
            cycle = [empty_like(LIKE)]
            cycle.append(cycle)
            del cycle
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert SIZE <= idle_bytes() <= 20 * SIZE


def test_storages_that_die_in_another_thread_are_kept():
    handed = [empty_like(LIKE)]
    address = handed[0].data_ptr()
    thread = threading.Thread(target=handed.clear)
    thread.start()
    thread.join()
    assert empty_like(LIKE).data_ptr() == address


def test_many_threads_at_once_never_get_the_same_memory():
    wrong = []

    def use(number):
        for _ in range(100):
            tensor = empty_like(LIKE)
            tensor[0].fill_(number)
            if tensor[0, 0, 0] != number or tensor[0, -1, -1] != number:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert idle_bytes() <= 8 * SIZE  # each holds its last while it asks for the next


def test_idle_memory_has_a_limit_and_what_was_unused_for_longest_goes_first():
    old, new = torch.zeros(2200, 512), torch.zeros(2400, 512)
    limit_idle_bytes(10_000_000)
    tensors = [empty_like(new), empty_like(new), empty_like(old)]
    del tensors  # 14.3 MB, from the list's end
    assert idle_bytes() == 2 * new.numel() * 4


def test_a_limit_of_zero_turns_recycling_off():
    limit_idle_bytes(0)
    empty_like(LIKE)
    assert idle_bytes() == 0


def test_a_limit_frees_what_is_idle_already():
    empty_like(LIKE)
    limit_idle_bytes(SIZE - 1)
    assert idle_bytes() == 0


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match=r"`limit` is -1: pass a number of bytes"):
        limit_idle_bytes(-1)


def test_sizes_that_do_not_come_back_are_dropped():
    empty_like(torch.zeros(2400, 512))
    for _ in range(2000):
        empty_like(LIKE)
    assert idle_bytes() == SIZE + 2400 * 512 * 4
    for _ in range(2):
        empty_like(LIKE)
    assert idle_bytes() == SIZE


def test_an_allocation_that_fails_frees_what_is_idle_and_tries_again():
    program = """
import resource, torch
from bnkit.kernels.memory import empty_like, idle_bytes
small, large = torch.empty(2**22), torch.empty(2**23)  # 16 and 32 MiB
kept = [empty_like(small) for _ in range(16)]
del kept
assert idle_bytes() == 2**28
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
assert empty_like(large).shape == large.shape and idle_bytes() == 2**25
living = []
try:
    while True:
        living.append(empty_like(large))
except torch.OutOfMemoryError as error:
    print(error)
"""
    assert "no memory for a tensor of 33554432 bytes" in in_a_process(program)


def test_a_quarter_of_the_memory_of_this_process_is_kept_by_default(monkeypatch):
    monkeypatch.setattr(memory, "_limit", None)
    monkeypatch.setattr(memory, "memory_share", lambda: 4000)
    assert memory.idle_limit() == 1000


def test_release_frees_what_is_idle_and_leaves_what_lives():
    living = empty_like(LIKE).fill_(5)
    empty_like(LIKE)
    release()
    assert idle_bytes() == 0
    assert living.unique().tolist() == [5]


# What else tensors do


@pytest.fixture
def tensor():
    return empty_like(LIKE).copy_(torch.arange(float(LIKE.numel())).view(LIKE.shape))


def _through_file(t):
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


COPIES = {
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "torch.save": _through_file,
    "deepcopy": copy.deepcopy,
    "clone": torch.clone,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_are_equal_and_apart(duplicate, tensor):
    other = duplicate(tensor)
    assert torch.equal(other, tensor)
    other.zero_()
    assert tensor.sum() > 0


def test_shared_memory_moves_the_values_and_gives_the_memory_back(tensor):
    expected = tensor.clone()
    tensor.share_memory_()
    assert tensor.is_shared()
    assert torch.equal(tensor, expected)
    assert idle_bytes() == SIZE


def test_in_place_operations_and_autograd_work(tensor):
    tensor.requires_grad_()
    (tensor * 2).relu_().sum().backward()
    assert tensor.grad.unique().tolist() == [0, 2]
    with torch.no_grad():
        tensor.zero_()
    assert not tensor.any()


def test_resize_works_within_the_size_and_beyond_it(tensor):
    assert tensor.resize_(3, 5).shape == (3, 5)
    tensor.resize_(2 * LIKE.numel())
    assert torch.equal(tensor[: LIKE.numel()], torch.arange(float(LIKE.numel())))
    assert idle_bytes() == SIZE


def test_a_forked_child_has_memory_of_its_own(tensor):
    kept = empty_like(LIKE).fill_(1)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # torch's own threads do not survive a fork, and fill_ waits
        tensor.fill_(-1)
        kept.fill_(-1)
        del kept
        os._exit(0 if empty_like(LIKE).fill_(-1).sum() < 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kept.unique().tolist() == [1]
    assert tensor[0, 0, 1] == 1
