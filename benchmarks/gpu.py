"""BN + ReLU, forward and backward, on a GPU: our Triton kernels against torch's ways.

    python benchmarks/gpu.py [--batch 32 256] [--dtype bfloat16] [--layout NHWC] [--rounds 21]
    python benchmarks/gpu.py --rehearse     # the plumbing, on a machine without a GPU

ResNet-50's shapes in both layouts, bfloat16 and float32. Correctness first: against torch in
float64. Then medians of interleaved rounds, each over calls enough to last about a millisecond;
all ways run behind autograd, and pay for their own launches. Nothing empties the second-level
cache, so that small tensors are found there, by every way and by the copy.

`band` is the traffic of the fewest passes over memory (3 forward and 5 backward; 2 and 3 where a
channel stays on the chip) by the time, as a share of what a copy of the same tensor reaches.
The figures go to benchmarks/gpu.json; a run of a part replaces that part,
if the device is the same.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnkit.experiments.provenance import environment
from bnkit.kernels import reference

FIGURES = Path(__file__).with_suffix(".json")
EPS = 1e-5
# (channels, height and width) of the batch norms of ResNet-50 for 224 × 224 images.
SHAPES = (
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14),
    (1024, 14), (512, 14), (512, 7), (2048, 7),
)  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
Step = Callable[[], Any]  # one forward and backward


@dataclass(frozen=True)
class Problem:
    """The tensors of one case."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor

    @staticmethod
    def draw(batch: int, channels: int, side: int, how: dict[str, Any], device: str) -> "Problem":
        """Return random tensors, in the dtype and memory format that `how` says."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        x, dy = (
            normal(batch, channels, side, side)
            .to(how["dtype"])
            .contiguous(memory_format=how["memory_format"])
            for _ in range(2)
        )
        return Problem(x, dy, 1 + 0.1 * normal(channels), 0.1 * normal(channels))


def fused_by(kernels: Any) -> Callable[..., Tensor]:
    """Return BN + ReLU by a kernel module, behind autograd."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y, *statistics = kernels.batch_norm_forward(x, weight, bias, eps=EPS, activation="relu")
            ctx.save_for_backward(x, *statistics, weight, bias)
            return y  # type: ignore[no-any-return]  # any of the kernel modules

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:
            saved = ctx.saved_tensors
            return kernels.batch_norm_backward(dy, *saved, eps=EPS, activation="relu")[:3]

    return Fused.apply


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS))


def both_ways(function: Callable[..., Tensor], p: Problem) -> tuple[Tensor, ...]:
    """Return y, dx, dweight, dbias through autograd."""
    leaves = [t.detach().requires_grad_() for t in (p.x, p.weight, p.bias)]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, p.dy)


def ways(p: Problem, *, rehearse: bool) -> dict[str, Step]:
    """Return what is compared; in a rehearsal, what can stand for it without a GPU."""
    if rehearse:
        ours, compiled = fused_by(reference), batch_norm_relu
    else:
        from bnkit.kernels import gpu  # noqa: PLC0415  imports triton

        torch.compiler.reset()  # each shape compiled for itself, as in a training script
        ours, compiled = fused_by(gpu), torch.compile(batch_norm_relu, dynamic=False)
    return {
        "bnkit": partial(both_ways, ours, p),
        "eager": partial(both_ways, batch_norm_relu, p),
        "compile": partial(both_ways, compiled, p),
        "bnkit again": partial(both_ways, ours, p),  # the noise of the measurement
        "copy": p.dy.clone,
    }


def largest_error(p: Problem, step: Step) -> float:
    """Return the largest error over y, dx, dweight and dbias, relative to the largest value."""
    wide = Problem(p.x.double(), p.dy.double(), p.weight.double(), p.bias.double())
    exact = both_ways(batch_norm_relu, wide)
    # Where z is 0 to rounding, ReLU's gradient is either; those few places are left out.
    z = F.batch_norm(wide.x, None, None, wide.weight, wide.bias, training=True, eps=EPS)
    clear = z.abs() > 1e-4
    errors = []
    for got, expected in zip(step(), exact, strict=True):
        gap = (got.double() - expected).abs()
        gap = gap[clear] if gap.shape == clear.shape else gap
        errors.append(float(gap.max() / expected.abs().max()))
    return max(errors)


