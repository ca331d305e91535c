"""What the GPU kernels must do, as checks by name that run on a device or in Triton's interpreter.

    TRITON_INTERPRET=1 PYTHONPATH=tests python tests/kernels/gpu_checks.py

prints {name: what went wrong, or null} as JSON. The variable must be set before a kernel is
imported, and tensors lie on the CPU then; the interpreter wants a process of its own.
"""

import contextlib
import itertools
import json
import traceback
from dataclasses import dataclass
from functools import partial
from unittest import mock

import pytest
import torch

from bnkit.kernels import reference
from bnkit.kernels.activations import ACTIVATIONS
from cases import CASES, Case, channels_last, seeded

EPS = 1e-5
ORDINARY = CASES[0]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# The interpreter cuts a float32 off where it stores it as bfloat16; a device rounds.
TOLERANCE_WHERE_CUT_OFF = {**TOLERANCE, torch.bfloat16: 2.4e-2}
HALVED = (ORDINARY, CASES[2], CASES[13])  # the cases that half precision is tried on
MOST_INTERPRETED = 10_000  # elements
SMALL = Case("small", (5, 3, 4, 5))
PARTS = [(), ("weight",), ("bias",), ("residual",), ("weight", "bias", "residual")]


@dataclass(frozen=True)
class Problem:
    """All that a batch norm is given; `weight`, `bias` and `residual` may be None."""

    x: torch.Tensor
    dy: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    activation: str | None = None

    def given(self):
        return {"eps": EPS, "activation": self.activation, "residual": self.residual}

    def in_float64(self):
        wide = {
            name: None if t is None else t.double()
            for name, t in vars(self).items()
            if name != "activation"
        }
        return Problem(**wide, activation=self.activation)


def problem(case, dtype, device, *, activation="silu", parts=PARTS[-1]):
    x = case.input(dtype)

    def draw(seed, shape, wanted=dtype):
        values = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
        return values.to(device=device, dtype=wanted)

    return Problem(
        x=x.to(device),
        dy=draw(1, x.shape),
        weight=draw(2, x.shape[1], torch.float32) if "weight" in parts else None,
        bias=draw(3, x.shape[1], torch.float32) if "bias" in parts else None,
        residual=draw(4, x.shape) if "residual" in parts else None,
        activation=activation,
    )


def results(kernels, p, *, training, statistics=None):
    """Return y, the gradients and the statistics by which x was normalised."""
    parameters = p.weight, p.bias
    if training:
        y, *statistics = kernels.batch_norm_forward(p.x, *parameters, **p.given())
    else:
        y = kernels.batch_norm_inference(p.x, *statistics, *parameters, **p.given())
    gradients = kernels.batch_norm_backward(
        p.dy, p.x, *statistics, *parameters, **p.given(), training=training
    )
    names = ("y", "dx", "dweight", "dbias", "dresidual", "mean", "variance")
    return dict(zip(names, (y, *gradients, *statistics), strict=True))


def assert_agree(case, p):
    """Compare with the reference in float64, each result on the scale of the terms it sums."""
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton, as the file must not

    interpreted = not p.x.is_cuda
    exact = p.in_float64()
    _, mean, variance = reference.batch_norm_forward(exact.x, None, None, eps=EPS)
    slope = (variance + EPS).rsqrt().max()
    amount = exact.dy.abs().transpose(0, 1).flatten(1).sum(1).max()
    reach = 1 + exact.dy.abs().max()
    deviation = case.scale + EPS**0.5
    scales = {
        "y": 5.0,
        "dx": 5 * slope * reach,
        "dweight": 5 * amount,
        "dbias": amount,
        "dresidual": reach,
        "mean": deviation,
        "variance": deviation**2,
    }
    tolerance = (TOLERANCE_WHERE_CUT_OFF if interpreted else TOLERANCE)[p.x.dtype]
    tolerance += 2**-24 * case.condition(EPS)
    for training in (True, False):
        expected = results(reference, exact, training=training, statistics=(mean, variance))
        statistics = mean.float(), variance.float()
        got = results(gpu, p, training=training, statistics=statistics)
        for name, value in expected.items():
            if value is None:
                assert got[name] is None, name
                continue
            atol = float(tolerance * scales[name])
            torch.testing.assert_close(
                got[name].double(),
                value,
                rtol=tolerance,
                atol=atol,
                msg=lambda text, what=(name, training): f"{what}: {text}",
            )


@contextlib.contextmanager
def many_small_tiles():
    """Cut into tiles of 128 values, several programs a channel and several tiles a program."""
    from bnkit.kernels.gpu import tiling  # noqa: PLC0415  imports triton

    small = {
        "STREAMED_TILE": 128,
        "WHOLE_TILE": 0,
        "MERGED_PARTS": 2,
        "PROGRAMS_PER_MULTIPROCESSOR": 6,
        "_sides_of_stream": lambda view, _: (8, 1) if view.inner == 1 else (2, 16),
    }
    with mock.patch.multiple(tiling, **small):
        yield


