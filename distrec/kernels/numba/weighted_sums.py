"""Sums of weighted rows that stay in registers, each in a fixed order.

A plain loop keeps the sum in memory, where each addition waits for the last store, and takes four times as long.

P: positions of a list of rows and weights; R: rows that are summed into; X: rows that are read.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from distrec.kernels.numba.intrinsics import _INT, _address


class _Rows:
    """Code generation for `width` consecutive elements of rows, from the arguments of an intrinsic."""

    def __init__(self, context, builder, signature, args, width):
        self._context, self._builder, self._types, self._args = context, builder, signature.args, args
        self.element = context.get_value_type(signature.args[0].dtype)
        self.vector, self._width = ir.VectorType(self.element, width), width
        self._align = context.get_abi_sizeof(self.element)

    def pointer(self, k, *indices, kind):
        address = _address(self._context, self._builder, self._types[k], self._args[k], indices)
        return self._builder.inttoptr(address, kind.as_pointer())

    def load(self, k, row, first):
        return self._builder.load(self.pointer(k, row, first, kind=self.vector), align=self._align)

    def store(self, value, k, row, first):
        self._builder.store(value, self.pointer(k, row, first, kind=self.vector), align=self._align)

    def index(self, k, position, like):
        """Load the row index at a position of array k, in the integer type of `like`."""
        row = self._builder.load(self.pointer(k, position, kind=self._context.get_value_type(self._types[k].dtype)))
        return row if row.type == like.type else self._builder.sext(row, like.type)

    def weighted(self, k, position, values):
        """Return `values` times the weight at a position of array k."""
        weight = self._builder.load(self.pointer(k, position, kind=self.element))
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane = self._builder.insert_element(undefined, weight, _INT(0))
        lanes = ir.Constant(ir.VectorType(_INT, self._width), [0] * self._width)
        return self._builder.fmul(self._builder.shuffle_vector(lane, undefined, lanes), values)


def _gather(width):
    @intrinsic
    def add(typingctx, out, r, rows, index, weight, start, stop, first):
        def codegen(context, builder, signature, args):
            code = _Rows(context, builder, signature, args, width)
            sums = cgutils.alloca_once(builder, code.vector)
            builder.store(code.load(0, args[1], args[7]), sums)
            with cgutils.for_range_slice(builder, args[5], args[6], args[7].type(1), args[7].type) as (p, _):
                more = code.weighted(4, p, code.load(2, code.index(3, p, args[7]), args[7]))
                builder.store(builder.fadd(builder.load(sums), more), sums)
            code.store(builder.load(sums), 0, args[1], args[7])
            return context.get_dummy_value()

        assert out.layout == rows.layout == "C" and out.dtype == rows.dtype == weight.dtype, (out, rows, weight)
        return types.void(out, types.intp, rows, index, weight, *(types.intp,) * 3), codegen

    return add


def _scatter(width):
    @intrinsic
    def add(typingctx, out, index, weight, start, stop, rows, x, first):
        def codegen(context, builder, signature, args):
            code = _Rows(context, builder, signature, args, width)
            values = code.load(5, args[6], args[7])
            with cgutils.for_range_slice(builder, args[3], args[4], args[7].type(1), args[7].type) as (p, _):
                row = code.index(1, p, args[7])
                code.store(builder.fadd(code.load(0, row, args[7]), code.weighted(2, p, values)), 0, row, args[7])
            return context.get_dummy_value()

        assert out.layout == rows.layout == "C" and out.dtype == rows.dtype == weight.dtype, (out, rows, weight)
        return types.void(out, index, weight, types.intp, types.intp, rows, types.intp, types.intp), codegen

    return add


_gather_64, _gather_32, _gather_16 = _gather(64), _gather(32), _gather(16)
_scatter_64, _scatter_32, _scatter_16 = _scatter(64), _scatter(32), _scatter(16)


@njit(forceinline=True)
def add_weighted(out_RD, r, rows_XD, index_P, weight_P, start, stop, d=0):
    """Add weight_P[p] * rows_XD[index_P[p]] to out_RD[r], columns d on, for p from start to stop in this order."""
    dim = out_RD.shape[1]
    while d + 64 <= dim:
        _gather_64(out_RD, r, rows_XD, index_P, weight_P, start, stop, d)
        d += 64
    while d + 32 <= dim:
        _gather_32(out_RD, r, rows_XD, index_P, weight_P, start, stop, d)
        d += 32
    while d + 16 <= dim:
        _gather_16(out_RD, r, rows_XD, index_P, weight_P, start, stop, d)
        d += 16
    for p in range(start, stop):
        for k in range(d, dim):
            out_RD[r, k] += weight_P[p] * rows_XD[index_P[p], k]


@njit(forceinline=True)
def add_to_rows(out_RD, index_P, weight_P, start, stop, rows_XD, x, d, end):
    """Add weight_P[p] * rows_XD[x] to out_RD[index_P[p]], columns d to end, for p from start to stop in this order."""
    while d + 64 <= end:
        _scatter_64(out_RD, index_P, weight_P, start, stop, rows_XD, x, d)
        d += 64
    while d + 32 <= end:
        _scatter_32(out_RD, index_P, weight_P, start, stop, rows_XD, x, d)
        d += 32
    while d + 16 <= end:
        _scatter_16(out_RD, index_P, weight_P, start, stop, rows_XD, x, d)
        d += 16
    for p in range(start, stop):
        for k in range(d, end):
            out_RD[index_P[p], k] += weight_P[p] * rows_XD[x, k]
