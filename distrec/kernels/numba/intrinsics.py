"""Instructions that numba lacks: prefetch, a vectorised dot product with a fixed order of summation, a vectorised
comparison that returns a bit mask, and the product of 64-bit integers in 128 bits.

R: rows of an array of any use.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 16  # float32 elements of a cache line; of float64 every second line is prefetched, the hardware adds the next
RUN = 32  # elements that `reaching` compares
_LANES = 16  # partial sums of a dot product: one vector register or several, depending on the machine

_BYTE = ir.IntType(8).as_pointer()
_INT = ir.IntType(32)


def _address(context, builder, array_type, array, indices):
    """Return the address of array[indices] as an integer."""
    view = context.make_array(array_type)(context, builder, array)
    address = builder.ptrtoint(view.data, indices[0].type)
    for axis, index in enumerate(indices):
        stride = builder.extract_value(view.strides, axis)
        address = builder.add(address, builder.mul(stride, index))
    return address


@intrinsic
def prefetch(typingctx, array, first, second):
    """Prefetch the cache line of array[first, second], or of array[first] if it has one axis, for writing."""

    def codegen(context, builder, signature, args):
        indices = args[1 : 1 + signature.args[0].ndim]
        address = builder.inttoptr(_address(context, builder, signature.args[0], args[0], indices), _BYTE)
        function = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        to_write, keep, data = _INT(1), _INT(3), _INT(1)
        found = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], function)
        builder.call(found, [address, to_write, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def _dot_of_lanes(typingctx, a, i, b, j, length):
    """Return sum_d a[i, d] b[j, d] over `length` elements, a multiple of the lanes. Rows are contiguous."""

    def codegen(context, builder, signature, args):
        element = context.get_value_type(signature.return_type)
        vector, size = ir.VectorType(element, _LANES), context.get_abi_sizeof(element)
        rows = [_address(context, builder, signature.args[k], args[k], [args[k + 1]]) for k in (0, 2)]
        rows = [builder.inttoptr(row, element.as_pointer()) for row in rows]
        sums = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, [0.0] * _LANES), sums)
        zero, step = args[4].type(0), args[4].type(_LANES)
        with cgutils.for_range_slice(builder, zero, args[4], step, args[4].type) as (d, _):
            pointers = [builder.bitcast(builder.gep(row, [d]), vector.as_pointer()) for row in rows]
            x, y = (builder.load(pointer, align=size) for pointer in pointers)
            builder.store(builder.fadd(builder.load(sums), builder.fmul(x, y)), sums)
        return _folded(builder, builder.load(sums))

    assert a.layout == b.layout == "C" and a.dtype == b.dtype, (a, b)
    return a.dtype(a, types.intp, b, types.intp, types.intp), codegen


def _folded(builder, lanes):
    """Return the sum of the lanes: the upper half is added to the lower until one lane is left."""
    width = lanes.type.count
    while width > 1:
        width //= 2
        halves = []
        for first in (0, width):
            chosen = ir.Constant(ir.VectorType(_INT, width), list(range(first, first + width)))
            halves.append(builder.shuffle_vector(lanes, ir.Constant(lanes.type, ir.Undefined), chosen))
        lanes = builder.fadd(*halves)
    return builder.extract_element(lanes, _INT(0))


@njit(forceinline=True)  # twice as fast as a call
def dot(a_RD, i, b_RD, j):
    """Return sum_d a_RD[i, d] b_RD[j, d] by 16 partial sums and a tail: the same bits on every machine.

    A plain loop adds the products sequentially, as numba may not reorder them, and takes seven times as long.
    """
    length = a_RD.shape[1]
    whole = length // _LANES * _LANES
    total = _dot_of_lanes(a_RD, i, b_RD, j, whole)
    for d in range(whole, length):
        total += a_RD[i, d] * b_RD[j, d]
    return total


@intrinsic
def reaching(typingctx, array, i, j, least):
    """Return a bit mask of array[i, j : j + RUN] >= `least`, the first element in the lowest bit; NaN sets its bit."""

    def codegen(context, builder, signature, args):
        element = context.get_value_type(signature.args[3])
        vector, lanes = ir.VectorType(element, RUN), ir.VectorType(_INT, RUN)
        address = _address(context, builder, signature.args[0], args[0], args[1:3])
        pointer = builder.inttoptr(address, vector.as_pointer())
        values = builder.load(pointer, align=context.get_abi_sizeof(element))
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[3], _INT(0))
        all_least = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(lanes, [0] * RUN))
        bits = builder.bitcast(builder.fcmp_unordered(">=", values, all_least), ir.IntType(RUN))
        return builder.zext(bits, ir.IntType(64))

    assert array.layout == "C" and array.dtype == least, (array, least)
    return types.int64(array, types.intp, types.intp, least), codegen


@intrinsic
def lowest(typingctx, bits):
    """Return the index of the lowest set bit; at least one must be set."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    assert bits == types.int64, bits
    return types.int64(bits), codegen


@intrinsic
def wide_product(typingctx, a, b):
    """Return the (upper, lower) 64 bits of the product of two uint64, by one instruction."""

    def codegen(context, builder, signature, args):
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(factor, wide) for factor in args))
        halves = [builder.trunc(half, word) for half in (builder.lshr(product, wide(64)), product)]
        return context.make_tuple(builder, signature.return_type, halves)

    assert a == b == types.uint64, (a, b)
    return types.UniTuple(types.uint64, 2)(a, b), codegen