TILINGS = {"": contextlib.nullcontext, " in many tiles": many_small_tiles}


def agree(case, dtype, tiles, device, **drawn):
    with tiles():
        assert_agree(case, problem(case, dtype, device, **drawn))


def spread_as_in_the_reference(place, bad, activations, tiles, device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    for activation in activations:
        p = problem(SMALL, torch.float32, device, activation=activation)
        getattr(p, place)[2, 1, 3, 3] = bad
        statistics = torch.zeros(3, device=device), torch.ones(3, device=device)
        for training in (True, False):
            with tiles():
                got = results(gpu, p, training=training, statistics=statistics)
            expected = results(reference, p, training=training, statistics=statistics)
            for name in ("mean", "variance"):  # not finite in the same channels
                assert torch.equal(got.pop(name).isfinite(), expected.pop(name).isfinite()), name
            for name, value in expected.items():
                torch.testing.assert_close(
                    got[name], value, equal_nan=True, rtol=1e-5, atol=1e-5, msg=f"{name} {training}"
                )


def variance_is_exact(arrange, first, tiles, device):
    """At mean 4096 and deviation 1: float32 holds 11 bits of each deviation."""
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    x = arrange(torch.randn(32, 3, 6, 7, generator=seeded(0)) + 4096).to(device)
    x[0, :, 0, 0] = first
    with tiles():
        _, mean, variance = gpu.batch_norm_forward(x, None, None, eps=EPS)
    exact = x.double().transpose(0, 1).flatten(1)
    # In the interpreter NumPy adds all rows one after the other, where a device adds in a tree.
    rtol = 2e-7 if x.is_cuda and first == 4096 else 1e-5
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=max(rtol, 2**-22), atol=0)
    torch.testing.assert_close(variance.double(), exact.var(1, correction=0), rtol=rtol, atol=0)


