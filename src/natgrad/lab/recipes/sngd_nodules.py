"""Classifying nodule candidates without normalization: SNGD paper, Table 1."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from natgrad.lab.nodules import judging
from natgrad.lab.nodules.candidates import NEGATIVES, generated, luna16, patches
from natgrad.lab.nodules.contextual import MultiLevel, planar
from natgrad.lab.nodules.pooling import of_fold
from natgrad.lab.nodules.study import FROC, POINTS, TEST, FrocStudy
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import Cell, Claim, Final, Number
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe, Suite
from natgrad.lab.space import Range

TABLE_1 = {
    "SGD": (0.677, 0.834, 0.927, 0.967, 0.979, 0.980, 0.981, 0.906),
    "SNGD": (0.701, 0.855, 0.941, 0.976, 0.982, 0.983, 0.983, 0.917),
}
SOURCE = "Liu & Liu 2021 (SNGD), Table 1"
LUNA16 = "LUNA16, 641,822 candidates of 888 scans, ten-fold"
ONE_FOLD = "one fold of the ten: sngd-nodules-folds pools them"
DIFFERS = (
    "the paper gives no learning rate, batch size, epochs or initialisation: here He's, a "
    "constant learning rate picked on the validation set for both optimizers over equally long "
    "grids, and a ridge for SNGD's roots (the paper has none); the three networks are those of Dou "
    "et al. 2017 without dropout and augmentation, and their first dense layer is written as the "
    "convolution it is, so that SNGD whitens its channels"
)


def numbers(reason: str = "", data: str = LUNA16) -> tuple[Number, ...]:
    """Those of Table 1.

    Args:
        reason: why ours are not comparable, if they are not.
        data: the paper's data set.
    """
    return tuple(
        Number(
            f"{name}, " + ("CPM" if heading == "CPM" else f"sensitivity at {heading} FP/scan"),
            value, "Table 1", data, Cell(FROC, f"{name}, {heading}", TEST),
            comparable=not reason, reason=reason,
        )
        for name, row in TABLE_1.items()
        for heading, value in zip((*POINTS, "CPM"), row, strict=True)
    )  # fmt: skip


AHEAD = Claim(
    "SNGD's CPM is higher than SGD's", "Table 1", LUNA16,
    Cell(FROC, "SNGD, CPM", TEST), Cell(FROC, "SGD, CPM", TEST),
)  # fmt: skip

AVERAGED = "sngd[average=1]"
AVERAGED_AHEAD = replace(
    AHEAD,
    what="SNGD's CPM is higher than SGD's with statistics averaged over batches",
    better=Cell(FROC, "SNGD, average 1, CPM", TEST),
    own=True,
)
AREA_AHEAD = Claim(
    "SNGD classifies candidates better than SGD (AUC in place of CPM)", "Table 1", LUNA16,
    Final("sngd"), Final("sgd"),
)  # fmt: skip
AVERAGED_AREA_AHEAD = replace(
    AREA_AHEAD,
    what="SNGD with statistics averaged over batches classifies candidates better than SGD",
    better=Final(AVERAGED),
    own=True,
)

OURS = f"training on {NEGATIVES:g} candidates without a nodule for one with"

#: 6 points each
GRIDS: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in (3e-3, 0.01, 0.03, 0.1, 0.2, 0.3)],
    "sngd": [{"lr": lr, "eps": eps} for eps in (0.3, 3.0) for lr in (3e-3, 0.01, 0.03)],
    AVERAGED: [
        {"lr": lr, "eps": eps, "every": 10} for eps in (0.3, 3.0) for lr in (3e-3, 0.01, 0.03)
    ],
}
#: 4 points each
_RATES = (3e-3, 0.01, 0.03, 0.1)
SHORT: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in _RATES],
    "sngd": [{"lr": lr, "eps": 0.3} for lr in _RATES],
    AVERAGED: [{"lr": lr, "eps": 0.3, "every": 10} for lr in _RATES],
}
SETTINGS: dict[str, Settings] = {
    "sgd": {"lr": 0.03},
    "sngd": {"lr": 0.01, "eps": 0.3},
    AVERAGED: {"lr": 0.01, "eps": 0.3, "every": 10},
}
SPACES = {
    "sgd": rates(1e-3, 1.0),
    **dict.fromkeys(("sngd", AVERAGED), ridged(1e-3, 0.3, Range(0.01, 30))),
}

#: mean and standard deviation of grey values, 0 to 255, of CT and of generated scans
GREY, PAINTED = (68.0, 68.0), (42.0, 44.0)
#: what is smaller in the smoke profiles beside data and network
QUICK = {
    "batch_size": 32,
    "epochs": 1,
    "tuning_epochs": 1,
    "grids": {name: grid[:1] for name, grid in GRIDS.items()},
    "settings": {name: grid[0] for name, grid in GRIDS.items()},
    "seeds": (0,),
    "threads": 1,
}
THINNED = (
    f"Train figures are over candidates thinned to {NEGATIVES:g} without a nodule for "
    "one with, hence at another rate of false positives than the test's, which are over all."
)


_WHOLE = Recipe(
    name="luna16",
    title="SNGD beside SGD, multi-level contextual 3D ConvNets on LUNA16's candidates",
    source=SOURCE,
    architecture=(
        "Dou et al. 2017: three ConvNets over 20x20x6, 30x30x10 and 40x40x26 voxels, three "
        "convolutions of 64 channels and a dense layer each, ReLU, no normalization, fused 0.3 / "
        "0.4 / 0.3"
    ),
    data=luna16(),
    network=partial(MultiLevel, grey=GREY),
    likelihood=judging.LIKELIHOOD,
    metric=judging.CPM,
    objective=judging.Candidates(judging.CPM),
    batch_size=64,
    l2=0.0,
    epochs=20,
    tuning_epochs=2,
    evaluations_per_epoch=1,
    grids=GRIDS,
    settings=SETTINGS,
    optimizers=("sgd", "sngd"),
    spaces=SPACES,
    paper=(*numbers(ONE_FOLD), AHEAD),
    study=FrocStudy(judging.marks_by, THINNED),
    profiles={
        "smoke": Profile(
            {
                "network": partial(MultiLevel, width=1 / 32, grey=GREY),
                "architecture": "the same with 2 channels",
                **QUICK,
            }
        ),
        "cpu": Profile(
            {
                "network": partial(MultiLevel, width=1 / 16, grey=GREY),
                "architecture": "the same with 4 channels",
                "batch_size": 16,
                "epochs": 3,
                "tuning_epochs": 1,
                "evaluations": 2,
                "grids": SHORT,
                "seeds": (0, 1),
                "threads": 1,
            }
        ),
    },
    differs=(f"{DIFFERS}; {OURS}; one fold of LUNA16's ten and three seeds in place of ten folds"),
)
#: of every subset in the smaller profiles
SCANS = {"smoke": 1, "cpu": 4}


def whole(fold: int = 9) -> Recipe:
    """The experiment on LUNA16, with a subset for the test set."""
    return of_fold(_WHOLE, fold, luna16, SCANS)


GENERATED = replace(
    _WHOLE,
    name="generated",
    title="SNGD beside SGD, multi-level contextual 3D ConvNets on generated nodules and vessels",
    data=generated(200, 50, 200),
    optimizers=("sgd", "sngd", AVERAGED),
    paper=(*numbers(), AHEAD, AVERAGED_AHEAD),
    study=FrocStudy(judging.marks_by),
    network=partial(MultiLevel, grey=PAINTED),
    profiles={
        "smoke": Profile(
            {
                "data": generated(2, 2, 2),
                "network": partial(MultiLevel, width=1 / 32, grey=PAINTED),
                "architecture": "the same with 2 channels",
                **QUICK,
            }
        ),
        "cpu": Profile(
            {
                "data": generated(24, 10, 24),
                "network": partial(MultiLevel, width=1 / 16, grey=PAINTED),
                "architecture": "the same with 4 channels",
                "batch_size": 16,
                "epochs": 6,
                "tuning_epochs": 2,
                "evaluations": 3,
                "grids": SHORT,
                "threads": 1,
            }
        ),
    },
    differs=f"{DIFFERS}; generated scans with nodules and vessels in place of CT",
)
PLANAR = replace(
    _WHOLE,
    name="patches",
    title="SNGD beside SGD, the 2D form of the networks on axial LUNA16 patches",
    architecture=(
        "the 2D form of Dou et al. 2017: three ConvNets over 20x20, 30x30 and 40x40 pixels, three "
        "5x5 convolutions of 64 channels and a dense layer each, ReLU, no normalization"
    ),
    data=patches(),
    network=partial(MultiLevel, planar(), grey=GREY, size=(50, 50)),
    metric=judging.AUC,
    objective=judging.Candidates(judging.AUC),
    study=None,
    train_evaluated=1_500,
    optimizers=("sgd", "sngd", AVERAGED),
    paper=(AREA_AHEAD, AVERAGED_AREA_AHEAD),
    profiles={
        "smoke": Profile(
            {
                "data": patches().first(64, 64, 64),
                "network": partial(MultiLevel, planar(), width=1 / 16, grey=GREY, size=(50, 50)),
                "architecture": "the same with 4 channels",
                **QUICK,
            }
        ),
        "cpu": Profile(
            {
                "network": partial(MultiLevel, planar(), width=1 / 8, grey=GREY, size=(50, 50)),
                "architecture": "the same with 8 channels",
                "epochs": 3,
                "tuning_epochs": 1,
                "threads": 1,
            }
        ),
    },
    differs=(
        f"{DIFFERS}; 2D patches whose negatives were thinned to five for a nodule; of which scan a "
        "patch is, is not known, so there is no FROC curve: the AUC stands in its place"
    ),
)

RECIPE = Suite(
    name="sngd-nodules",
    title="SNGD beside SGD on lung nodule candidates, 3D and 2D ConvNets without normalization",
    source=SOURCE,
    variants={"patches": PLANAR, "generated": GENERATED, "luna16": whole()},
)
