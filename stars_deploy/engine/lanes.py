"""Vector operations that plain numba does not reach: folding table rows into an accumulator held in registers.

A compiler that only sees arrays must assume that the accumulator and the table overlap, so it loads and stores the
accumulator for every row. Written in LLVM's vector types, the accumulator stays in registers over all rows: 3 to 10
times faster on layers of 16 to 128 channels. How many lanes an accumulator has is the length of a tuple in units of 16,
because it must be part of a type for numba to compile (and cache) for it; powers of two only, others are split badly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: Lanes in one unit.
UNIT = 16
#: Whether :func:`list_nonzero` is one fast instruction here: with AVX-512, but not on AMD's Zen 4, which splits it up.
LISTS_IN_VECTORS = bool(binding.get_host_cpu_features().get("avx512f")) and "znver" not in binding.get_host_cpu_name()
_INDEX = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def add_rows(  # numba's typing context comes first
    typingctx: Any, units: Any, fresh: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any
) -> Any:
    """Add table rows to L lanes of an accumulator.

    ``acc[at : at + L] += sum over first <= e < last of table[base + L * rows[e] : ... + L]``.

    Parameters
    ----------
    units : tuple of L / 16 values
        L lanes.
    fresh : bool
        Whether to begin with 0 and not with what the accumulator holds.
    acc, table : one-dimensional arrays
        Of one type, or the table of narrower integers.
    at, base, first, last : int
    rows : array of int32
    """
    return _signature(units, acc, table, rows), _emit_fold(units.count * UNIT, _add)


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled_rows(
    typingctx: Any, units: Any, fresh: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any,
    by: Any,
) -> Any:  # fmt: skip
    """:func:`add_rows` with each row multiplied by ``by[e]``, an array of the accumulator's type."""
    return _signature(units, acc, table, rows, by), _emit_fold(units.count * UNIT, _add, scaled=True)


@intrinsic  # type: ignore[untyped-decorator]
def mark_rows(
    typingctx: Any, units: Any, fresh: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any
) -> Any:
    """:func:`add_rows` with a bitwise or in place of the sum."""
    return _signature(units, acc, table, rows), _emit_fold(units.count * UNIT, _join)


@intrinsic  # type: ignore[untyped-decorator]
def move_run(typingctx: Any, source: Any, first: Any, last: Any, shift: Any, target: Any, at: Any) -> Any:
    """``target[at : at + last - first] = source[first : last] + shift``, 16 at a time.

    Up to 15 values more are read and written behind. A float is not shifted.
    """
    index = types.intp
    return types.void(source, index, index, index, target, index), _emit_move


@intrinsic  # type: ignore[untyped-decorator]
def list_nonzero(typingctx: Any, frame: Any, at: Any, left: Any, number: Any, rows: Any, count: Any) -> Any:
    """List which of ``frame[at : at + min(left, 16)]`` are not 0; return the new count.

    ``rows[count], rows[count + 1], ...`` become `number` plus their places. 16 values are read in any case.

    Parameters
    ----------
    frame : one-dimensional array of integers
    at, left, number, count : int
    rows : array of int32
    """
    index = types.intp
    return index(frame, index, index, index, rows, index), _emit_listing


def _signature(units: Any, acc: Any, table: Any, rows: Any, *more: Any) -> Any:
    index = types.intp
    return types.void(units, types.boolean, acc, index, table, index, rows, index, index, *more)


class _Loop:
    """A loop from `first` up to `last`, whose body folds into one value that stays in registers."""

    def __init__(self, builder: Any, first: Any, last: Any, start: Any, step: int = 1) -> None:
        self._builder, self._last, self._start, self._step = builder, last, start, step
        self._before = builder.block
        self._body, self._after = (builder.append_basic_block(name) for name in ("body", "after"))
        builder.cbranch(builder.icmp_signed("<", first, last), self._body, self._after)
        builder.position_at_end(self._body)
        self.index, self.value = builder.phi(_INDEX), builder.phi(start.type)
        self.index.add_incoming(first, self._before)
        self.value.add_incoming(start, self._before)

    def close(self, value: Any) -> Any:
        """End the body with the new `value`; go on behind the loop, and return what it came to."""
        builder, end = self._builder, self._builder.block
        following = builder.add(self.index, ir.Constant(_INDEX, self._step))
        self.index.add_incoming(following, end)
        self.value.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", following, self._last), self._body, self._after)
        builder.position_at_end(self._after)
        result = builder.phi(value.type)
        result.add_incoming(self._start, self._before)
        result.add_incoming(value, end)
        return result


