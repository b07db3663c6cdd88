"""One optimizer for each approximation of the Fisher matrix."""

from __future__ import annotations

from types import MappingProxyType

from natgrad import blocks
from natgrad.optim.base import NaturalGradient

__all__ = ["EKFAC", "KFAC", "TEKFAC", "TKFAC"]

UNTOUCHED = MappingProxyType(
    {"damping": 0.03, "kl_clip": 1e-3, "stats_every": 5, "refresh_every": 50, "burn_in": 5}
)


class KFAC(NaturalGradient):
    """K-FAC (Martens & Grosse 2015, arXiv 1503.05671): ``U = G^-1 M A^-1`` for every layer.

    A plain number as damping is factored Tikhonov damping with ``pi`` (MATH 1). Arguments:
    :class:`NaturalGradient`.
    """

    block = blocks.KFAC
    untouched = UNTOUCHED


class EKFAC(NaturalGradient):
    """EKFAC (George et al. 2018, arXiv 1806.03884): K-FAC's eigenbases, with measured eigenvalues.

    ``U = U_G [(U_G^T M U_A) / (s + damping)] U_A^T`` with ``s = E[(U_G^T J U_A)^2]`` (MATH 2). A
    plain number as damping is added to ``s``. Arguments: :class:`NaturalGradient`.
    """

    block = blocks.EKFAC
    untouched = UNTOUCHED


class TKFAC(NaturalGradient):
    """TKFAC (Gao et al. 2020, arXiv 2011.10741): one Kronecker product that keeps the trace.

    ``U = (sqrt(delta) Psi + r I)^-1 M (sqrt(delta) Phi + r I)^-1`` with ``r = sqrt(damping)``
    for a plain number (their 5.14, 5.15; MATH 3). Arguments: :class:`NaturalGradient`.
    """

    block = blocks.TKFAC
    untouched = UNTOUCHED


class TEKFAC(NaturalGradient):
    """TEKFAC (Gao et al. 2020, arXiv 2011.13609): TKFAC's eigenbases, with measured eigenvalues.

    ``U = Q_Psi [(Q_Psi^T M Q_Phi) / (Theta + damping)] Q_Phi^T`` (their 3.9; MATH 4). A plain
    number as damping is added to ``Theta``; :class:`natgrad.damping.TraceRestricted` is their
    (3.5). Arguments: :class:`NaturalGradient`.
    """

    block = blocks.TEKFAC
    untouched = UNTOUCHED
