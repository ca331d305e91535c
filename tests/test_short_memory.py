"""Where memory is short, each verb says so in one sentence and leaves the model as it was."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit import surgery
from bnkit.observation import NotEnoughMemoryError, memory_explained
from chaos import CALLS, X, normalised, plain
from zoo.checks import fingerprint, random_state

TOO_MUCH = 2**50  # bytes: the allocator refuses at once
NOTE = "Not checked in float64: memory is too short for it, and a smaller example needs less."


class Short(nn.Module):
    """An activation for whose k-th call memory is too short, in whichever copy."""

    left = 0

    def forward(self, x):
        Short.left -= 1
        if Short.left == 0:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return x.relu()


def with_it(model):
    return nn.Sequential(*(Short() if not hasattr(m, "weight") else m for m in model))


def attempts(build, verb):
    """Yield what `verb` returns or raises where each call in turn finds memory too short."""
    for call in itertools.count(1):
        model = with_it(build())
        before, draws = fingerprint(model), random_state()
        Short.left = call
        try:
            result = verb(model)
        except Exception as error:  # noqa: BLE001  judged below
            result = error
        if Short.left > 0:
            return
        assert fingerprint(model) == before
        assert random_state() == draws
        yield result


@pytest.mark.parametrize("name", CALLS)
def test_a_verb_says_that_memory_is_short_and_what_to_do(name):
    build, verb = CALLS[name]()
    results = list(attempts(build, verb))
    assert isinstance(results[0], NotEnoughMemoryError)
    for result in results:
        if isinstance(result, Exception):
            assert isinstance(result, NotEnoughMemoryError)
            assert "1125899906842624 bytes more): pass a smaller example or" in str(result)
            assert str(result).endswith("smaller mini-batches; the model is as it was")


@pytest.mark.parametrize(
    ("build", "plan"),
    [
        pytest.param(plain, lambda m: surgery.plan_insertion(m, [X]), id="insert"),
        pytest.param(normalised, lambda m: surgery.plan_folding(m, X), id="fold"),
        pytest.param(normalised, lambda m: surgery.plan_removal(m, X), id="remove"),
    ],
)
def test_a_proof_for_which_float64_is_too_much_says_so(build, plan):
    class OnlyNarrow(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float64:
                torch.empty(TOO_MUCH, dtype=torch.uint8)
            return x.relu()

    model = nn.Sequential(*(m if hasattr(m, "weight") else OnlyNarrow() for m in build()))
    assert NOTE in str(plan(model))


def test_a_layer_for_which_memory_is_short_is_named():
    model = with_it(normalised())
    Short.left = 1
    with pytest.raises(NotEnoughMemoryError, match=r"of shape \(8, 4\) in layer '2' \(Short\): 11"):
        bnkit.fold(model, X)


def test_a_copy_for_which_memory_is_short_is_told():
    class Huge(nn.Module):
        def __deepcopy__(self, memo):
            return torch.empty(TOO_MUCH)

    with pytest.raises(NotEnoughMemoryError, match="bytes more"):
        bnkit.fold(nn.Sequential(Huge()), X)


def fail(error):
    raise error


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1 GiB")
ERRORS = {
    "torch": (lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), " (1125899906842624 bytes more)"),
    "numpy": (lambda: np.empty(TOO_MUCH, np.uint8), " (Unable to allocate 1.00 PiB for an array"),
    "Python": (lambda: [None] * TOO_MUCH, ": pass a smaller"),
    "CUDA": (lambda: fail(CUDA), " (20.00 MiB more)"),
    "MPS": (lambda: fail(RuntimeError("MPS backend out of memory (MPS: 1 GB)")), " (MPS backend"),
    "cuBLAS": (lambda: fail(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")), " (CUBLAS_STATUS_ALLOC"),
    "C++": (lambda: fail(RuntimeError("std::bad_alloc")), " (std::bad_alloc)"),
}


@pytest.mark.parametrize(("act", "told"), ERRORS.values(), ids=ERRORS)
def test_errors_of_every_allocator_are_known(act, told):
    with pytest.raises(MemoryError) as refused, memory_explained():
        act()
    assert str(refused.value).startswith(f"memory is too short{told}")


def test_other_errors_pass_as_they_are():
    error = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError) as passed, memory_explained():
        raise error
    assert passed.value is error


def test_what_was_explained_is_not_explained_again():
    def wrapped():
        try:
            with memory_explained():
                torch.empty(TOO_MUCH)
        except MemoryError as error:
            raise ValueError("the changed model fails") from error

    with pytest.raises(NotEnoughMemoryError) as refused, memory_explained():
        wrapped()
    assert str(refused.value).count("memory is too short") == 1
