"""A job: all that a kernel is told, as 64-bit values in a row that Python writes and Numba reads.

A job is cut into tasks, each a block of channels and a part of the rows (a row is a sample of
channels-first memory, a pixel of channels-last). Threads claim task after task; the parts, not the
threads, decide in which order sums are taken, so a result does not depend on who was faster.
"""

import ctypes
import functools
import hashlib
import struct
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import lower_getattr_generic, models, register_model

# Phases: each needs the one before. A job in one part goes through all of them task by task,
# while its channels are in the cache; other jobs have a region of threads for each phase.
GATHER, FINISH, APPLY = 1, 2, 4
# Rows of the table of coefficients, each of one value per channel.
MEAN, INVSTD, WEIGHT, BIAS, SLOPE, MEAN_DZ, MEAN_DZ_X_HAT, COEFFICIENTS = range(8)

FIELDS = (
    "counter phase blocks parts width rows channels space activation training eps "
    "x y dy dx residual dresidual "  # addresses of values; 0 for what there is none of
    "mean variance weight bias dweight dbias table "  # of values per channel, in the wider dtype
    "scratch "  # of three rows of one value per channel for each part, in the wider dtype
    "partial"  # as scratch, in float64
).split()
_BYTES = 8  # of a field
_Memory = ctypes.c_int64 * (len(FIELDS) + 1)
_ELEMENTS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.bfloat16: types.uint16,
}


def _digest() -> str:
    """All sources of the kernels; Numba's cache would notice a change in one of them only."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


_DIGEST = _digest()


class Job(types.Type):
    """The Numba type of a job on values of `element`: a pointer to its fields.

    Not Numba's own records: their symbols are numbered anew in each process, so that code cached
    by two of them may bear the same name, and a third that loads both runs the wrong one.
    """

    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"Job({element}, {_DIGEST})")


@register_model(Job)
class _JobModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Job) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@infer_getattr
class _JobFields(AttributeTemplate):
    key = Job

    def generic_resolve(self, job: Job, name: str) -> Any:
        # `sample` and `unit` only show the types of values in memory and in arithmetic.
        if name == "sample":
            return job.element
        if name == "unit":
            return arithmetic_type(job.element)
        return types.float64 if name == "eps" else types.int64


@lower_getattr_generic(Job)
def _field(context: Any, builder: Any, job: Job, address: Any, name: str) -> Any:
    if name in {"sample", "unit"}:
        kind = job.element if name == "sample" else arithmetic_type(job.element)
        return ir.Constant(context.get_value_type(kind), 0)
    place = builder.gep(address, [ir.Constant(ir.IntType(64), FIELDS.index(name))], inbounds=True)
    value = builder.load(place)
    # A job does not change while a kernel works on it: loops may keep its fields in registers.
    value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return builder.bitcast(value, ir.DoubleType()) if name == "eps" else value


def arithmetic_type(element: Any) -> Any:
    """Return the type in which values that lie in memory as `element` are computed."""
    return types.float32 if element == types.uint16 else element  # bfloat16 lies there as uint16


def job_type(dtype: torch.dtype) -> Job:
    """Return the Numba type of a job on tensors of `dtype`.

    Raises TypeError for a dtype that the kernels do not take.
    """
    if dtype not in _ELEMENTS:
        raise TypeError(
            f"`x` is {dtype}: the kernels for the CPU take float32, float64 and bfloat16, "
            f"`bnkit.kernels.reference` takes every float dtype"
        )
    return Job(_ELEMENTS[dtype])


def job_of(fields: dict[str, int], *, eps: float) -> ctypes.Array[ctypes.c_int64]:
    """Return the memory of a job with these fields, 0 where left out, and its counter after them.

    >>> job_of({"phase": 7}, eps=1e-5)[FIELDS.index("phase")]
    7
    """
    values = [fields.get(name, 0) for name in FIELDS]
    values[FIELDS.index("eps")] = _bits(eps)
    job = _Memory(*values, 0)
    job[FIELDS.index("counter")] = ctypes.addressof(job) + _BYTES * len(FIELDS)
    return job


@functools.cache
def _bits(value: float) -> int:
    """The bits of a number, as an integer."""
    return int(struct.unpack("q", struct.pack("d", value))[0])
