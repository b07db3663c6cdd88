"""Square matrices with zeros behind their rows, for a bias column makes widths odd.

Products with a matrix 785 wide take up to a third longer than with one 800 wide on the CPUs
measured (benchmarks/RESULTS.md). A padded matrix is an ordinary view of such memory; :func:`times`
multiplies by all of it and drops what is behind. One that has lost its padding (on another device,
in another dtype) is multiplied as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad.split import Matrix

__all__ = ["padded_zeros", "times"]

MULTIPLE = 16  #: of numbers, that rows are filled up to
LEAST = 256  #: narrower matrices are not worth it


def padded_zeros(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """``torch.zeros``; the rows of wide square matrices ``[.., d, d]`` are padded in memory."""
    square = len(shape) > 1 and shape[-1] == shape[-2]
    if not square or shape[-1] < LEAST or shape[-1] % MULTIPLE == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    wide = -(-shape[-1] // MULTIPLE) * MULTIPLE
    return torch.zeros(*shape[:-1], wide, dtype=dtype, device=device)[..., : shape[-1]]


def times(M: Tensor, U: Matrix) -> Tensor:
    """``M U``."""
    if not isinstance(U, Tensor) or not _is_padded(U):
        return M @ U
    wide = U.as_strided((*U.shape[:-1], U.stride(-2)), U.stride(), U.storage_offset())
    return (M @ wide)[..., : U.shape[-1]]


def _is_padded(U: Tensor) -> bool:
    """Whether it is what :func:`padded_zeros` made: the pad holds zeros, nothing else."""
    if U.ndim < 2 or U.stride(-1) != 1 or U.storage_offset() or U.shape[-1] < LEAST:
        return False
    d = U.shape[-1]
    wide = -(-d // MULTIPLE) * MULTIPLE
    whole = U.shape[:-1].numel() * wide
    return U.stride(-2) == wide > d and U.untyped_storage().nbytes() == whole * U.itemsize
