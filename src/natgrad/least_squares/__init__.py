"""Least squares: the natural gradient of a user's own residuals, ``1/2 |r(w)|^2``.

For residuals ``r`` with Jacobian ``J = dr/dw`` and the Gaussian likelihood the Fisher matrix is
``J^T J`` (Gauss-Newton; for physics-informed networks the energy natural gradient of Müller &
Zeinhofer 2023, arXiv 2302.13163), so that the damped natural gradient is the solution of a linear
least-squares problem,

``(J^T J + damping I)^-1 J^T r = argmin_x |J x - r|^2 + damping |x|^2``,

which can be solved without squaring the condition of ``J``. :class:`natgrad.ExactNGD` takes such
residuals in ``step``.
"""

from natgrad.least_squares.derivatives import laplacian
from natgrad.least_squares.engine import LeastSquares
from natgrad.least_squares.residuals import PointResiduals, loss
from natgrad.least_squares.search import Backtracking, GridSearch, LineSearch
from natgrad.least_squares.solvers import ConjugateGradient
from natgrad.least_squares.spring import Spring

__all__ = [
    "Backtracking",
    "ConjugateGradient",
    "GridSearch",
    "LeastSquares",
    "LineSearch",
    "PointResiduals",
    "Spring",
    "laplacian",
    "loss",
]
