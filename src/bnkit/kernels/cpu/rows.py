"""Channels-last memory, and plain (N, C): each row holds one value of every channel.

A tile of rows at a time, which stays in the first cache; within it one vector of channels after
another, whose sums are in registers for all rows of the tile.
"""

from typing import Any

from bnkit.kernels.cpu.access import cast, get, give, pointer, put, size_of, take
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
from bnkit.kernels.cpu.lanes import length, spread
from bnkit.kernels.cpu.pointwise import activate, gradient
from bnkit.kernels.cpu.tasks import claimed_tasks

TILE = 16  # rows: measured, from 4 to 128, at 64 to 2,048 channels
ROWS = 128  # that a float32 lane sums before float64 takes over
ENOUGH = 16  # rows whose mean is a fair first guess


def rows_forward(job: Any) -> None:
    """`batch_norm_forward` and, where statistics are given, `batch_norm_inference`."""
    for part, channels, rows in claimed_tasks(job):
        if job.phase & GATHER and job.training:
            _gather_moments(job, part, channels, rows)
        if job.phase & FINISH:
            finish_forward(job, channels)
        if job.phase & APPLY:
            _apply_forward(job, channels, rows)


def rows_backward(job: Any) -> None:
    """`batch_norm_backward` and, where statistics are given, `batch_norm_inference_backward`."""
    for part, channels, rows in claimed_tasks(job):
        if job.phase & GATHER:
            _gather_gradients(job, part, channels, rows)
        if job.phase & FINISH:
            finish_backward(job, channels)
        if job.phase & APPLY and job.training:
            _apply_backward(job, channels, rows)


@compiled
def _gather_moments(job: Any, part: Any, channels: Any, rows: Any) -> None:
    x = pointer(job.x, job.sample)
    levels, sums, squares = _scratch(job, part)
    _first_means(x, levels, job, channels, rows)
    _clear(sums, squares, channels)
    zero = spread(cast(0.0, job.unit))
    step = length(zero)
    pooled = rows[0]
    for start in range(rows[0], rows[1], TILE):
        end = min(start + TILE, rows[1])
        for c in range(channels[0], channels[1], step):
            left = channels[1] - c
            level = take(levels, c, left, zero)
            s, q = zero, zero  # apart from those of other tiles: errors grow with fewer terms
            for row in range(start, end):
                d = take(x, row * job.channels + c, left, level) - level
                s, q = s + d, q + d * d
            give(sums, c, left, take(sums, c, left, zero) + s)
            give(squares, c, left, take(squares, c, left, zero) + q)
        if end - pooled >= ROWS or end == rows[1]:
            _pool(job, part, channels, float(pooled - rows[0]), float(end - pooled))
            _clear(sums, squares, channels)
            pooled = end


@compiled
def _pool(job: Any, part: Any, channels: Any, before: Any, more: Any) -> None:
    """Merge the sums of `more` rows, taken about the levels, with the moments of those before."""
    levels, sums, squares = _scratch(job, part)
    partial = pointer(job.partial, 1.0)
    counts = place_of_sums(job, part, 0)
    means, deviations = counts + job.channels, counts + 2 * job.channels
    for c in range(channels[0], channels[1]):
        s = float(get(sums, c)) / more
        count, mean, squared = merged(
            before,
            get(partial, means + c) if before else 0.0,
            get(partial, deviations + c) if before else 0.0,
            more,
            get(levels, c) + s,
            float(get(squares, c)) - s * s * more,
        )
        put(partial, counts + c, count)
        put(partial, means + c, mean)
        put(partial, deviations + c, squared)
        put(levels, c, mean)


@compiled
def _first_means(x: Any, levels: Any, job: Any, channels: Any, rows: Any) -> None:
    """Set `levels` to the mean of the first few rows of each channel."""
    zero = spread(cast(0.0, job.unit))
    some = min(ENOUGH, rows[1] - rows[0])
    share = spread(cast(1 / some, job.unit))
    for c in range(channels[0], channels[1], length(zero)):
        left, s = channels[1] - c, zero
        for row in range(rows[0], rows[0] + some):
            s = s + take(x, row * job.channels + c, left, zero)
        give(levels, c, left, s * share)


@compiled
def _apply_forward(job: Any, channels: Any, rows: Any) -> None:
    x, y = pointer(job.x, job.sample), pointer(job.y, job.sample)
    residual = pointer(job.residual, job.sample)
    zero = spread(cast(0.0, job.unit))
    for end in range(rows[1], rows[0], -TILE):
        for c in range(channels[0], channels[1], length(zero)):
            left = channels[1] - c
            mean, invstd, weight, bias = _normalisation(job, c, left)
            for row in range(max(rows[0], end - TILE), end):
                i = row * job.channels + c
                z = (take(x, i, left, zero) - mean) * invstd * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, zero)
                give(y, i, left, activate(z, job.activation))


