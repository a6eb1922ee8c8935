"""Vector operations that plain numba does not reach: joining table rows into an accumulator held in registers.

A compiler that only sees arrays must assume that the accumulator and the table overlap, so it loads and stores the
accumulator for every row. Written in LLVM's vector types, the accumulator stays in registers over all rows: 3 to 10
times faster on layers of 16 to 128 channels (``benchmarks/engine.py``). How many lanes an accumulator has is the length
of a tuple in units of 16, because it must be part of a type for numba to compile (and cache) for it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

#: Lanes in one unit.
UNIT = 16
_INDEX = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def add_rows(  # numba's typing context comes first
    typingctx: Any, units: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any
) -> Any:
    """``acc[at : at + L] += sum of table[base + L * rows[e] : ... + L] for first <= e < last``, with L lanes.

    Parameters
    ----------
    units : tuple of L / 16 values
    acc, table : one-dimensional arrays of one type
    at, base, first, last : int
    rows : array of int32
    """
    return _signature(units, acc, table, rows), _emit_fold(units.count * UNIT, _add)


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled_rows(
    typingctx: Any, units: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any, by: Any
) -> Any:
    """:func:`add_rows` with each row multiplied by ``by[e]``, an array of the accumulator's type."""
    return _signature(units, acc, table, rows, by), _emit_fold(units.count * UNIT, _add, scaled=True)


@intrinsic  # type: ignore[untyped-decorator]
def mark_rows(
    typingctx: Any, units: Any, acc: Any, at: Any, table: Any, base: Any, rows: Any, first: Any, last: Any
) -> Any:
    """:func:`add_rows` with a bitwise or in place of the sum."""
    return _signature(units, acc, table, rows), _emit_fold(units.count * UNIT, _join)


def _signature(units: Any, acc: Any, table: Any, rows: Any, *more: Any) -> Any:
    index = types.intp
    return types.void(units, acc, index, table, index, rows, index, index, *more)


def _emit_fold(lanes: int, combine: Any, *, scaled: bool = False) -> Any:
    """Return the code generator that folds rows into ``acc``: one loop whose accumulator is a vector value."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[1].dtype
        vector = ir.VectorType(context.get_data_type(kind), lanes)
        acc, table, rows = (
            context.make_array(signature.args[place])(context, builder, values[place]).data for place in (1, 3, 5)
        )
        scales = context.make_array(signature.args[8])(context, builder, values[8]).data if scaled else None
        at, base, first, last = values[2], values[4], values[6], values[7]
        place = _vector_at(builder, acc, at, vector)
        start = _load(builder, place, kind)
        before, loop, after = (builder.block, *(builder.append_basic_block(name) for name in ("rows", "done")))
        builder.cbranch(builder.icmp_signed("<", first, last), loop, after)

        builder.position_at_end(loop)
        event, total = builder.phi(_INDEX), builder.phi(vector)
        row = builder.sext(builder.load(builder.gep(rows, [event])), _INDEX)
        offset = builder.add(base, builder.mul(row, ir.Constant(_INDEX, lanes)))
        terms = _load(builder, _vector_at(builder, table, offset, vector), kind)
        scale = _spread(builder, builder.load(builder.gep(scales, [event])), vector) if scaled else None
        added = combine(builder, total, terms, scale, kind)
        following = builder.add(event, ir.Constant(_INDEX, 1))
        for phi, initial, updated in ((event, first, following), (total, start, added)):
            phi.add_incoming(initial, before)
            phi.add_incoming(updated, loop)
        builder.cbranch(builder.icmp_signed("<", following, last), loop, after)

        builder.position_at_end(after)
        result = builder.phi(vector)
        result.add_incoming(start, before)
        result.add_incoming(added, loop)
        builder.store(result, place).align = kind.bitwidth // 8
        return context.get_dummy_value()

    return emit


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
