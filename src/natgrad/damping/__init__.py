"""What is added to a curvature block before it is inverted.

A damping object answers one of two questions, from the block's traces alone. ``ridges`` gives a
ridge for each of the two factors of a Kronecker block, so that plain inverses of the factors do;
``ridge`` gives one number that is added to the eigenvalues of the whole block. Two-factor blocks
ask for ``ridges`` where there is one, all others for ``ridge``. An object of one's own is a class
with either method::

    class Halving:
        def ridge(self, trace, dim):
            return 0.5 * trace / dim

What depends on the other layers too goes through ``across`` (:class:`NetworkDamping`).
"""

from natgrad.damping.base import (
    Damping,
    EigenvalueDamping,
    FactoredDamping,
    LayerCurvature,
    LayerDamping,
    NetworkDamping,
    checked,
    on_eigenvalues,
)
from natgrad.damping.fixed import Constant, Factored, Given
from natgrad.damping.levenberg_marquardt import LevenbergMarquardt
from natgrad.damping.trace_restricted import FC_SCALES, TraceRestricted

__all__ = [
    "FC_SCALES",
    "Constant",
    "Damping",
    "EigenvalueDamping",
    "Factored",
    "FactoredDamping",
    "Given",
    "LayerCurvature",
    "LayerDamping",
    "LevenbergMarquardt",
    "NetworkDamping",
    "TraceRestricted",
    "checked",
    "on_eigenvalues",
]
