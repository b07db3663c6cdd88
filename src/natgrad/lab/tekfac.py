"""What the experiments of the TEKFAC paper have in common (Gao et al. 2020, arXiv 2011.13609)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from natgrad.lab.augmentation import RandomCrop
from natgrad.lab.data import DataSet
from natgrad.lab.image_networks import VGG16, Channels, of_pixels, resnet20, vgg16bn
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.optimizers import Settings
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Choice, Space
from natgrad.likelihood import Categorical

__all__ = ["DAMPINGS", "NETWORKS", "NOT_PRINTED", "NUS", "RATES", "SOURCE", "classifier"]

SOURCE = "Gao et al. 2020 (TEKFAC, arXiv 2011.13609)"
#: what the paper tried: a sweep draws from all of it, a tuning grid takes ten points of it for
#: every optimizer
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DAMPINGS = (1e-8, 1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
NUS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)

NOT_PRINTED = (
    "the paper does not print its number of epochs, the decay of its averages, the steps between "
    "statistics, decompositions and scales, or whether its Fisher is sampled: here a learning rate "
    "that falls to a tenth in equal steps, 0.95, 10, 50, 10, sampled; scale and shift of BatchNorm "
    "get their exact 2x2 blocks; damping is in units of the mean loss's Fisher"
)
TUNED = (
    "settings are picked on validation images held out of the training set, the same number of "
    "points for every optimizer, within the ranges that the paper tried"
)

_SMALL_VGG, _TINY_VGG = (tuple(width // part for width in VGG16) for part in (8, 32))
#: the networks at full size, on two cores, and in the smoke test, in words and as functions
NETWORKS: Mapping[str, tuple[tuple[str, Callable[[int], nn.Sequential]], ...]] = {
    "resnet20": (
        ("ResNet-20, widths 16-32-64, BatchNorm", resnet20),
        ("ResNet-20, widths 8-16-32, BatchNorm", partial(resnet20, widths=(8, 16, 32))),
        ("ResNet-20, widths 4-4-4, BatchNorm", partial(resnet20, widths=(4, 4, 4))),
    ),
    "vgg16": (
        ("VGG16, BatchNorm, one dense layer", vgg16bn),
        ("VGG16 with 1/8 of the channels, BatchNorm", partial(vgg16bn, layout=_SMALL_VGG)),
        ("VGG16 with 1/32 of the channels, BatchNorm", partial(vgg16bn, layout=_TINY_VGG)),
    ),
}


def _pairs(key: str, *points: tuple[float, float]) -> list[Settings]:
    return [{"lr": lr, key: value} for lr, value in points]


_FIXED = _pairs(
    "damping",
    (1e-4, 1e-3), (3e-4, 1e-3), (3e-4, 3e-3), (1e-3, 3e-3), (1e-3, 0.01),
    (3e-3, 0.01), (3e-3, 0.03), (0.01, 0.03), (0.01, 0.1), (0.03, 0.1),
)  # fmt: skip
_RESTRICTED = _pairs(
    "nu", *((lr, nu) for lr in (1e-4, 3e-4, 1e-3, 3e-3, 0.01) for nu in (0.01, 1.0))
)
GRIDS: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in RATES],
    "adam": [{"lr": lr} for lr in RATES],
    "ekfac": _FIXED,
    "ekfac_restricted": _RESTRICTED,
    "tkfac_restricted": _RESTRICTED,
    "tekfac_restricted": _RESTRICTED,
}
SETTINGS: dict[str, Settings] = {
    "sgd": {"lr": 0.1},
    "adam": {"lr": 1e-3},
    "ekfac": {"lr": 3e-3, "damping": 0.03},
    **{name: {"lr": 1e-3, "nu": 0.01} for name in GRIDS if name.endswith("_restricted")},
}
#: three points each for two cores, those around what short runs prefer
SMALL_GRIDS: dict[str, list[Settings]] = {
    "sgd": [{"lr": lr} for lr in (0.03, 0.1, 0.3)],
    "adam": [{"lr": lr} for lr in (1e-3, 3e-3, 0.01)],
    "ekfac": _pairs("damping", (3e-3, 0.03), (0.01, 0.03), (0.03, 0.1)),
    **{
        name: _pairs("nu", (3e-4, 0.01), (1e-3, 0.01), (3e-3, 0.01))
        for name in GRIDS
        if name.endswith("_restricted")
    },
}


#: the paper's grids as they are printed
SPACES: Mapping[str, Space] = {
    "sgd": {"lr": Choice(RATES)},
    "adam": {"lr": Choice(RATES)},
    "ekfac": {"lr": Choice(RATES), "damping": Choice(DAMPINGS)},
    **{
        name: {"lr": Choice(RATES), "nu": Choice(NUS)}
        for name in GRIDS
        if name.endswith("_restricted")
    },
}


def classifier(network: str, data: DataSet, channels: Channels, classes: int) -> Recipe:
    """A network on a data set with the paper's settings, and in two smaller sizes.

    Images are cropped and mirrored where they are no digits. SVHN's learning rate falls every 20
    epochs, the others' every 40.

    Args:
        network: ``"resnet20"`` or ``"vgg16"``.
        data: the data set.
        channels: of its pixels.
        classes: of its labels.
    """
    digits = data.name.startswith("SVHN")
    (words, full), small, tiny = NETWORKS[network]
    front = partial(_front, channels, classes)
    return Recipe(
        name=network,
        title=f"{words.partition(',')[0]} on {data.name}",
        source=SOURCE,
        architecture=words,
        data=data,
        network=partial(front, full),
        likelihood=Categorical(),
        metric=ACCURACY,
        batch_size=128,
        l2=0.0,
        epochs=60 if digits else 120,
        tuning_epochs=5 if digits else 10,
        evaluations_per_epoch=1,
        schedule="steps:20:0.1" if digits else "steps:40:0.1",
        augmentation=None if digits else RandomCrop(padding=4),
        grids=GRIDS,
        settings=SETTINGS,
        optimizers=tuple(GRIDS),
        spaces=SPACES,
        differs=f"{NOT_PRINTED}; {TUNED}",
        profiles={
            "cpu": Profile(
                {
                    "data": data.first(8_000, 1_000, 5_000),
                    "network": partial(front, small[1]),
                    "architecture": small[0],
                    "grids": SMALL_GRIDS,
                    "settings": {name: grid[1] for name, grid in SMALL_GRIDS.items()},
                    "train_evaluated": 1_000,
                    "epochs": 4,
                    "tuning_epochs": 1,
                    "evaluations": 2,
                    "schedule": "steps:3:0.1",
                }
            ),
            "smoke": Profile(
                {
                    "data": data.first(64, 32, 32),
                    "network": partial(front, tiny[1]),
                    "architecture": tiny[0],
                    "grids": {name: grid[:1] for name, grid in SMALL_GRIDS.items()},
                    "settings": {name: grid[0] for name, grid in SMALL_GRIDS.items()},
                    "optimizers": ("sgd", "ekfac", "tekfac_restricted"),
                    "batch_size": 32,
                    "epochs": 1,
                    "tuning_epochs": 1,
                    "schedule": "steps:0.5:0.1",
                    "seeds": (0,),
                }
            ),
        },
    )


def _front(
    channels: Channels, classes: int, network: Callable[[int], nn.Sequential]
) -> nn.Sequential:
    return of_pixels(partial(network, classes), channels)
