"""Reparametrized networks: plain gradient descent in whitened coordinates."""

from __future__ import annotations

from natgrad.whiten.convert import fold, whiten
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.diagnostics import WhiteningReport, WhiteningRow, whitening_report
from natgrad.whiten.module import Whitened
from natgrad.whiten.prong import PRONG
from natgrad.whiten.prong_plus import PRONGPlus
from natgrad.whiten.rule import Rule
from natgrad.whiten.sngd import SNGD
from natgrad.whiten.whitener import Whitener

__all__ = [
    "PRONG", "SNGD", "Constants", "PRONGPlus", "Rule", "Whitened", "Whitener", "WhiteningReport",
    "WhiteningRow", "fold", "whiten", "whitening_report",
]  # fmt: skip
