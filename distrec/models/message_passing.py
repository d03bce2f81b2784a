"""Message passing of PyTorch Geometric over a sharded graph. Imported where it is used, as its import takes seconds."""

from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from distrec.kernels.sparse_matrix import SparseMatrix, SparseProduct


class Convolution(MessagePassing):  # type: ignore[misc]
    """The sum over the edges of a node of their weight times the message W x + b of the other node.

    Messages are computed by `linear` at the owners of the nodes, and then passed on. No message of an edge is built:
    the sum is a sparse product.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(aggr="add")
        self.linear = nn.Linear(dim, dim)

    def forward(self, messages_XD: Tensor, matrix: SparseMatrix, transposed: SparseMatrix) -> Tensor:
        """Return the sums of all nodes, (V, D).

        Args:
            messages_XD: messages of the nodes at the other end, those of the columns of the matrix.
            matrix: weights of the edges, (V, X).
            transposed: the same, (X, V).
        """
        edges = matrix.csr(messages_XD.device)
        # PyTorch Geometric takes the arguments of `propagate` from this call, those of both its forms.
        sums_VD: Tensor = self.propagate(
            edges, x=messages_XD, edge_weight=None, matrix=matrix, transposed=transposed, size=None
        )
        return sums_VD

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """Return the messages of edges that are given as pairs of nodes."""
        return edge_weight[:, None] * x_j

    def message_and_aggregate(
        self, edge_index: Tensor, x: Tensor, matrix: SparseMatrix, transposed: SparseMatrix
    ) -> Tensor:
        sums_VD: Tensor = SparseProduct.apply(matrix, transposed, x)  # type: ignore[no-untyped-call]
        return sums_VD
