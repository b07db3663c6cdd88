"""Detecting nodules in volumes: SNGD paper, Table 2 and its loss curves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from natgrad.lab.nodules import detection
from natgrad.lab.nodules.phantom import Style
from natgrad.lab.nodules.pooling import of_fold
from natgrad.lab.nodules.pyramid import PyramidDetector
from natgrad.lab.nodules.study import FROC, LOSS, POINTS, TEST, DetectionStudy
from natgrad.lab.nodules.volumes import EMPTY_PIECES, generated_volumes, luna16_volumes
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import Cell, Claim, Number
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe, Suite
from natgrad.lab.space import Range
from natgrad.likelihood import Gaussian

TABLE_2 = {
    "SGD + BatchNorm": (0.738, 0.875, 0.923, 0.955, 0.96, 0.961, 0.961, 0.910),
    "SGD": (0.725, 0.874, 0.918, 0.949, 0.957, 0.958, 0.959, 0.906),
    "SNGD": (0.806, 0.893, 0.927, 0.958, 0.966, 0.971, 0.972, 0.927),
}
SOURCE = "Liu & Liu 2021 (SNGD), Table 2 and the loss curves after it"
LUNA16 = "LUNA16, 888 scans, ten-fold"
ONE_FOLD = "one fold of the ten: sngd-detection-folds pools them"
THINNED = (
    f"Train figures are over the pieces with a nodule and {EMPTY_PIECES} without for one "
    "with, hence at another rate of false positives than the test's, which are over whole scans."
)
DIFFERS = (
    "PiaNet is rebuilt from its description: plain 3x3x3 convolutions, one grid of cells four "
    "voxels apart with centre and radius in place of boxes at several scales, focal loss; the "
    "paper gives no learning rate, momentum, epochs or initialisation: here momentum 0.9, He's, a "
    "constant learning rate picked on the validation set for every optimizer over equally long "
    "grids, and a ridge for SNGD's roots (the paper has none)"
)


def numbers(reason: str = "") -> tuple[Number, ...]:
    """Those of Table 2.

    Args:
        reason: why ours are not comparable, if they are not.
    """
    return tuple(
        Number(
            f"{name}, " + ("CPM" if heading == "CPM" else f"sensitivity at {heading} FP/scan"),
            value, "Table 2", LUNA16, Cell(FROC, f"{name}, {heading}", TEST),
            comparable=not reason, reason=reason,
        )
        for name, row in TABLE_2.items()
        for heading, value in zip((*POINTS, "CPM"), row, strict=True)
    )  # fmt: skip


AHEAD = (
    Claim(
        "SNGD's CPM is higher than SGD's", "Table 2", LUNA16,
        Cell(FROC, "SNGD, CPM", TEST), Cell(FROC, "SGD, CPM", TEST),
    ),
    Claim(
        "SNGD's CPM is higher than that of SGD with BatchNorm", "Table 2", LUNA16,
        Cell(FROC, "SNGD, CPM", TEST), Cell(FROC, "SGD + BatchNorm, CPM", TEST),
    ),
)  # fmt: skip
AVERAGED = "sngd[average=1]"
AVERAGED_AHEAD = replace(
    AHEAD[0],
    what="SNGD's CPM is higher than SGD's with statistics averaged over batches",
    better=Cell(FROC, "SNGD, average 1, CPM", TEST),
    own=True,
)
FASTER = Claim(
    "SNGD takes fewer epochs to SGD's final training loss (loss .13 at 20 epochs, not 100)",
    "loss curves", LUNA16, Cell(LOSS, "SNGD", "epochs"), Cell(LOSS, "SGD", "epochs"), "lower",
)  # fmt: skip

#: 4 points each
GRIDS: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 0.01)],
    "sgd_bn": [{"lr": lr} for lr in (3e-3, 0.01, 0.03, 0.1)],
    "sngd": [{"lr": lr, "eps": eps} for eps in (0.1, 1.0) for lr in (1e-3, 3e-3)],
    AVERAGED: [{"lr": lr, "eps": eps, "every": 10} for eps in (0.1, 1.0) for lr in (1e-3, 3e-3)],
}
SETTINGS: dict[str, Settings] = {
    "sgd": {"lr": 3e-3},
    "sgd_bn": {"lr": 0.03},
    "sngd": {"lr": 3e-3, "eps": 1.0},
    AVERAGED: {"lr": 3e-3, "eps": 1.0, "every": 10},
}
#: 3 points each
SHORT: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in (1e-3, 3e-3, 0.01)],
    "sgd_bn": [{"lr": lr} for lr in (3e-3, 0.01, 0.03)],
    "sngd": [{"lr": lr, "eps": 1.0} for lr in (1e-3, 3e-3, 0.01)],
    AVERAGED: [{"lr": lr, "eps": 1.0, "every": 10} for lr in (1e-3, 3e-3, 0.01)],
}
#: mean and standard deviation of grey values, 0 to 255, of CT and of generated scans
GREY, PAINTED = (68.0, 68.0), (42.0, 44.0)
#: what is smaller in the smoke profiles beside the data
QUICK = {
    "network": partial(PyramidDetector, (2, 4, 4), grey=PAINTED),
    "architecture": "the same with 2, 4 and 4 channels at three scales",
    "epochs": 1,
    "tuning_epochs": 1,
    "grids": {name: grid[:1] for name, grid in GRIDS.items()},
    "settings": {name: grid[0] for name, grid in GRIDS.items()},
    "seeds": (0,),
    "threads": 1,
}

_WHOLE = Recipe(
    name="luna16",
    title="SNGD beside SGD and SGD with BatchNorm at batch 2, a pyramid-input detector on LUNA16",
    source=SOURCE,
    architecture=(
        "contracting and expanding 3D ConvNet with the input added at every scale, 32, 64, 64 and "
        "64 channels at 1/2 to 1/16 of the resolution, ReLU; objectness, offset and radius of "
        "cells 4 voxels apart"
    ),
    data=luna16_volumes(),
    network=partial(PyramidDetector, grey=GREY),
    likelihood=Gaussian(),  # its maps are read as plain numbers
    metric=detection.DETECTION_CPM,
    objective=detection.Detection(),
    batch_size=2,
    l2=0.0,
    epochs=100,
    tuning_epochs=5,
    evaluations_per_epoch=1,
    train_evaluated=200,
    grids=GRIDS,
    settings=SETTINGS,
    optimizers=("sgd", "sgd_bn", "sngd"),
    spaces={
        "sgd": rates(1e-4, 0.1),
        "sgd_bn": rates(1e-3, 1.0),
        **dict.fromkeys(("sngd", AVERAGED), ridged(1e-4, 0.1, Range(0.01, 30))),
    },
    paper=(*numbers(ONE_FOLD), *AHEAD, FASTER),
    study=DetectionStudy(detection.marks_by, THINNED),
    profiles={
        "smoke": Profile(QUICK),
        "cpu": Profile(
            {
                "network": partial(PyramidDetector, (4, 8, 12, 16), grey=GREY),
                "architecture": "the same with 4, 8, 12 and 16 channels",
                "epochs": 8,
                "tuning_epochs": 2,
                "evaluations": 4,
                "grids": SHORT,
                "seeds": (0, 1),
                "threads": 1,
            }
        ),
    },
    differs=f"{DIFFERS}; one fold of LUNA16's ten and three seeds in place of ten folds",
)
#: of every subset in the smaller profiles
SCANS = {"smoke": 1, "cpu": 1}


def whole(fold: int = 9) -> Recipe:
    """The experiment on LUNA16, with a subset for the test set."""
    return of_fold(_WHOLE, fold, luna16_volumes, SCANS)


GENERATED = replace(
    _WHOLE,
    name="generated",
    title="SNGD beside SGD and SGD with BatchNorm at batch 2, detecting generated nodules",
    data=generated_volumes(400, 50, 200, Style(size=(96, 96, 96), nodules=4.0, vessels=10)),
    network=partial(PyramidDetector, grey=PAINTED),
    optimizers=("sgd", "sgd_bn", "sngd", AVERAGED),
    paper=(*numbers(), *AHEAD, AVERAGED_AHEAD, FASTER),
    study=DetectionStudy(detection.marks_by),
    profiles={
        "smoke": Profile(
            {**QUICK, "data": generated_volumes(4, 2, 8, Style(size=(32, 32, 32), nodules=3.0))}
        ),
        "cpu": Profile(
            {
                "data": generated_volumes(
                    160, 30, 60, Style(size=(48, 48, 48), nodules=2.5, vessels=3)
                ),
                "network": partial(PyramidDetector, (4, 8, 12, 16), grey=PAINTED),
                "architecture": "the same with 4, 8, 12 and 16 channels",
                "epochs": 8,
                "tuning_epochs": 2,
                "evaluations": 8,
                "grids": SHORT,
                "train_evaluated": 40,
                "threads": 1,
            }
        ),
    },
    differs=f"{DIFFERS}; generated scans with nodules and vessels in place of CT",
)

RECIPE = Suite(
    name="sngd-detection",
    title="SNGD beside SGD and SGD with BatchNorm, detecting lung nodules in volumes",
    source=SOURCE,
    variants={"generated": GENERATED, "luna16": whole()},
)
