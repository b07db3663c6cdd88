"""PRONG+ and BatchNorm on an Inception network (PRONG paper, Fig. 4c and d)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from natgrad.lab.augmentation import RandomCrop
from natgrad.lab.data import DataSet
from natgrad.lab.image_networks import IMAGENET_CHANNELS, of_pixels
from natgrad.lab.image_sets import IMAGENET, TINY_IMAGENET
from natgrad.lab.inception import GOOGLENET, inception
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import At, Claim, Final, Number, Reached
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe, Suite
from natgrad.lab.space import Range
from natgrad.likelihood import Categorical

SOURCE = "Desjardins et al. 2015 (PRONG, arXiv 1507.00210), Fig. 4c and d"
WHERE, PAPERS = "Fig. 4d", IMAGENET.name
PLUS = "prongplus[reading=batchnorm]"
#: two modules, a pooling between them
SHALLOW = (GOOGLENET[0], (0,), GOOGLENET[3])


def _network(
    size: int, classes: int, width: float, small: bool, layout: Sequence[Sequence[int]] = GOOGLENET
) -> nn.Sequential:
    network = partial(inception, classes, width, small, layout)
    return of_pixels(network, IMAGENET_CHANNELS, size)


def _rates(*rates: float) -> list[Settings]:
    return [{"lr": lr} for lr in rates]


def _whitened(*points: tuple[float, float], every: int, samples: int) -> list[Settings]:
    return [{"lr": lr, "eps": eps, "every": every, "samples": samples} for lr, eps in points]


_FULL = partial(_whitened, every=1000, samples=1000)
_SMALL = partial(_whitened, every=50, samples=200)
GRIDS = {  # 4 points each
    "sgd": _rates(3e-3, 0.01, 0.03, 0.1),
    "sgd_bn": _rates(0.01, 0.03, 0.1, 0.3),
    PLUS: _FULL((0.01, 0.1), (0.03, 0.1), (0.1, 0.1), (0.1, 1.0)),
    "prong": _FULL((3e-3, 0.1), (0.01, 0.1), (0.03, 0.1), (0.1, 1.0)),
}
SMALL_GRIDS = {
    "sgd": _rates(0.01, 0.03, 0.1),
    "sgd_bn": _rates(0.03, 0.1, 0.3),
    PLUS: _SMALL((0.03, 0.1), (0.1, 0.1), (0.1, 1.0)),
    "prong": _SMALL((3e-3, 0.1), (0.03, 0.1), (0.1, 1.0)),
}
SMOKE_GRIDS = {
    **{name: grid[:1] for name, grid in SMALL_GRIDS.items()},
    PLUS: _whitened((0.01, 0.1), every=1, samples=16),
    "prong": _whitened((1e-4, 0.1), every=1, samples=16),
}
NUMBERS = (
    Number(
        "BatchNorm, top-1 validation error", 28.6, WHERE, PAPERS, Final("sgd_bn", complement=True),
        unit="%",
    ),
    Number(
        "PRONG+, top-1 validation error", 28.9, WHERE, PAPERS, Final(PLUS, complement=True),
        unit="%",
    ),
    Number(
        "BatchNorm, top-1 validation error after 1e5 updates", 46.0, "Fig. 4c", PAPERS,
        At("sgd_bn", "test_metric", "updates", 1e5, complement=True), unit="%",
    ),
    Number(
        "PRONG+, top-1 validation error after 1e5 updates", 36.0, "Fig. 4c", PAPERS,
        At(PLUS, "test_metric", "updates", 1e5, complement=True), unit="%",
    ),
    Number(
        "SGD, top-1 validation error", 32.1, WHERE, PAPERS, Final("sgd", complement=True), unit="%"
    ),
)  # fmt: skip
CLAIMS = (
    Claim(
        "PRONG+ needs fewer updates than BatchNorm", "Fig. 4c", PAPERS,
        Reached(PLUS), Reached("sgd_bn"), "lower",
    ),
    Claim("PRONG+ is more accurate than SGD", WHERE, PAPERS, Final(PLUS), Final("sgd")),
    Claim("BatchNorm is more accurate than SGD", WHERE, PAPERS, Final("sgd_bn"), Final("sgd")),
    Claim(
        "PRONG+ ends at a lower training loss than PRONG, renewed now and then, which the authors "
        "found unstable",
        "Section 4.2", PAPERS,
        Final(PLUS, "train_loss"), Final("prong", "train_loss"), wants="lower",
    ),
)  # fmt: skip


def _variant(data: DataSet, size: int, classes: int, width: float) -> Recipe:
    tiny = data is TINY_IMAGENET
    small = partial(_network, size, classes, 0.125, tiny, SHALLOW)
    return Recipe(
        name="inception",
        title=f"PRONG+, PRONG and BatchNorm on an Inception network, {data.name}",
        source=SOURCE,
        architecture=(
            "GoogLeNet without auxiliary classifiers, two 3x3 for each 5x5"
            + (", half the channels, for 64x64 images" if tiny else "")
        ),
        data=data,
        network=partial(_network, size, classes, width, tiny),
        likelihood=Categorical(),
        metric=ACCURACY,
        batch_size=256,
        l2=1e-4,
        epochs=60,
        tuning_epochs=1,
        evaluations_per_epoch=1,
        schedule="plateau:3:0.1",
        augmentation=RandomCrop(size=size),
        grids=GRIDS,
        settings={name: grid[1] for name, grid in GRIDS.items()},
        optimizers=tuple(GRIDS),
        spaces={
            "sgd": rates(1e-3, 1.0),
            "sgd_bn": rates(3e-3, 3.0),
            PLUS: ridged(1e-3, 1.0, Range(0.01, 10)),
            "prong": ridged(1e-4, 0.3, Range(0.01, 10)),
        },
        seeds=(0, 1, 2) if tiny else (0,),
        paper=(*NUMBERS, *CLAIMS),
        differs=(
            "the paper trains on 8 GPUs and prints no learning rate, eps, T, N_s, weight decay or "
            f"cropping: here random {size}x{size} crops of "
            + ("64x64 images" if tiny else "images scaled to 256")
            + ", T 1000, 1,000 images, L2 1e-4, a tenth of the learning rate after 3 epochs "
            "without better validation accuracy; validation images are held out of the training "
            "set, the test figures are those of the paper's validation set; PRONG+ is whitening "
            "with BatchNorm behind each layer, the implementation that the paper used here"
        ),
        profiles={
            "cpu": Profile(
                {
                    "data": data.first(4_000, 500, 1_000),
                    "network": small,
                    "architecture": "stem and two modules, an eighth of the channels",
                    "batch_size": 64,
                    "grids": SMALL_GRIDS,
                    "settings": {name: grid[0] for name, grid in SMALL_GRIDS.items()},
                    "train_evaluated": 500,
                    "epochs": 4,
                    "tuning_epochs": 1,
                    "evaluations": 4,
                    "seeds": (0, 1, 2),
                }
            ),
            "smoke": Profile(
                {
                    "data": data.first(32, 16, 16),
                    "network": small,
                    "architecture": "stem and two modules, an eighth of the channels",
                    "batch_size": 16,
                    "grids": SMOKE_GRIDS,
                    "settings": {name: grid[0] for name, grid in SMOKE_GRIDS.items()},
                    "epochs": 1,
                    "tuning_epochs": 1,
                    "seeds": (0,),
                }
            ),
        },
    )


RECIPE = Suite(
    name="prong-imagenet",
    title="PRONG+, PRONG, BatchNorm and SGD on an Inception network",
    source=SOURCE,
    variants={
        "tiny-imagenet": _variant(TINY_IMAGENET, 56, 200, width=0.5),
        "ilsvrc2012": _variant(IMAGENET, 224, 1000, width=1.0),
    },
)
