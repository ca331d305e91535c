import pytest
import torch
import torch.nn.functional as F

from bnkit.functional import batch_norm
from bnkit.kernels import choice
from bnkit.kernels.build import Core
from bnkit.kernels.choice import choose_kernel

X = torch.randn(6, 4, 8)


@pytest.mark.skipif(bool(choice.missing_core()), reason="of the compiled core")
@pytest.mark.parametrize("dtype", choice._DTYPES["core"], ids=str)
def test_a_dense_tensor_on_the_cpu_is_for_the_core(dtype, monkeypatch):
    monkeypatch.setattr(choice, "forced", "")
    assert str(choose_kernel(X.to(dtype))) == "core: a dense tensor on the CPU"
    assert choose_kernel(X.to(dtype).transpose(1, 2)).kernel == "core"
    assert choose_kernel(X[0].to(dtype), training=False, fused=False).kernel == "core"


class Watched(torch.Tensor):
    """A tensor whose class may look at every call."""


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (X.int(), "no kernels for this dtype"),
        (X.flatten(), "no channel axis"),
        (X[:, ::2], "neither channels first nor channels last"),
        (X[:0], "it is empty"),
        (X.as_subclass(Watched), "a tensor subclass or a torch function mode"),
        (X.to("meta"), "no kernels for this device"),
    ],
    ids=["dtype", "no channels", "gaps", "empty", "subclass", "device"],
)
def test_what_is_left_to_torch_and_why(x, reason, monkeypatch):
    monkeypatch.setattr(choice, "forced", "")
    chosen = choose_kernel(x)
    assert chosen.kernel == "torch"
    assert reason in chosen.reason


def test_forward_mode_differentiation_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(choice, "forced", "")
    with torch.autograd.forward_ad.dual_level():
        assert choose_kernel(X).kernel == "torch"


@pytest.fixture
def without_core(monkeypatch):
    monkeypatch.setattr(choice, "forced", "")
    monkeypatch.setattr(choice, "_missing", ())
    monkeypatch.setattr(choice.build, "load", lambda: Core(None, "there is no compiler: install"))


@pytest.mark.usefixtures("without_core")
def test_without_the_core_torch_does_it_and_the_reason_says_how_to_get_it():
    assert str(choose_kernel(X)) == "torch: there is no compiler: install"
    expected = F.batch_norm(X, None, None, training=True)
    assert torch.equal(batch_norm(X, None, None, training=True), expected)


@pytest.mark.usefixtures("without_core")
def test_the_core_cannot_be_forced_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(choice, "forced", "core")
    with pytest.raises(ValueError, match="BNKIT_KERNEL is 'core': there is no compiler: install"):
        choose_kernel(X)


@pytest.mark.parametrize("name", ["reference", "torch", "core"])
def test_the_environment_may_force_a_kernel(monkeypatch, name):
    if name == "core" and choice.missing_core():
        pytest.skip("there is no compiled core")
    monkeypatch.setattr(choice, "forced", name)
    x = torch.randn(6, 3)
    assert str(choose_kernel(x)) == f"{name}: BNKIT_KERNEL says so"
    expected = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(batch_norm(x, None, None, training=True), expected)


def test_a_forced_kernel_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(choice, "forced", "numba")
    with pytest.raises(ValueError, match="BNKIT_KERNEL is 'numba': set it to one of reference, t"):
        choose_kernel(X)


@pytest.mark.parametrize(("name", "x"), [("core", X.int()), ("gpu", X)])
def test_a_forced_kernel_that_cannot_serve_says_what_it_takes(monkeypatch, name, x):
    monkeypatch.setattr(choice, "forced", name)
    with pytest.raises(
        ValueError, match=rf"BNKIT_KERNEL is '{name}', which cannot serve `input` \({x.dtype} on"
    ):
        choose_kernel(x)
