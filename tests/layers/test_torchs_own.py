"""The samples of torch's own tests of batch norm (torch.testing), for bnkit's layers.

What torch's test_modules.py checks with them is checked here at two sizes: as they are, and so
large that memory is recycled. Errors may be twice those of torch, by float64.
"""

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import bnkit
from bnkit.functional import batch_norm

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")

KINDS = {
    "1d": (nn.BatchNorm1d, bnkit.BatchNorm1d),
    "2d": (nn.BatchNorm2d, bnkit.BatchNorm2d),
    "3d": (nn.BatchNorm3d, bnkit.BatchNorm3d),
}
LARGE = 5 * 2**20  # bytes; from 4 MiB on memory is recycled
kinds = pytest.mark.parametrize("kind", KINDS)
modes = pytest.mark.parametrize("training", [True, False])


@pytest.fixture(scope="module")
def modules():
    """What torch tests of each module, by its class."""
    from torch.testing._internal.common_modules import module_db  # noqa: PLC0415  takes seconds

    allow_settings()
    return {info.module_cls: info for info in module_db}


@pytest.fixture(scope="module")
def functions():
    """Samples for torch.nn.functional.batch_norm, by dtype."""
    from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415  as above

    allow_settings()
    found = next(op for op in op_db if op.name == "nn.functional.batch_norm")
    return lambda dtype: list(found.sample_inputs("cpu", dtype, requires_grad=True))


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same samples in each run; torch's generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def allow_settings():
    """Undo what the import does to all tests of this process: settings of backends were frozen."""
    torch.backends.__allow_nonbracketed_mutation_flag = True


def samples(modules, kind, training, *, dtype=torch.float32, large=False):
    """Yield torch's layer, ours and the input of each sample, the running statistics moved."""
    theirs, ours = KINDS[kind]
    info = modules[theirs]
    options = {"device": "cpu", "dtype": dtype, "requires_grad": False, "training": training}
    found = info.module_inputs_func(info, **options)
    for sample in found[:2] if large else found:
        made = sample.constructor_input
        layers = [
            cls(*made.args, **made.kwargs).to(dtype).train(training) for cls in (theirs, ours)
        ]
        (x,) = sample.forward_input.args
        if large:
            x = enlarged(x)
        with torch.no_grad():
            for own in layers[0].state_dict().values():
                if own.is_floating_point():
                    own.uniform_(0.5, 2)
        layers[1].load_state_dict(layers[0].state_dict())
        yield *layers, x


def enlarged(x):
    """Return other values of the same shape but for the rows, unless there are none."""
    return torch.randn(LARGE // (4 * x[0].numel()), *x.shape[1:]).to(x) if len(x) else x


def results(layer, x, dy):
    """Return the outputs of two calls, their gradients, and the state after."""
    x = x.detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return [y, *gradients, layer(x.detach()), *layer.state_dict().values()]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def same(theirs, ours, x):
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    exact = results(copy.deepcopy(theirs).double(), x.double(), dy.double())
    expected, found = (results(layer, x, dy) for layer in (theirs, ours))
    for triple in zip(found, expected, exact, strict=True):
        assert_no_worse(*triple, terms=x.numel())
    # A gradient keeps the order of its input in memory, where torch's 3-D ones do not.
    assert found[0].stride() == expected[0].stride()


def assert_no_worse(found, theirs, exact, *, terms=1):
    """Check the error against twice torch's, and some rounding of the largest value or sum."""
    if not found.numel() or not found.is_floating_point():
        torch.testing.assert_close(found, theirs)
        return
    error, allowed = ((each.double() - exact).abs().max().item() for each in (found, theirs))
    rounding = 1e-10 if found.dtype == torch.float64 else 8 * torch.finfo(found.dtype).eps
    size = max(exact.abs().max().item(), (terms / found.numel()) ** 0.5)  # of a sum of noise
    assert error <= 2 * allowed + rounding * max(1.0, size)


@kinds
@modes
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_and_strides_are_torchs(modules, kind, training, dtype, large):
    for theirs, ours, x in samples(modules, kind, training, dtype=dtype, large=large):
        same(theirs, ours, x)


@kinds
@modes
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_memory_of_other_orders_and_with_gaps(modules, kind, training, large):
    for theirs, ours, x in samples(modules, kind, training, large=large):
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        gaps = torch.stack([x, x], -1)[..., 0]
        for arranged in (last, gaps, x.flip(0)):
            same(copy.deepcopy(theirs), copy.deepcopy(ours), arranged)


@kinds
@modes
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's forward mode uses it
def test_gradients_of_first_and_second_order_and_batches_of_them(modules, kind, training):
    for _, ours, x in samples(modules, kind, training, dtype=torch.float64):
        ours.momentum = 0.0  # a function of its input
        inputs = (x.requires_grad_(), *ours.parameters())
        names = [name for name, _ in ours.named_parameters()]

        def call(x, *parameters, ours=ours, names=names):
            given = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(ours, given, (x,))

        options = {"check_batched_grad": True, "fast_mode": True}
        assert gradcheck(call, inputs, **options, check_forward_ad=True)
        assert gradgradcheck(call, inputs, **options)


@kinds
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_what_torch_refuses_is_refused_in_its_words(modules, kind, large):
    theirs, ours = KINDS[kind]
    info = modules[theirs]
    options = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": True}
    for error in info.module_error_inputs_func(info, **options):
        made = error.module_error_input.constructor_input
        (x,) = error.module_error_input.forward_input.args
        for cls in (theirs, ours):
            with pytest.raises(error.error_type, match=error.error_regex):
                cls(*made.args, **made.kwargs)(enlarged(x) if large else x)


@kinds
@modes
def test_it_is_made_copied_and_saved_as_torchs(modules, kind, training):
    for theirs, ours, x in samples(modules, kind, training):
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        loaded, copied = torch.load(file, weights_only=False), copy.deepcopy(ours)
        expected = ours(x)
        assert all(torch.equal(other(x), expected) for other in (loaded, copied))
        assert repr(ours) == repr(theirs)
        for dtype, device in itertools.product([torch.float64, torch.float16], ["cpu", "meta"]):
            made = type(ours)(
                x.shape[1], 1e-3, None, ours.affine, ours.track_running_stats, device, dtype
            )
            held = [*made.parameters(), *made.buffers()]
            assert {each.device.type for each in held} <= {device}
            assert {each.dtype for each in held} <= {dtype, torch.long}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_function_on_torchs_samples(functions, dtype):
    for sample in functions(dtype):
        calls = (batch_norm, dtype), (F.batch_norm, dtype), (F.batch_norm, torch.float64)
        for triple in zip(*(results_of(sample, *call) for call in calls), strict=True):
            assert_no_worse(*triple)


def results_of(sample, function, dtype):
    """Return the output, the gradients, and what became of the running statistics."""
    given = [
        t if t is None else t.detach().to(dtype, copy=True) for t in (sample.input, *sample.args)
    ]
    x, mean, variance, weight, bias = given
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*given, **sample.kwargs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    gradients = torch.autograd.grad(y, leaves, dy)
    return [y, *gradients, *(t for t in (mean, variance) if t is not None)]
