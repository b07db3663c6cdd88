"""Approximations of one layer's Fisher matrix: one file per approximation."""

from natgrad.blocks.base import Block
from natgrad.blocks.diagonal import Diagonal
from natgrad.blocks.ekfac import EKFAC, TEKFAC, EigenCorrected, EKFACRa, TEKFACRa
from natgrad.blocks.exact import Exact
from natgrad.blocks.kfac import KFAC
from natgrad.blocks.tkfac import TKFAC
from natgrad.blocks.two_factor import TwoFactor

__all__ = [
    "EKFAC",
    "KFAC",
    "TEKFAC",
    "TKFAC",
    "Block",
    "Diagonal",
    "EKFACRa",
    "EigenCorrected",
    "Exact",
    "TEKFACRa",
    "TwoFactor",
]
