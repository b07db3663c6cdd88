"""SPRING: momentum inside of the least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Spring"]


@dataclass(frozen=True)
class Spring:
    """The last step decayed as the point that the next is pulled to, in place of zero.

    ``phi_k = argmin_x |J x - r|^2 + damping |x - decay phi_{k-1}|^2``
    ``      = decay phi_{k-1} + (J^T J + damping I)^-1 J^T (r - decay J phi_{k-1})``,
    ``w <- w - lr phi_k``: where the batch says nothing of a direction, earlier batches speak
    (Goldshlager, Abrahamsen & Lin 2024, arXiv 2401.10190; for physics-informed networks
    Guzmán-Cordero et al. 2025, arXiv 2505.12149). Heavy-ball momentum adds up natural gradients
    instead, and goes too far where batches agree. There is no correction of the first steps, which
    are shorter by nothing: ``phi_1`` is the plain natural gradient.

    Given as ``momentum=natgrad.Spring(0.9)`` to :class:`natgrad.ExactNGD`, for residuals.

    Args:
        decay: ``mu`` of the papers.

    Raises:
        ValueError: ``decay`` is not in [0, 1).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"Spring: decay must be in [0, 1), got {self.decay}")
