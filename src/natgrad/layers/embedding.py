"""``nn.Embedding``: a matrix map of unit vectors."""

from __future__ import annotations

from torch import Tensor, nn

from natgrad.layers.affine import AffineView
from natgrad.layers.base import rows_of
from natgrad.sample import OneHot

__all__ = ["EmbeddingView"]


class EmbeddingView(AffineView):
    """``z = W e_k``, ``W = weight^T [embedding_dim, num_embeddings]``, on indices ``k [n, ...]``.

    Input rows are unit vectors, so the input factor of every block is a diagonal (the frequencies
    of the indices), and the vocabulary is never written out. The row of ``padding_idx``, which
    receives no gradient, has the input zero. Indices ``[n]`` are ``n`` examples at one position.
    """

    module: nn.Embedding
    kind = "other"
    kinds = (nn.Embedding,)
    diagonal_input = True

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Options that change the gradient or the weight behind the loss's back."""
        assert isinstance(module, nn.Embedding)
        if module.sparse:
            return "sparse=True: its gradient is sparse, a natural gradient is not"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq=True: its gradient is not that of the loss"
        if module.max_norm is not None:
            return "max_norm: the forward pass changes the weight"
        return super().refuses(module)

    @property
    def has_bias(self) -> bool:
        """Never."""
        return False

    @property
    def shape(self) -> tuple[int, int]:
        """``(embedding_dim, num_embeddings)``."""
        return self.module.embedding_dim, self.module.num_embeddings

    def input_rows(self, h: Tensor) -> OneHot:
        """Indices ``[n, ...]`` as unit vectors ``[n, t]``, ``padding_idx`` as zero."""
        indices = rows_of(h.unsqueeze(-1)).squeeze(-1)
        if self.module.padding_idx is not None:
            indices = indices.masked_fill(indices == self.module.padding_idx, -1)
        return OneHot(indices.long(), self.module.num_embeddings)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, ..., embedding_dim]`` as ``[n, t, embedding_dim]``."""
        return rows_of(grad_z)

    def weight_as_matrix(self, weight: Tensor) -> Tensor:
        """``weight^T``."""
        return weight.mT

    def matrix_as_weight(self, W: Tensor) -> Tensor:
        """``W^T``."""
        return W.mT
