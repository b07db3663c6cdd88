"""natgrad: training neural networks with the natural gradient, in PyTorch."""

from natgrad import blocks, damping
from natgrad._version import __version__
from natgrad.compare import Comparison, compare
from natgrad.fisher import fisher
from natgrad.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.operator import Fisher
from natgrad.optim import EKFAC, KFAC, TEKFAC, TKFAC, ExactNGD
from natgrad.preconditioner import Preconditioner

__all__ = [
    "EKFAC",
    "KFAC",
    "TEKFAC",
    "TKFAC",
    "Bernoulli",
    "Categorical",
    "Comparison",
    "ExactNGD",
    "Fisher",
    "Gaussian",
    "Likelihood",
    "Preconditioner",
    "__version__",
    "blocks",
    "compare",
    "damping",
    "fisher",
]
