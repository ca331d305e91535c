import pytest
import torch
import torch.nn.functional as F

from bnkit.functional import batch_norm
from bnkit.kernels import choice
from bnkit.kernels.choice import WORTHWHILE, choose_kernel

LARGE = torch.empty(max(WORTHWHILE.values()) // 64, 64)


def test_a_large_tensor_on_the_cpu_is_for_the_kernels():
    assert str(choose_kernel(LARGE)) == "cpu: a large tensor on the CPU"
    assert choose_kernel(LARGE.bfloat16()).kernel == "cpu"
    assert choose_kernel(LARGE.double()).kernel == "cpu"


class Watched(torch.Tensor):
    """A tensor whose class may look at every call."""


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.empty(60, 100), "too few values"),
        (LARGE.half(), "no kernels for this dtype"),
        (LARGE.flatten(), "no channel axis"),
        (torch.empty(64, LARGE.numel() // 32)[:, ::2], "neither channels first nor channels last"),
        (LARGE.as_subclass(Watched), "a tensor subclass or a torch function mode"),
        (LARGE.to("meta"), "no kernels for this device"),
    ],
    ids=["small", "dtype", "no channels", "gaps", "subclass", "device"],
)
def test_what_is_left_to_torch_and_why(x, reason):
    chosen = choose_kernel(x)
    assert chosen.kernel == "torch"
    assert reason in chosen.reason


def test_forward_mode_differentiation_is_left_to_torch():
    with torch.autograd.forward_ad.dual_level():
        assert choose_kernel(LARGE).kernel == "torch"


def test_without_numba_torch_does_it(monkeypatch):
    monkeypatch.setitem(choice._INSTALLED, "numba", False)
    assert str(choose_kernel(LARGE)).startswith("torch: numba, which compiles the kernels")


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_the_environment_may_force_a_kernel(monkeypatch, name):
    monkeypatch.setattr(choice, "forced", name)
    x = torch.randn(6, 3)
    assert str(choose_kernel(x)) == f"{name}: BNKIT_KERNEL says so"
    expected = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(batch_norm(x, None, None, training=True), expected)


def test_a_forced_kernel_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(choice, "forced", "numba")
    with pytest.raises(ValueError, match="BNKIT_KERNEL is 'numba': set it to one of reference, t"):
        choose_kernel(LARGE)


@pytest.mark.parametrize(("name", "x"), [("cpu", LARGE.half()), ("gpu", LARGE)])
def test_a_forced_kernel_that_cannot_serve_says_what_it_takes(monkeypatch, name, x):
    monkeypatch.setattr(choice, "forced", name)
    with pytest.raises(
        ValueError, match=rf"BNKIT_KERNEL is '{name}', which cannot serve `input` \({x.dtype} on"
    ):
        choose_kernel(x)


@pytest.mark.parametrize(("training", "fused"), WORTHWHILE)
def test_what_is_worthwhile_depends_on_what_is_asked(training, fused):
    least = WORTHWHILE[training, fused]
    for values, kernel in ((least, "cpu"), (least - 1, "torch")):
        x = torch.empty(values, 1)
        assert choose_kernel(x, training=training, fused=fused).kernel == kernel
