"""What compiled scores of pairs ask of their input."""

import torch


def check_shapes(
    users_UD: torch.Tensor, items_VD: torch.Tensor, user_index_B: torch.Tensor, item_index_BN: torch.Tensor
) -> None:
    """Compiled code trusts them."""
    shapes = [tuple(tensor.shape) for tensor in (users_UD, items_VD, user_index_B, item_index_BN)]
    fits = [len(shape) for shape in shapes] == [2, 2, 1, 2]
    if not fits or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[3][:1] or users_UD.dtype != items_VD.dtype:
        raise ValueError(f"rows (U, D) and (V, D) and places (B,) and (B, N) do not fit together: shapes {shapes}")
    assert item_index_BN.numel() < 2**31, "the loops count places in 32 bits"
