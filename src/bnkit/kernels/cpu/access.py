"""Reading and writing memory by address: lanes, single values, and a counter for threads.

`load` and `store` convert: bfloat16 lies in memory as uint16 and is computed in float32.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from bnkit.kernels.cpu.compiling import inlined, instruction
from bnkit.kernels.cpu.jobs import arithmetic_type
from bnkit.kernels.cpu.lanes import BYTES, Lanes, length, spread_value

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_BFLOAT16 = types.uint16


@instruction
def pointer(typingctx: Any, address: Any, sample: Any) -> Any:  # noqa: ARG001
    """`address` as a pointer to values of the type of `sample`."""
    kind = types.CPointer(sample)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(address, sample), build


@instruction
def get(typingctx: Any, source: Any, index: Any) -> Any:  # noqa: ARG001
    """source[index], in the type of the arithmetic."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        value = builder.load(builder.gep(args[0], [args[1]], inbounds=True))
        return _widened(builder, value) if source.dtype == _BFLOAT16 else value

    return arithmetic_type(source.dtype)(source, index), build


@instruction
def put(typingctx: Any, target: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """target[index] = value, for pointers to float32, float64 or int64."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        builder.store(args[2], builder.gep(args[0], [args[1]], inbounds=True))
        return context.get_dummy_value()

    return types.void(target, index, target.dtype), build


@instruction
def cast(typingctx: Any, value: Any, like: Any) -> Any:  # noqa: ARG001
    """`value` in the type of `like`."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return context.cast(builder, args[0], value, like)

    return like(value, like), build


@instruction
def size_of(typingctx: Any, value: Any) -> Any:  # noqa: ARG001
    """How many bytes a value of this type takes in memory."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return ir.Constant(_I64, _size(value))

    return types.int64(value), build


@instruction
def load(typingctx: Any, source: Any, start: Any) -> Any:  # noqa: ARG001
    """All lanes from source[start:]."""
    kind = Lanes(arithmetic_type(source.dtype))

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        place = _place(context, builder, source, kind, args)
        values = builder.load(place, align=_size(source.dtype))
        return _widened(builder, values) if source.dtype == _BFLOAT16 else values

    return kind(source, start), build


@instruction
def load_first(typingctx: Any, source: Any, start: Any, count: Any, fill: Any) -> Any:  # noqa: ARG001
    """The first `count` lanes from source[start:]; the others from `fill`."""
    kind = Lanes(arithmetic_type(source.dtype))

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        place = _place(context, builder, source, kind, args)
        mask = _first(builder, args[2], kind.count)
        stored = place.type.pointee
        rest = ir.Constant(stored, None) if source.dtype == _BFLOAT16 else args[3]
        function = _declare(
            builder, "llvm.masked.load", stored, [place.type, _I32, mask.type, stored], place
        )
        align = ir.Constant(_I32, _size(source.dtype))
        values = builder.call(function, [place, align, mask, rest])
        if source.dtype == _BFLOAT16:
            values = builder.select(mask, _widened(builder, values), args[3])
        return values

    return kind(source, start, types.int64, kind), build


@instruction
def store(typingctx: Any, target: Any, start: Any, values: Any) -> Any:  # noqa: ARG001
    """target[start:] = all lanes."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        place = _place(context, builder, target, values, args)
        kept = _rounded(builder, args[2]) if target.dtype == _BFLOAT16 else args[2]
        builder.store(kept, place, align=_size(target.dtype))
        return context.get_dummy_value()

    return types.void(target, start, values), build


@instruction
def store_first(typingctx: Any, target: Any, start: Any, values: Any, count: Any) -> Any:  # noqa: ARG001
    """target[start:] = the first `count` lanes."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        place = _place(context, builder, target, values, args)
        kept = _rounded(builder, args[2]) if target.dtype == _BFLOAT16 else args[2]
        mask = _first(builder, args[3], values.count)
        void = ir.VoidType()
        function = _declare(
            builder, "llvm.masked.store", void, [kept.type, place.type, _I32, mask.type], place
        )
        builder.call(function, [kept, place, ir.Constant(_I32, _size(target.dtype)), mask])
        return context.get_dummy_value()

    return types.void(target, start, values, types.int64), build


@inlined
def take(source: Any, start: Any, left: Any, fill: Any) -> Any:
    """Lanes from source[start:], of which `left` values remain; the others from `fill`."""
    if left >= length(fill):
        return load(source, start)
    return load_first(source, start, left, fill)


@inlined
def give(target: Any, start: Any, left: Any, values: Any) -> None:
    """target[start:] = the lanes, of which `left` values remain."""
    if left >= length(values):
        store(target, start, values)
    else:
        store_first(target, start, values, left)


# Threads


@instruction
def claim(typingctx: Any, address: Any) -> Any:  # noqa: ARG001
    """The int64 at `address`, which is one more for the next thread that asks."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        counter = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "monotonic")

    return types.int64(address), build


# Parts of the above


def _place(context: Any, builder: Any, memory: Any, kind: Lanes, args: Any) -> Any:
    stored = ir.VectorType(context.get_value_type(memory.dtype), kind.count)
    start = builder.gep(args[0], [args[1]], inbounds=True)
    return builder.bitcast(start, stored.as_pointer())


def _declare(builder: Any, name: str, result: Any, arguments: Any, place: Any) -> Any:
    stored = place.type.pointee
    letter = "i16" if stored.element == _I16 else f"f{32 if stored.count * 4 == BYTES else 64}"
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, arguments), f"{name}.v{stored.count}{letter}.p0"
    )


def _size(element: Any) -> int:
    return int(element.bitwidth) // 8


def _first(builder: Any, count: Any, lanes: int) -> Any:
    indices = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return builder.icmp_signed(
        "<", indices, spread_value(builder, builder.trunc(count, _I32), lanes)
    )


def _like(kind: Any, element: Any) -> Any:
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _widened(builder: Any, stored: Any) -> Any:
    """bfloat16 to float32: the upper half of its bits."""
    wide = _like(stored.type, _I32)
    bits = builder.shl(builder.zext(stored, wide), _constant(wide, 16))
    return builder.bitcast(bits, _like(wide, ir.FloatType()))


def _rounded(builder: Any, values: Any) -> Any:
    """float32 to the nearest bfloat16, ties to even; NaN stays NaN."""
    wide = _like(values.type, _I32)
    bits = builder.bitcast(values, wide)
    odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
    up = builder.add(builder.add(bits, _constant(wide, 0x7FFF)), odd)
    quiet = builder.or_(bits, _constant(wide, 0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", values, values), quiet, up)
    return builder.trunc(builder.lshr(kept, _constant(wide, 16)), _like(wide, _I16))
