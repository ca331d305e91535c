"""Between the passes over a tensor: pool the sums of all parts, and derive the coefficients."""

import math
from typing import Any

from bnkit.kernels.cpu.access import cast, get, pointer, put
from bnkit.kernels.cpu.compiling import compiled, inlined
from bnkit.kernels.cpu.jobs import (
    BIAS,
    INVSTD,
    MEAN,
    MEAN_DZ,
    MEAN_DZ_X_HAT,
    SLOPE,
    WEIGHT,
)


@inlined
def merged(count: Any, mean: Any, deviations: Any, more: Any, mean_of_more: Any, added: Any) -> Any:
    """Chan's merge of two sets of moments (see `bnkit.moments`)."""
    everything = count + more
    gap = mean_of_more - mean
    return (
        everything,
        mean + gap * (more / everything),
        deviations + added + gap * gap * (count * more / everything),
    )


@inlined
def place_of_sums(job: Any, part: Any, channel: Any) -> Any:
    """Where in `partial` the first of three sums is; the others follow `channels` apart."""
    return 3 * part * job.channels + channel


@compiled
def finish_forward(job: Any, channels: Any) -> None:
    """Write mean and variance, where the batch has to give them, and all coefficients."""
    partial = pointer(job.partial, 1.0)
    means, variances = pointer(job.mean, job.unit), pointer(job.variance, job.unit)
    for c in range(channels[0], channels[1]):
        if job.training:
            count, mean, deviations = 0.0, 0.0, 0.0
            for part in range(job.parts):
                at = place_of_sums(job, part, c)
                count, mean, deviations = merged(
                    count,
                    mean,
                    deviations,
                    get(partial, at),
                    get(partial, at + job.channels),
                    get(partial, at + 2 * job.channels),
                )
            put(means, c, mean)
            put(variances, c, deviations / count)
        prepare(job, c)


@compiled
def prepare(job: Any, c: Any) -> None:
    """Write the coefficients by which channel `c` is normalised."""
    table = pointer(job.table, job.unit)
    variance = float(get(pointer(job.variance, job.unit), c))
    put(table, MEAN * job.channels + c, get(pointer(job.mean, job.unit), c))
    invstd = cast(1 / math.sqrt(variance + job.eps), job.unit)
    put(table, INVSTD * job.channels + c, invstd)
    weight = get(pointer(job.weight, job.unit), c) if job.weight else cast(1.0, job.unit)
    bias = get(pointer(job.bias, job.unit), c) if job.bias else cast(0.0, job.unit)
    put(table, WEIGHT * job.channels + c, weight)
    put(table, BIAS * job.channels + c, bias)
    put(table, SLOPE * job.channels + c, invstd * weight)


@compiled
def finish_backward(job: Any, channels: Any) -> None:
    """Write the gradients of weight and bias, and the coefficients of the gradient of x."""
    partial, table = pointer(job.partial, 1.0), pointer(job.table, job.unit)
    count = float(job.rows * job.space)
    for c in range(channels[0], channels[1]):
        sum_dz, sum_dz_x_hat = 0.0, 0.0
        for part in range(job.parts):
            at = place_of_sums(job, part, c)
            sum_dz += get(partial, at)
            sum_dz_x_hat += get(partial, at + job.channels)
        if job.dweight:
            put(pointer(job.dweight, job.unit), c, sum_dz_x_hat)
        if job.dbias:
            put(pointer(job.dbias, job.unit), c, sum_dz)
        put(table, MEAN_DZ * job.channels + c, sum_dz / count)
        put(table, MEAN_DZ_X_HAT * job.channels + c, sum_dz_x_hat / count)
