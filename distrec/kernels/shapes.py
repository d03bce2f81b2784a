"""Shape checks that the compiled implementations of pair scores share."""

from torch import Tensor


def check_shapes(users_UD: Tensor, items_VD: Tensor, user_index_B: Tensor, item_index_BN: Tensor) -> None:
    """Raise ValueError unless shapes and dtypes fit together, as compiled code does not check them."""
    shapes = [tuple(tensor.shape) for tensor in (users_UD, items_VD, user_index_B, item_index_BN)]
    fits = [len(shape) for shape in shapes] == [2, 2, 1, 2]
    if not fits or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[3][:1] or users_UD.dtype != items_VD.dtype:
        raise ValueError(
            "expected rows (U, D) and (V, D) of one dtype and indices (B,) and (B, N); "
            f"got shapes {shapes}, dtypes {users_UD.dtype} and {items_VD.dtype}"
        )
    assert item_index_BN.numel() < 2**31, "flat indices into (B, N) are 32-bit"