def constant_channels_give_exactly_the_bias(tiles, device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    bias = torch.tensor([0.3, -7.0], device=device)
    with tiles():
        x = torch.full((700, 2), 0.1, device=device)
        y, _, variance = gpu.batch_norm_forward(x, None, bias, eps=EPS)
    assert torch.equal(y, bias.expand(700, 2))
    assert variance.tolist() == [0, 0]


def memory_format_is_kept(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    for x in (
        channels_last(torch.randn(4, 6, 5, 3)),
        torch.randn(2, 3, 4, 3, 2).contiguous(memory_format=torch.channels_last_3d),
        torch.randn(4, 7, 6).transpose(1, 2),
        torch.randn(4, 6, 1, 1),
    ):
        # `dy` and `residual` lie otherwise, as after a concatenation.
        p = Problem(x.to(device), torch.randn(x.shape, device=device), None, None, x.to(device))
        got = results(gpu, p, training=True)
        assert {got[n].stride() for n in ("y", "dx", "dresidual")} == {x.stride()}, x.shape
        expected = results(reference, p, training=True)
        torch.testing.assert_close(got["dx"], expected["dx"], rtol=1e-5, atol=1e-5)


def gradients_have_the_dtypes_of_their_tensors(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    p = problem(ORDINARY, torch.bfloat16, device, activation=None)
    half = Problem(p.x, p.dy, p.weight.bfloat16(), p.bias.bfloat16(), p.residual)
    for got, parameters in ((p, torch.float32), (half, torch.bfloat16)):
        dtypes = {name: t.dtype for name, t in results(gpu, got, training=True).items()}
        assert {dtypes[n] for n in ("y", "dx", "dresidual")} == {torch.bfloat16}
        assert {dtypes[n] for n in ("dweight", "dbias")} == {parameters}
        assert {dtypes[n] for n in ("mean", "variance")} == {torch.float32}


def parameters_may_be_views_with_gaps(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    x, pairs = torch.randn(8, 3, device=device), torch.randn(3, 2, device=device)
    y, mean, variance = gpu.batch_norm_forward(x, pairs[:, 0], pairs[:, 1], eps=EPS)
    apart = [pairs[:, i].clone() for i in range(2)]
    assert torch.equal(y, gpu.batch_norm_inference(x, mean, variance, *apart, eps=EPS))


def mistakes_are_explained(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    def forward(shape, **given):
        x = torch.zeros(shape, dtype=given.pop("dtype", torch.float32), device=device)
        return gpu.batch_norm_forward(x, None, None, eps=EPS, **given)

    with pytest.raises(ValueError, match=r"shape \(0, 3\) is empty"):
        forward((0, 3))
    with pytest.raises(TypeError, match=r"`x` is torch\.float64 .* convert it"):
        forward((2, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match="`activation` is 'swish': choose one of"):
        forward((2, 3), activation="swish")


def empty_input_gives_empty_output_in_inference(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    p = problem(Case("empty", (0, 3)), torch.float32, device)
    statistics = torch.zeros(3, device=device), torch.ones(3, device=device)
    got = results(gpu, p, training=False, statistics=statistics)
    assert got["y"].shape == got["dx"].shape == (0, 3)
    assert got["dweight"].tolist() == got["dbias"].tolist() == [0, 0, 0]


def bit_equal_from_run_to_run(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    for arrange in (torch.Tensor.contiguous, channels_last):
        x, dy = (arrange(torch.randn(32, 64, 56, 56, device=device)) for _ in range(2))
        p = Problem(x, dy, None, None, None, "relu")
        first, *others = (results(gpu, p, training=True) for _ in range(5))
        for other in others:
            assert all(torch.equal(first[n], other[n]) for n in ("y", "dx", "mean", "variance"))


def tensors_beyond_2_to_the_31_elements(device):
    from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

    x = torch.zeros(2**21 + 8, 1024, dtype=torch.bfloat16, device=device)  # 4 GiB
    x[-1] = 5.0
    mean, variance = torch.zeros(1024, device=device), torch.ones(1024, device=device)
    y = gpu.batch_norm_inference(x, mean, variance, None, None, eps=0.0)
    assert torch.equal(y[-1], x[-1])
    assert not y[:-1].any()


def _on_cases():
    # Every case in float32, where errors are least; half precision where it differs.
    for case, dtype, how in itertools.product(CASES, DTYPES, TILINGS):
        tried = dtype == torch.float32 or case in HALVED
        long = case is CASES[1] and how  # and shows nothing new
        if tried and not long and case.fits(dtype):
            yield f"{case}, {dtype}{how}", partial(agree, case, dtype, TILINGS[how])


def _on_choices():
    for name in ACTIVATIONS:
        check = partial(agree, ORDINARY, torch.float32, TILINGS[""], activation=name)
        yield f"activation {name}", check
    for parts, how in itertools.product(PARTS, TILINGS):
        check = partial(agree, SMALL, torch.float32, TILINGS[how], activation="relu", parts=parts)
        yield f"with {' and '.join(parts) or 'neither parameters nor residual'}{how}", check


def _on_values():
    for place, bad, how in itertools.product(("x", "dy", "residual"), BAD, TILINGS):
        through = ("relu",) if how else (None, "relu", "leaky_relu", "tanh")
        check = partial(spread_as_in_the_reference, place, float(bad), through, TILINGS[how])
        yield f"{bad} in {place}{how}", check
    # What all deviations are taken from, the first value, may be an outlier.
    for layout, first, how in itertools.product(LAYOUTS, (4096.0, 1e4), TILINGS):
        check = partial(variance_is_exact, layout, first, TILINGS[how])
        yield f"variance far from zero, {layout.__name__}, first value {first:g}{how}", check
    for how, tiles in TILINGS.items():
        check = partial(constant_channels_give_exactly_the_bias, tiles)
        yield f"constant channels give exactly the bias{how}", check


BAD = ("nan", "inf", "-inf")
LAYOUTS = (torch.Tensor.contiguous, channels_last)
OTHERS = (
    memory_format_is_kept,
    gradients_have_the_dtypes_of_their_tensors,
    parameters_may_be_views_with_gaps,
    mistakes_are_explained,
    empty_input_gives_empty_output_in_inference,
)
CHECKS = {
    **dict(_on_cases()),
    **dict(_on_choices()),
    **dict(_on_values()),
    **{check.__name__.replace("_", " "): check for check in OTHERS},
}
# What the interpreter cannot show: it runs one program after the other, slowly.
DEVICE_CHECKS = {
    check.__name__.replace("_", " "): check
    for check in (bit_equal_from_run_to_run, tensors_beyond_2_to_the_31_elements)
}
TOO_LARGE = {
    name for name in CHECKS for case in CASES
    if name.startswith(f"{case}, ") and case.input(torch.float32).numel() >= MOST_INTERPRETED
}  # fmt: skip


def main():
    torch.set_num_threads(1)
    outcomes = {}
    for name in [name for name in CHECKS if name not in TOO_LARGE]:
        try:
            CHECKS[name](torch.device("cpu"))
        except Exception:  # noqa: BLE001  reported under its name
            outcomes[name] = traceback.format_exc()
        else:
            outcomes[name] = None
    print(json.dumps(outcomes))  # noqa: T201  what the test reads


if __name__ == "__main__":
    main()
