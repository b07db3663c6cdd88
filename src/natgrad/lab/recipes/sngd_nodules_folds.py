"""SNGD paper, Table 1, as it was measured: ten-fold cross-validation on LUNA16."""

from __future__ import annotations

from dataclasses import replace

from natgrad.lab.nodules.pooling import by_folds
from natgrad.lab.recipe import Recipe, Suite
from natgrad.lab.recipes import sngd_nodules

DATA = "LUNA16, 888 scans, ten-fold"


def _whole(fold: int) -> Recipe:
    differs = (
        f"{sngd_nodules.DIFFERS}; {sngd_nodules.OURS}; the second of LUNA16's lists of candidates "
        "(the paper counts 641,822 in all); three seeds"
    )
    return replace(sngd_nodules.whole(fold), differs=differs)


RECIPE = Suite(
    name="sngd-nodules-folds",
    title="SNGD beside SGD on LUNA16's candidates, ten-fold cross-validation",
    source=sngd_nodules.SOURCE,
    variants=by_folds(
        _whole,
        DATA,
        (*sngd_nodules.numbers(data=DATA), replace(sngd_nodules.AHEAD, data=DATA)),
        sngd_nodules.THINNED,
    ),
)