@compiled
def _gather_gradients(job: Any, part: Any, channels: Any, rows: Any) -> None:
    x, dy = pointer(job.x, job.sample), pointer(job.dy, job.sample)
    dx = pointer(job.dx, job.sample)
    residual, dresidual = pointer(job.residual, job.sample), pointer(job.dresidual, job.sample)
    _, sums, products = _scratch(job, part)
    for c in range(channels[0], channels[1]):
        prepare(job, c)
    _clear(sums, products, channels)
    zero = spread(cast(0.0, job.unit))
    added = rows[0]
    for start in range(rows[0], rows[1], TILE):
        end = min(start + TILE, rows[1])
        for c in range(channels[0], channels[1], length(zero)):
            left = channels[1] - c
            mean, invstd, weight, bias = _normalisation(job, c, left)
            slope = _coefficients(job, SLOPE, c, left)
            s, p = take(sums, c, left, zero), take(products, c, left, zero)
            for row in range(start, end):
                i = row * job.channels + c
                x_hat = (take(x, i, left, mean) - mean) * invstd
                z = x_hat * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, zero)
                dz = gradient(take(dy, i, left, zero), z, job.activation)
                if not job.training:  # no gradient flows through statistics that were given
                    give(dx, i, left, dz * slope)
                    if job.dresidual:
                        give(dresidual, i, left, dz)
                s, p = s + dz, p + dz * x_hat
            give(sums, c, left, s)
            give(products, c, left, p)
        if end - added >= ROWS or end == rows[1]:
            _add(job, part, channels, added > rows[0])
            _clear(sums, products, channels)
            added = end


@compiled
def _add(job: Any, part: Any, channels: Any, some: Any) -> None:
    """Add the sums of the last rows to those of `some` rows before."""
    _, sums, products = _scratch(job, part)
    partial = pointer(job.partial, 1.0)
    first = place_of_sums(job, part, 0)
    second = first + job.channels
    for c in range(channels[0], channels[1]):
        before = get(partial, first + c) if some else 0.0
        put(partial, first + c, before + get(sums, c))
        before = get(partial, second + c) if some else 0.0
        put(partial, second + c, before + get(products, c))


@compiled
def _apply_backward(job: Any, channels: Any, rows: Any) -> None:
    x, dy, dx = (
        pointer(job.x, job.sample),
        pointer(job.dy, job.sample),
        pointer(job.dx, job.sample),
    )
    residual, dresidual = pointer(job.residual, job.sample), pointer(job.dresidual, job.sample)
    zero = spread(cast(0.0, job.unit))
    for end in range(rows[1], rows[0], -TILE):
        for c in range(channels[0], channels[1], length(zero)):
            left = channels[1] - c
            mean, invstd, weight, bias = _normalisation(job, c, left)
            mean_dz = _coefficients(job, MEAN_DZ, c, left)
            mean_dz_x_hat = _coefficients(job, MEAN_DZ_X_HAT, c, left)
            slope = _coefficients(job, SLOPE, c, left)
            for row in range(max(rows[0], end - TILE), end):
                i = row * job.channels + c
                x_hat = (take(x, i, left, zero) - mean) * invstd
                z = x_hat * weight + bias
                if job.residual:
                    z = z + take(residual, i, left, zero)
                dz = gradient(take(dy, i, left, zero), z, job.activation)
                if job.dresidual:
                    give(dresidual, i, left, dz)
                give(dx, i, left, (dz - mean_dz - x_hat * mean_dz_x_hat) * slope)


@compiled
def _clear(sums: Any, others: Any, channels: Any) -> None:
    for c in range(channels[0], channels[1]):
        put(sums, c, 0.0)
        put(others, c, 0.0)


@inlined
def _normalisation(job: Any, c: Any, left: Any) -> Any:
    return (
        _coefficients(job, MEAN, c, left),
        _coefficients(job, INVSTD, c, left),
        _coefficients(job, WEIGHT, c, left),
        _coefficients(job, BIAS, c, left),
    )


@inlined
def _coefficients(job: Any, row: Any, c: Any, left: Any) -> Any:
    table = pointer(job.table, job.unit)
    return take(table, row * job.channels + c, left, spread(cast(0.0, job.unit)))


@inlined
def _scratch(job: Any, part: Any) -> Any:
    """Three values of each channel, in the dtype of the arithmetic."""
    start = job.scratch + part * 3 * job.channels * size_of(job.unit)
    row = job.channels * size_of(job.unit)
    return (
        pointer(start, job.unit),
        pointer(start + row, job.unit),
        pointer(start + 2 * row, job.unit),
    )
