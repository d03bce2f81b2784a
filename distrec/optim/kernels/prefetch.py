"""The prefetch instruction, which numba lacks: touched rows lie anywhere in memory, and no hardware foresees them."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTE = ir.IntType(8).as_pointer()
_INT = ir.IntType(32)


@intrinsic
def prefetch(typingctx, array, first, second):
    """Asks for the cache line of array[first, second], or of array[first] if it has one axis, to write to it."""

    def codegen(context, builder, signature, args):
        view = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.ptrtoint(view.data, args[1].type)
        for axis in range(signature.args[0].ndim):
            stride = builder.extract_value(view.strides, axis)
            address = builder.add(address, builder.mul(stride, args[1 + axis]))
        function = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
        found = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], function)
        to_write, keep, data = _INT(1), _INT(3), _INT(1)
        builder.call(found, [builder.inttoptr(address, _BYTE), to_write, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen
