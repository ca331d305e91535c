"""Channels-first memory: each channel of each sample is one plane of `space` values on end."""

from typing import Any

from bnkit.kernels.cpu.access import cast, get, give, pointer, put, take
from bnkit.kernels.cpu.compiling import compiled, inlined
from bnkit.kernels.cpu.finishing import (
    finish_backward,
    finish_forward,
    merged,
    place_of_sums,
    prepare,
)
from bnkit.kernels.cpu.jobs import (
    APPLY,
    BIAS,
    FINISH,
    GATHER,
    INVSTD,
    MEAN,
    MEAN_DZ,
    MEAN_DZ_X_HAT,
    SLOPE,
    WEIGHT,
)
from bnkit.kernels.cpu.lanes import first, length, spread, total
from bnkit.kernels.cpu.pointwise import activate, gradient
from bnkit.kernels.cpu.tasks import claimed_tasks

STEPS = 128  # that a float32 lane sums before float64 takes over
FEW = 16  # of them are summed apart, so that errors grow with fewer terms
ENOUGH = 64  # values whose mean is a fair first guess


def planes_forward(job: Any) -> None:
    """`batch_norm_forward` and, where statistics are given, `batch_norm_inference`."""
    for part, channels, samples in claimed_tasks(job):
        if job.phase & GATHER and job.training:
            _gather_moments(job, part, channels, samples)
        if job.phase & FINISH:
            finish_forward(job, channels)
        if job.phase & APPLY:
            _apply_forward(job, channels, samples)


def planes_backward(job: Any) -> None:
    """`batch_norm_backward` and, where statistics are given, `batch_norm_inference_backward`."""
    for part, channels, samples in claimed_tasks(job):
        if job.phase & GATHER:
            _gather_gradients(job, part, channels, samples)
        if job.phase & FINISH:
            finish_backward(job, channels)
        if job.phase & APPLY and job.training:
            _apply_backward(job, channels, samples)


@compiled
def _gather_moments(job: Any, part: Any, channels: Any, samples: Any) -> None:
    partial = pointer(job.partial, 1.0)
    for c in range(channels[0], channels[1]):
        count, mean, deviations = _moments(job, c, samples)
        at = place_of_sums(job, part, c)
        put(partial, at, count)
        put(partial, at + job.channels, mean)
        put(partial, at + 2 * job.channels, deviations)


@compiled
def _moments(job: Any, c: Any, samples: Any) -> Any:
    """Count, mean and squared deviations of a channel, which is read once.

    Values are summed as deviations from the mean of those before them, a few at first and then
    more: a mean far from zero costs no digits, and a jump of it makes more variance than rounding.
    """
    x = pointer(job.x, job.sample)
    level = _first_mean(x, job, c, samples)
    zero = spread(cast(0.0, job.unit))
    piece = STEPS * length(level)
    sums, squares, steps, summed, enough = zero, zero, 0, 0, 8
    count, mean, deviations = 0.0, 0.0, 0.0
    for n in range(samples[0], samples[1]):
        plane = (n * job.channels + c) * job.space
        for start in range(0, job.space, piece):
            size = min(piece, job.space - start)
            for begin in range(0, size, FEW * length(level)):
                s, q = zero, zero
                for at in range(begin, min(begin + FEW * length(level), size), length(level)):
                    d = take(x, plane + start + at, size - at, level) - level
                    s, q, steps = s + d, q + d * d, steps + 1
                sums, squares = sums + s, squares + q
            summed += size
            if steps >= enough:
                pooled = _pooled(count, mean, deviations, summed, level, sums, squares)
                count, mean, deviations = pooled
                level = spread(cast(mean, job.unit))
                sums, squares, steps, summed = zero, zero, 0, 0
                enough = min(STEPS, 4 * enough)
    if summed:
        return _pooled(count, mean, deviations, summed, level, sums, squares)
    return count, mean, deviations


@compiled
def _first_mean(x: Any, job: Any, c: Any, samples: Any) -> Any:
    """The mean of the first few values of a channel, in all lanes."""
    zero = spread(cast(0.0, job.unit))
    sums, summed = zero, 0
    for n in range(samples[0], samples[1]):
        plane = (n * job.channels + c) * job.space
        size = min(job.space, STEPS * length(zero))
        for at in range(0, size, length(zero)):
            sums = sums + take(x, plane + at, size - at, zero)
        summed += size
        if summed >= ENOUGH:
            break
    return spread(cast(total(sums) / summed, job.unit))


