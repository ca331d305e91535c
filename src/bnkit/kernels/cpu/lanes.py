"""Lanes: 32 float32 (or 16 float64) that one Numba variable holds and one instruction handles.

Numba's loop vectoriser loses most of its time at the ends of short loops, and feature maps of
7 × 7 are nothing but ends. Here the end is one more step under a mask, sums stay in registers from
one feature map to the next, and the order of every sum is the same on every CPU.

`a + b`, `a - b`, `a * b`, `a / b` and comparisons work lane by lane, among lanes of one kind.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from bnkit.kernels.cpu.compiling import instruction

BYTES = 128  # two of the widest registers: two sums in flight hide the latency of one
_I1, _I32 = ir.IntType(1), ir.IntType(32)


class Lanes(types.Type):
    """The Numba type of lanes of `element`, float32 or float64."""

    def __init__(self, element: Any) -> None:
        self.element = element
        self.count = BYTES * 8 // element.bitwidth
        super().__init__(name=f"Lanes({element})")


class Mask(types.Type):
    """The Numba type of one truth value for each of `count` lanes."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        element = manager.lookup(kind.element).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Mask) -> None:
        super().__init__(manager, kind, ir.VectorType(_I1, kind.count))


# Operators


class _SameKind(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:  # noqa: ARG002  Numba's signature
        if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
            return signature(self.result(args[0]), *args)
        return None

    def result(self, kind: Lanes) -> Any:
        return kind


class _Comparison(_SameKind):
    def result(self, kind: Lanes) -> Any:
        return Mask(kind.count)


def _define(symbol: Any, template: type, instruction: Any) -> None:
    infer_global(symbol)(type(f"_{symbol.__name__}", (template,), {}))

    @lower_builtin(symbol, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return instruction(builder, *args)


for _symbol, _name in [
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
]:
    # "contract": a product and a sum may become one instruction; NaN and infinity stay as they are.
    _define(
        _symbol,
        _SameKind,
        lambda builder, a, b, name=_name: getattr(builder, name)(a, b, flags=("contract",)),
    )
for _symbol, _sign in [
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
]:
    _define(
        _symbol, _Comparison, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b)
    )


# Lanes from scalars, and back


@instruction
def spread(typingctx: Any, value: Any) -> Any:  # noqa: ARG001
    """`value`, a float32 or float64, in all lanes."""
    kind = Lanes(value)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return spread_value(builder, args[0], kind.count)

    return kind(value), build


@instruction
def length(typingctx: Any, values: Any) -> Any:  # noqa: ARG001
    """How many lanes `values` has."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return ir.Constant(ir.IntType(64), values.count)

    return types.int64(values), build


@instruction
def first(typingctx: Any, values: Any) -> Any:  # noqa: ARG001
    """The first lane."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.extract_element(args[0], ir.Constant(_I32, 0))

    return values.element(values), build


@instruction
def where(typingctx: Any, mask: Any, chosen: Any, other: Any) -> Any:  # noqa: ARG001
    """`chosen` where `mask` is true, `other` elsewhere."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.select(*args)

    return chosen(mask, chosen, other), build


@instruction
def total(typingctx: Any, values: Any) -> Any:  # noqa: ARG001
    """The sum of all lanes, pairwise, in float64."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        rest, count = args[0], values.count
        if values.element == types.float32:
            rest = builder.fpext(rest, ir.VectorType(ir.DoubleType(), count))
        while count > 1:
            count //= 2
            halves = [
                builder.shuffle_vector(
                    rest, rest, ir.Constant(ir.VectorType(_I32, count), list(picked))
                )
                for picked in (range(count), range(count, 2 * count))
            ]
            rest = builder.fadd(*halves)
        return builder.extract_element(rest, ir.Constant(_I32, 0))

    return types.float64(values), build


@instruction
def rounded_to_integer(typingctx: Any, values: Any) -> Any:  # noqa: ARG001
    """The nearest integer to each lane, as a float."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        kind = args[0].type
        name = f"llvm.nearbyint.v{values.count}f{values.element.bitwidth}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), name
        )
        return builder.call(function, [args[0]])

    return values(values), build


@instruction
def power_of_two(typingctx: Any, exponents: Any) -> Any:  # noqa: ARG001
    """2 to the power of each lane, for integers within the range of normal numbers."""
    bits = exponents.element.bitwidth
    bias, mantissa = (127, 23) if bits == 32 else (1023, 52)

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        integers = ir.VectorType(ir.IntType(bits), exponents.count)
        whole = builder.fptosi(args[0], integers)
        biased = builder.add(whole, ir.Constant(integers, [bias] * exponents.count))
        shifted = builder.shl(biased, ir.Constant(integers, [mantissa] * exponents.count))
        return builder.bitcast(shifted, args[0].type)

    return exponents(exponents), build


def polynomial(single: list[float], double: list[float] | None = None) -> Any:
    """Return the function of lanes Σ coefficients[k]·tᵏ, with coefficients for each dtype."""

    @instruction
    def evaluate(typingctx: Any, t: Any) -> Any:  # noqa: ARG001
        chosen = single if t.element == types.float32 else double or single

        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
            constants = [ir.Constant(args[0].type, [c] * t.count) for c in chosen]
            result = constants.pop()
            while constants:
                product = builder.fmul(result, args[0], flags=("contract",))
                result = builder.fadd(product, constants.pop(), flags=("contract",))
            return result

        return t(t), build

    return evaluate


def spread_value(builder: Any, value: Any, count: int) -> Any:
    """Return instructions for a vector of `count` times `value`."""
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.shuffle_vector(one, one, zeros)
