"""PRONG beside SGD, RMSprop and BatchNorm on CIFAR-10 (PRONG paper, Fig. 4a and b)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from natgrad.lab.augmentation import RandomCrop
from natgrad.lab.image_networks import CIFAR10_CHANNELS, of_pixels, vgg
from natgrad.lab.image_sets import CIFAR10
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import Claim, Final, Number, Reached
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Range
from natgrad.likelihood import Categorical

WHERE, PAPERS = "Fig. 4b", "CIFAR-10"
CROPS = 4
CROPPED, WHOLE = f"prong[crops={CROPS}]", "prong[crops=0]"
#: pairs of 3x3 convolutions, pooled: 24x24, 12x12, 6x6, down to 3x3
LAYOUT = (64, 64, 0, 128, 128, 0, 256, 256, 0)


def _network(layout: Sequence[int], hidden: int) -> nn.Sequential:
    return of_pixels(partial(vgg, layout, hidden, 24), CIFAR10_CHANNELS, 24)


def _rates(*rates: float) -> list[Settings]:
    return [{"lr": lr} for lr in rates]


def _prong(*points: tuple[float, float], every: int, samples: int) -> list[Settings]:
    return [{"lr": lr, "eps": eps, "every": every, "samples": samples} for lr, eps in points]


_FULL = _prong(
    (1e-4, 0.01), (3e-4, 0.01), (1e-3, 0.01), (3e-4, 0.1), (1e-3, 0.1), (3e-3, 0.1),
    (1e-3, 1.0), (3e-3, 1.0), (0.01, 1.0), every=1000, samples=1000,
)  # fmt: skip
_SMALL = _prong((1e-3, 0.1), (3e-3, 0.1), (0.01, 1.0), every=50, samples=400)


def _whole(grid: list[Settings]) -> list[Settings]:
    """The control: as many images as the others have crops, each as evaluation sees it."""
    return [{**point, "samples": CROPS * int(point["samples"])} for point in grid]


GRIDS = {  # 9 points each
    "sgd": _rates(1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.1, 0.3),
    "rmsprop": _rates(1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01),
    "sgd_bn": _rates(1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0),
    CROPPED: _FULL,
    WHOLE: _whole(_FULL),
}
SMALL_GRIDS = {
    "sgd": _rates(3e-3, 0.01, 0.03),
    "rmsprop": _rates(1e-4, 3e-4, 1e-3),
    "sgd_bn": _rates(0.01, 0.03, 0.1),
    CROPPED: _SMALL,
    WHOLE: _whole(_SMALL),
}
SMOKE_GRIDS = {
    **{name: grid[:1] for name, grid in SMALL_GRIDS.items()},
    CROPPED: _prong((1e-3, 0.1), every=1, samples=8),
    WHOLE: _whole(_prong((1e-3, 0.1), every=1, samples=8)),
}

RECIPE = Recipe(
    name="prong-cifar",
    title="PRONG beside SGD, RMSprop and BatchNorm on a convolutional network",
    source="Desjardins et al. 2015 (PRONG, arXiv 1507.00210), Fig. 4a and b",
    architecture="conv 64-64, 128-128, 256-256 (3x3, ReLU), pooled after each pair, dense 256-10",
    data=CIFAR10,
    network=partial(_network, LAYOUT, 256),
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=128,
    l2=5e-4,
    epochs=150,
    tuning_epochs=10,
    evaluations_per_epoch=1,
    schedule="plateau:10:0.1",
    augmentation=RandomCrop(size=24),
    grids=GRIDS,
    settings={
        "sgd": {"lr": 0.01},
        "rmsprop": {"lr": 3e-4},
        "sgd_bn": {"lr": 0.03},
        CROPPED: _FULL[4],
        WHOLE: _whole(_FULL)[4],
    },
    optimizers=tuple(GRIDS),
    spaces={
        "sgd": rates(1e-4, 1.0),
        "rmsprop": rates(1e-6, 0.03),
        "sgd_bn": rates(1e-3, 3.0),
        **dict.fromkeys((CROPPED, WHOLE), ridged(1e-5, 0.1, Range(1e-3, 10))),
    },
    paper=(
        Number("PRONG, test error", 7.32, WHERE, PAPERS, Final(CROPPED, complement=True), unit="%"),
        Number(
            "BatchNorm, test error", 8.22, WHERE, PAPERS, Final("sgd_bn", complement=True), unit="%"
        ),
        Claim(
            "PRONG generalizes better than BatchNorm",
            WHERE,
            PAPERS,
            Final(CROPPED),
            Final("sgd_bn"),
        ),
        Claim(
            "the extra crops in PRONG's statistics make it generalize better",
            "Section 4.2",
            PAPERS,
            Final(CROPPED),
            Final(WHOLE),
        ),
        Claim(
            "PRONG needs fewer updates than BatchNorm",
            "Fig. 4a",
            PAPERS,
            Reached(CROPPED),
            Reached("sgd_bn"),
            wants="lower",
        ),
        Claim(
            "PRONG ends at a lower training loss than RMSprop",
            "Fig. 4a",
            PAPERS,
            Final(CROPPED, "train_loss"),
            Final("rmsprop", "train_loss"),
            wants="lower",
        ),
    ),
    differs=(
        "the paper's network, learning rates, eps, T, N_s, batch size, weight decay and number of "
        "epochs are in a supplement that is not at hand: here a VGG-like network of our own, batch "
        "128, L2 5e-4, T 1000; statistics of PRONG are of four random crops of each of 1,000 "
        "images, always the same, or of the centres of 4,000 (crops=0), as evaluation takes them: "
        "as many inputs; a plateau is 10 epochs without better validation accuracy"
    ),
    profiles={
        "cpu": Profile(
            {
                "data": CIFAR10.first(10_000, 1_000, 5_000),
                "network": partial(_network, (16, 16, 0, 32, 32, 0, 64, 64, 0), 64),
                "architecture": "the same with a quarter of the channels",
                "grids": SMALL_GRIDS,
                "settings": {name: grid[1] for name, grid in SMALL_GRIDS.items()},
                "train_evaluated": 1_000,
                "epochs": 6,
                "tuning_epochs": 1,
                "evaluations": 6,
                "schedule": "plateau:2:0.1",
            }
        ),
        "smoke": Profile(
            {
                "data": CIFAR10.first(64, 32, 32),
                "network": partial(_network, (4, 0, 4, 0, 4, 0), 8),
                "architecture": "three convolutions of 4 channels, pooled after each, dense 8-10",
                "grids": SMOKE_GRIDS,
                "settings": {name: grid[0] for name, grid in SMOKE_GRIDS.items()},
                "batch_size": 32,
                "epochs": 1,
                "tuning_epochs": 1,
                "seeds": (0,),
            }
        ),
    },
)