@compiled
def _pooled(
    count: Any, mean: Any, deviations: Any, summed: Any, level: Any, sums: Any, squares: Any
) -> Any:
    """The moments so far, merged with those of `summed` values, given as sums about `level`."""
    s = total(sums) / summed
    of_sums = total(squares) - s * s * summed
    return merged(count, mean, deviations, float(summed), first(level) + s, of_sums)


@compiled
def _apply_forward(job: Any, channels: Any, samples: Any) -> None:
    x, y = pointer(job.x, job.sample), pointer(job.y, job.sample)
    residual = pointer(job.residual, job.sample)
    for c in range(channels[0], channels[1]):
        mean, invstd = _coefficient(job, MEAN, c), _coefficient(job, INVSTD, c)
        weight, bias = _coefficient(job, WEIGHT, c), _coefficient(job, BIAS, c)
        for n in range(samples[1] - 1, samples[0] - 1, -1):
            plane = (n * job.channels + c) * job.space
            for at in range(0, job.space, length(mean)):
                i, left = plane + at, job.space - at
                z = (take(x, i, left, mean) - mean) * invstd * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, mean)
                give(y, i, left, activate(z, job.activation))


@compiled
def _gather_gradients(job: Any, part: Any, channels: Any, samples: Any) -> None:
    x, dy = pointer(job.x, job.sample), pointer(job.dy, job.sample)
    dx = pointer(job.dx, job.sample)
    residual, dresidual = pointer(job.residual, job.sample), pointer(job.dresidual, job.sample)
    partial = pointer(job.partial, 1.0)
    for c in range(channels[0], channels[1]):
        prepare(job, c)
        mean, invstd = _coefficient(job, MEAN, c), _coefficient(job, INVSTD, c)
        weight, bias = _coefficient(job, WEIGHT, c), _coefficient(job, BIAS, c)
        slope, zero = _coefficient(job, SLOPE, c), spread(cast(0.0, job.unit))
        sums, products, steps = zero, zero, 0
        sum_dz, sum_dz_x_hat = 0.0, 0.0
        for n in range(samples[0], samples[1]):
            plane = (n * job.channels + c) * job.space
            for at in range(0, job.space, length(mean)):
                i, left = plane + at, job.space - at
                x_hat = (take(x, i, left, mean) - mean) * invstd
                z = x_hat * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, mean)
                dz = gradient(take(dy, i, left, zero), z, job.activation)
                if not job.training:  # no gradient flows through statistics that were given
                    give(dx, i, left, dz * slope)
                    if job.dresidual:
                        give(dresidual, i, left, dz)
                sums, products, steps = sums + dz, products + dz * x_hat, steps + 1
                if steps == STEPS:
                    sum_dz += total(sums)
                    sum_dz_x_hat += total(products)
                    sums, products, steps = zero, zero, 0
        start = place_of_sums(job, part, c)
        put(partial, start, sum_dz + total(sums))
        put(partial, start + job.channels, sum_dz_x_hat + total(products))


@compiled
def _apply_backward(job: Any, channels: Any, samples: Any) -> None:
    x, dy, dx = (
        pointer(job.x, job.sample),
        pointer(job.dy, job.sample),
        pointer(job.dx, job.sample),
    )
    residual, dresidual = pointer(job.residual, job.sample), pointer(job.dresidual, job.sample)
    for c in range(channels[0], channels[1]):
        mean, invstd = _coefficient(job, MEAN, c), _coefficient(job, INVSTD, c)
        weight, bias = _coefficient(job, WEIGHT, c), _coefficient(job, BIAS, c)
        mean_dz, mean_dz_x_hat = _coefficient(job, MEAN_DZ, c), _coefficient(job, MEAN_DZ_X_HAT, c)
        slope = _coefficient(job, SLOPE, c)
        for n in range(samples[1] - 1, samples[0] - 1, -1):
            plane = (n * job.channels + c) * job.space
            for at in range(0, job.space, length(mean)):
                i, left = plane + at, job.space - at
                x_hat = (take(x, i, left, mean) - mean) * invstd
                z = x_hat * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, mean)
                dz = gradient(take(dy, i, left, mean), z, job.activation)
                if job.dresidual:
                    give(dresidual, i, left, dz)
                give(dx, i, left, (dz - mean_dz - x_hat * mean_dz_x_hat) * slope)


@inlined
def _coefficient(job: Any, row: Any, c: Any) -> Any:
    return spread(get(pointer(job.table, job.unit), row * job.channels + c))
