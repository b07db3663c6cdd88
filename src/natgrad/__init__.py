"""natgrad: training neural networks with the natural gradient, in PyTorch."""

from natgrad import blocks, damping, roots
from natgrad._version import __version__
from natgrad.compare import Comparison, compare
from natgrad.fisher import fisher
from natgrad.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from natgrad.operator import Fisher
from natgrad.optim import EKFAC, KFAC, TEKFAC, TKFAC, ExactNGD
from natgrad.preconditioner import Preconditioner
from natgrad.whiten import PRONG, SNGD, PRONGPlus, Whitened, Whitener, fold, whiten

__all__ = [
    "EKFAC",
    "KFAC",
    "PRONG",
    "SNGD",
    "TEKFAC",
    "TKFAC",
    "Bernoulli",
    "Categorical",
    "Comparison",
    "ExactNGD",
    "Fisher",
    "Gaussian",
    "Likelihood",
    "PRONGPlus",
    "Preconditioner",
    "Whitened",
    "Whitener",
    "__version__",
    "blocks",
    "compare",
    "damping",
    "fisher",
    "fold",
    "roots",
    "whiten",
]
