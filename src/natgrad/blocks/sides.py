"""The two factors of a Kronecker block, each kept dense, as its diagonal, or as diagonal blocks."""

from __future__ import annotations

from torch import Tensor

from natgrad import linalg
from natgrad.split import Matrix, Split

__all__ = ["Side", "side"]


class Side:
    """How a factor of ``width`` is kept: here dense ``[(q,) width, width]``.

    Functions take what is kept, with a leading ``q`` for a layer in groups.
    """

    split: Split | None = None  #: the blocks on the diagonal that are kept, if not all is
    diagonal = False  #: whether the diagonal is all there is

    def __init__(self, width: int) -> None:
        self.width = width
        self.shape: tuple[int, ...] = (width, width)  #: of what is kept
        self.entries = width**2  #: multiply-adds of a product with one row
        self.cubes = width**3  #: what a decomposition costs in proportion to
        self.runs: tuple[tuple[int, int], ...] = ((1, width),)  #: blocks and their width, by stack

    def __str__(self) -> str:
        return str(self.width)

    @property
    def is_whole(self) -> bool:
        """Whether it is kept as the whole matrix."""
        return self.split is None and not self.diagonal

    def matrix(self, kept: Tensor) -> Matrix:
        """For products; the vector itself where diagonal."""
        return kept

    def dense(self, kept: Tensor) -> Tensor:
        """Written out."""
        return kept

    def trace(self, kept: Tensor) -> Tensor:
        """``[(q,)]``."""
        return linalg.trace(kept)

    def eigenvalues(self, kept: Tensor) -> Tensor:
        """``[(q,) width]``."""
        return linalg.eigenvalues(kept)

    def largest(self, kept: Tensor) -> Tensor:
        """The largest eigenvalue, by power iteration."""
        return linalg.largest_eigenvalue(kept)

    def squared_norm(self, kept: Tensor) -> Tensor:
        """Sum of the squared entries."""
        return kept.square().flatten(-len(self.shape)).sum(-1)


class _DiagonalSide(Side):
    """A diagonal factor, kept as a vector; it costs next to nothing."""

    diagonal = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.shape, self.entries, self.cubes, self.runs = (width,), 0, 0, ()

    def dense(self, kept: Tensor) -> Tensor:
        return kept.diag_embed()

    def trace(self, kept: Tensor) -> Tensor:
        return kept.sum(-1)

    def eigenvalues(self, kept: Tensor) -> Tensor:
        return kept

    def largest(self, kept: Tensor) -> Tensor:
        return kept.amax(-1)


class _SplitSide(Side):
    """A wide factor replaced by blocks on its diagonal, their entries kept as a vector."""

    split: Split

    def __init__(self, width: int, split: Split) -> None:
        super().__init__(width)
        self.split, self.shape = split, (split.entries,)
        self.entries, self.cubes, self.runs = split.entries, split.cubes, split.runs

    def __str__(self) -> str:
        return f"{self.width} in {sum(count for count, _ in self.split.runs)}"

    def matrix(self, kept: Tensor) -> Matrix:
        return self.split.matrix(kept)

    def dense(self, kept: Tensor) -> Tensor:
        return self.split.matrix(kept).dense()

    def trace(self, kept: Tensor) -> Tensor:
        return self.split.matrix(kept).per_block(linalg.trace).sum(-1)

    def eigenvalues(self, kept: Tensor) -> Tensor:
        return self.split.matrix(kept).joined(linalg.eigenvalues)

    def largest(self, kept: Tensor) -> Tensor:
        return self.split.matrix(kept).per_block(linalg.largest_eigenvalue).amax(-1)


def side(width: int, diagonal: bool = False, widest: int | None = None) -> Side:
    """The way to keep a factor; a diagonal one is never split."""
    split = None if diagonal else Split.of(width, widest)
    if split is not None:
        return _SplitSide(width, split)
    return _DiagonalSide(width) if diagonal else Side(width)
