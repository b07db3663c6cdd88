"""Approximations of one layer's Fisher matrix: one file per approximation."""

from natgrad.blocks.base import Block
from natgrad.blocks.kfac import KFAC

__all__ = ["KFAC", "Block"]