def seconds_of(step: Step, calls: int, device: str) -> float:
    """Return the seconds of one call, from events on the device where there is one."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - began) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def interleaved(steps: dict[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of each way; every round measures all, in turning order."""
    calls = {}
    for name, step in steps.items():
        for _ in range(3):  # compile, warm up
            step()
        calls[name] = max(1, min(200, int(1e-3 / max(seconds_of(step, 1, device), 1e-7))))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(seconds_of(steps[name], calls[name], device))
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one case."""
    shape = case["batch"], case["channels"], case["side"]
    p = Problem.draw(*shape, case["how"], options.device)
    steps = ways(p, rehearse=options.rehearse)
    errors = {name: largest_error(p, steps[name]) for name in ("bnkit", "eager")}
    # No worse than torch's own, or than the last digit of the dtype.
    limit = max(TOLERANCE[p.x.dtype], 2 * errors["eager"])
    assert errors["bnkit"] <= limit, f"{case}: the error is {errors['bnkit']}, allowed is {limit}"
    seconds = interleaved(steps, options.rounds, options.device)
    return {
        "case": f"{shape[0]}×{shape[1]}×{shape[2]}×{shape[2]}",
        "dtype": str(p.x.dtype).removeprefix("torch."),
        "layout": case["how"]["layout"],
        "microseconds": {name: round(1e6 * s, 2) for name, s in seconds.items()},
        "error": errors,
        "eager / bnkit": seconds["eager"] / seconds["bnkit"],
        "compile / bnkit": seconds["compile"] / seconds["bnkit"],
        "noise": seconds["bnkit again"] / seconds["bnkit"],
        "bandwidth": passes_of(p) / 2 * seconds["copy"] / seconds["bnkit"],  # a copy is 2 passes
        "mebibytes": p.x.numel() * p.x.element_size() / 2**20,
    }


def passes_of(p: Problem) -> int:
    """Return how often forward and backward together must read or write a tensor of this size."""
    try:
        from bnkit.kernels.gpu.tiling import tiling_of_whole_channels  # noqa: PLC0415  triton
        from bnkit.kernels.gpu.views import collapse  # noqa: PLC0415
    except ImportError:  # a rehearsal without triton
        return 8
    x, view = collapse(p.x)
    return 8 if tiling_of_whole_channels(view, x.element_size()) is None else 5


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return the cases that were asked for; a few small ones in a rehearsal."""
    batches, shapes = ([2], SHAPES[6:8]) if options.rehearse else (options.batch, SHAPES)
    for batch, dtype, layout, shape in product(batches, options.dtype, options.layout, shapes):
        how = {"dtype": DTYPES[dtype], "memory_format": LAYOUTS[layout], "layout": layout}
        yield {"batch": batch, "channels": shape[0], "side": shape[1], "how": how}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return geometric means by dtype and layout; bandwidth over tensors of 32 MiB and more."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["layout"]), []).append(row)
    return [
        {
            "dtype": dtype,
            "layout": layout,
            **{
                name: statistics.geometric_mean(row[name] for row in group)
                for name in ("eager / bnkit", "compile / bnkit")
            },
            "bandwidth of large": _mean([r["bandwidth"] for r in group if r["mebibytes"] >= 32]),
            "slowest against eager": min(row["eager / bnkit"] for row in group),
        }
        for (dtype, layout), group in groups.items()
    ]


def _mean(values: list[float]) -> float | None:
    return statistics.geometric_mean(values) if values else None


def line(row: dict[str, Any]) -> str:
    times = row["microseconds"]
    return (
        f"{row['case']:>18} {row['dtype']:>9} {row['layout']} "
        + "".join(f"{times[name]:>10.1f}" for name in ("bnkit", "eager", "compile", "copy"))
        + f"{row['eager / bnkit']:>8.2f}{row['compile / bnkit']:>8.2f}"
        + f"{row['bandwidth']:>8.0%}{row['noise']:>7.2f}"
    )


def main() -> None:
    options = _options()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: `--rehearse` tries the plumbing without one")
    print(f"{'microseconds':>34}{'bnkit':>10}{'eager':>10}{'compile':>10}{'copy':>10}", end="")
    print(f"{'×eager':>8}{'×comp.':>8}{'band':>8}{'noise':>7}")
    rows = []
    for case in cases(options):
        rows.append(measure(case, options))
        print(line(rows[-1]), flush=True)
    where = _where(options.device)
    rows = [*_kept(where, rows), *rows]
    figures = {"environment": where, "summary": summary(rows), "cases": rows}
    print(json.dumps(figures["summary"], indent=1))
    if not options.rehearse:
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=[*LAYOUTS])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small; writes nothing")
    options = parser.parse_args()
    options.device = "cpu" if options.rehearse else "cuda"
    return options


def _kept(where: dict[str, str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of earlier runs on this device that were not measured again."""
    if not FIGURES.exists():
        return []
    earlier = json.loads(FIGURES.read_text())
    if earlier["environment"].get("device") != where.get("device"):
        return []
    again = {(row["case"], row["dtype"], row["layout"]) for row in rows}
    return [r for r in earlier["cases"] if (r["case"], r["dtype"], r["layout"]) not in again]


def _where(device: str) -> dict[str, str]:
    if device == "cpu":
        return environment()
    import triton  # noqa: PLC0415  missing where there is no GPU

    return {
        **environment(),
        "device": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


if __name__ == "__main__":
    main()
