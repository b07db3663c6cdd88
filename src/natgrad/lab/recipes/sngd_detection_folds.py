"""SNGD paper, Table 2, as it was measured: ten-fold cross-validation on LUNA16."""

from __future__ import annotations

from dataclasses import replace

from natgrad.lab.nodules.pooling import by_folds
from natgrad.lab.recipe import Recipe, Suite
from natgrad.lab.recipes import sngd_detection


def _whole(fold: int) -> Recipe:
    differs = f"{sngd_detection.DIFFERS}; three seeds"
    return replace(sngd_detection.whole(fold), differs=differs)


RECIPE = Suite(
    name="sngd-detection-folds",
    title="SNGD beside SGD and SGD with BatchNorm, detecting nodules, ten-fold cross-validation",
    source=sngd_detection.SOURCE,
    variants=by_folds(
        _whole,
        sngd_detection.LUNA16,
        (*sngd_detection.numbers(), *sngd_detection.AHEAD),
        sngd_detection.THINNED,
    ),
)