def _emit_fold(lanes: int, combine: Callable[..., Any], *, scaled: bool = False) -> Any:
    """Return the code generator: over all events, with the accumulator as one vector value."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, stored = signature.args[2].dtype, signature.args[4].dtype
        vector, narrow = (ir.VectorType(context.get_data_type(each), lanes) for each in (kind, stored))
        acc, table, rows = (_data(context, builder, signature, values, place) for place in (2, 4, 6))
        scales = _data(context, builder, signature, values, 9) if scaled else None
        fresh, at, base, first, last = (values[place] for place in (1, 3, 5, 7, 8))
        place = _vector_at(builder, acc, at, vector)
        start = builder.select(fresh, ir.Constant(vector, None), _load(builder, place, kind))
        loop = _Loop(builder, first, last, start)
        row = builder.sext(builder.load(builder.gep(rows, [loop.index])), _INDEX)
        offset = builder.add(base, builder.mul(row, ir.Constant(_INDEX, lanes)))
        terms = _load(builder, _vector_at(builder, table, offset, narrow), stored)
        terms = terms if stored == kind else builder.sext(terms, vector)
        scale = _spread(builder, builder.load(builder.gep(scales, [loop.index])), vector) if scaled else None
        result = loop.close(combine(builder, loop.value, terms, scale, kind))
        builder.store(result, place).align = kind.bitwidth // 8
        return context.get_dummy_value()

    return emit


def _emit_move(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """Generate the loop of :func:`move_run`."""
    source, target = (_data(context, builder, signature, values, place) for place in (0, 4))
    first, last, shift, at = (values[place] for place in (1, 2, 3, 5))
    kind = signature.args[0].dtype
    element = context.get_data_type(kind)
    vector = ir.VectorType(element, UNIT)
    moved = ir.Constant(_INDEX, 0)
    loop = _Loop(builder, first, last, moved, UNIT)
    seen = _load(builder, _vector_at(builder, source, loop.index, vector), kind)
    if not isinstance(kind, types.Float):
        shift = builder.trunc(shift, element) if kind.bitwidth < _INDEX.width else shift
        seen = builder.add(seen, _spread(builder, shift, vector))
    to = builder.add(at, builder.sub(loop.index, first))
    builder.store(seen, _vector_at(builder, target, to, vector)).align = kind.bitwidth // 8
    loop.close(loop.value)
    return context.get_dummy_value()


def _data(context: Any, builder: Any, signature: Any, values: Any, place: int) -> Any:
    """Return the pointer to the values of the array that is argument `place`."""
    return context.make_array(signature.args[place])(context, builder, values[place]).data


def _emit_listing(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """Generate one comparison of 16 values, and one store of the places that passed."""
    frame, rows = (_data(context, builder, signature, values, place) for place in (0, 4))
    at, left, number, count = values[1], values[2], values[3], values[5]
    kind, place = signature.args[0].dtype, ir.IntType(32)
    vector, places = ir.VectorType(context.get_data_type(kind), UNIT), ir.VectorType(place, UNIT)
    steps = ir.Constant(places, list(range(UNIT)))
    seen = _load(builder, _vector_at(builder, frame, at, vector), kind)
    within = builder.icmp_signed("<", steps, _spread(builder, builder.trunc(left, place), places))
    passed = builder.and_(builder.icmp_unsigned("!=", seen, ir.Constant(vector, None)), within)
    numbers = builder.add(steps, _spread(builder, builder.trunc(number, place), places))
    store = ir.FunctionType(ir.VoidType(), [places, place.as_pointer(), passed.type])
    function = cgutils.get_or_insert_function(builder.module, store, "llvm.masked.compressstore.v16i32")
    builder.call(function, [numbers, builder.gep(rows, [count]), passed])
    return builder.add(count, builder.zext(builder.ctpop(builder.bitcast(passed, ir.IntType(UNIT))), _INDEX))


def _vector_at(builder: Any, data: Any, offset: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    value = builder.load(pointer)
    value.align = kind.bitwidth // 8  # rows begin anywhere
    return value


def _spread(builder: Any, scalar: Any, vector: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _add(builder: Any, total: Any, terms: Any, scale: Any, kind: Any) -> Any:
    if isinstance(kind, types.Float):
        # Fused or not: products and sums are exact, or the plan would not have chosen floats.
        fused = ("contract",)
        return builder.fadd(total, terms if scale is None else builder.fmul(terms, scale, fused), fused)
    return builder.add(total, terms if scale is None else builder.mul(terms, scale))


def _join(builder: Any, total: Any, terms: Any, scale: Any, kind: Any) -> Any:
    return builder.or_(total, terms)
