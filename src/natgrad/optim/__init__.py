"""The preconditioned optimizers: drop-in ``torch.optim.Optimizer``."""

from natgrad.optim.base import NaturalGradient
from natgrad.optim.exact import ExactNGD
from natgrad.optim.methods import EKFAC, KFAC, TEKFAC, TKFAC

__all__ = ["EKFAC", "KFAC", "TEKFAC", "TKFAC", "ExactNGD", "NaturalGradient"]
