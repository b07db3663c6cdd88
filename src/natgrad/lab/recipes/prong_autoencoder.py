"""PRONG on the deep autoencoder (PRONG paper, Fig. 3): eps, T and its initialisation, curves."""

from dataclasses import replace
from functools import partial

from natgrad.lab.data import MNIST_PIXELS
from natgrad.lab.networks import autoencoder
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import Bound, Cell, Claim, Fewer, Final, Number, Reached, StepTime
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Suite
from natgrad.lab.recipes.autoencoder import RECIPE as AUTOENCODER
from natgrad.lab.space import Range
from natgrad.lab.studies.whitening_time import WhiteningTime

RATES = (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03)
DIFFERS = (
    "tanh and Glorot-normal weights (the paper's supplement with its widths and rates is not at "
    "hand), 50,000 training images, batch 128 for all (the paper: 256 for BatchNorm), L2 1e-5, "
    "constant learning rate, momentum 0.9; the paper's number of epochs is not known"
)
SMALL = {
    "data": MNIST_PIXELS.first(512, 128, 128),
    "network": partial(autoencoder, (784, 40, 20)),
    "architecture": "784-40-20 and its mirror image, tanh, linear code layer",
    "batch_size": 32,
    "epochs": 1,
    "tuning_epochs": 0.2,
    "evaluations_per_epoch": 2,
    "seeds": (0,),
}
BASE = replace(
    AUTOENCODER,
    source="Desjardins et al. 2015 (PRONG), Fig. 3",
    schedule="constant",
    batch_size=128,
    evaluations=0,
    evaluations_per_epoch=4,
    epochs=50,
    tuning_epochs=5,
    train_evaluated=2_000,
    differs=DIFFERS,
    paper=(),
)
#: rates are tuned on 195 updates (of eps and T on 117), and refits are ten times as frequent as in
#: the full runs
SHORT = {"epochs": 3, "tuning_epochs": 0.5}
SHORTER = {"epochs": 1.5, "tuning_epochs": 0.3}
T, SHORT_T = 1000, 100


def _prong(every: int, *points: tuple[float, float]) -> list[Settings]:
    return [{"lr": lr, "eps": eps, "every": every} for lr, eps in points]


SMALL_GRIDS: dict[str, list[Settings]] = {  # 4 points each, around what short runs prefer
    "sgd": [{"lr": lr} for lr in (5e-4, 1e-3, 2e-3, 3e-3)],
    "sgd_bn": [{"lr": lr} for lr in (2e-3, 5e-3, 0.01, 0.02)],
    "rmsprop": [{"lr": lr} for lr in (3e-5, 1e-4, 2e-4, 3e-4)],
    # the largest learning rate that trains grows with eps
    "prong": _prong(SHORT_T, (3e-3, 1.0), (0.01, 1.0), (0.01, 3.0), (0.03, 10.0)),
    "sngd": [
        {"lr": lr, "eps": eps} for lr, eps in ((1e-3, 3.0), (3e-3, 3.0), (3e-3, 10.0), (0.01, 10.0))
    ],
}

CURVES = replace(
    BASE,
    name="curves",
    title="PRONG and SNGD beside SGD, RMSprop and BatchNorm, deep autoencoder on MNIST",
    source="Desjardins et al. 2015 (PRONG), Fig. 3cd and section 4.2",
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in RATES],
        "sgd_bn": [{"lr": lr} for lr in RATES],
        "rmsprop": [{"lr": lr} for lr in (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3, 3e-3)],
        "prong": _prong(
            T,
            *(
                (round(ratio * eps, 7), eps)
                for eps in (0.1, 1.0, 10.0)
                for ratio in (1e-3, 3e-3, 0.01)
            ),
        ),
        "sngd": [{"lr": lr, "eps": eps} for eps in (1.0, 3.0, 10.0) for lr in (1e-3, 3e-3, 0.01)],
    },
    settings={
        "sgd": {"lr": 1e-3},
        "sgd_bn": {"lr": 3e-3},
        "rmsprop": {"lr": 1e-4},
        "prong": {"lr": 3e-3, "eps": 1.0, "every": T},
        "sngd": {"lr": 0.01, "eps": 1.0},
    },
    optimizers=("sgd", "rmsprop", "sgd_bn", "prong", "sngd"),
    spaces={
        "sgd": rates(1e-5, 0.1),
        "sgd_bn": rates(1e-4, 0.3),
        "rmsprop": rates(1e-7, 0.01),
        "prong": ridged(1e-6, 0.03, Range(1e-3, 10)),
        "sngd": ridged(1e-4, 0.1, Range(0.03, 30)),
    },
    study=WhiteningTime(),
    paper=(
        Number(
            "PRONG, time of an epoch over SGD's", 3.2, "section 4.2", "MNIST",
            StepTime("prong"), unit="x", comparable=False,
            reason="a ratio of times belongs to the machine, and to T, which is not given",
        ),
        Number(
            "BatchNorm, time of an epoch over SGD's", 2.3, "section 4.2", "MNIST",
            StepTime("sgd_bn"), unit="x", comparable=False,
            reason=(
                "a ratio of times belongs to the machine and the batch, 256 in the paper; fused "
                "BatchNorm costs little beside the matrix products"
            ),
        ),
        Number(
            "RMSprop, time of an epoch over SGD's", 9.0, "section 4.2", "MNIST",
            StepTime("rmsprop"), unit="x", comparable=False,
            reason=(
                "a ratio of times belongs to the machine; an update here is a few passes over the "
                "weights, batched over parameters"
            ),
        ),
        Number(
            "whitening, share of PRONG's time", 34.0, "section 4.2", "MNIST",
            Cell("shares", "whitening", "share [%]"), unit="%", comparable=False,
            reason="a share of time belongs to the machine, the widths and T, which are not given",
        ),
        Number(
            "statistics, share of PRONG's time", 4.0, "section 4.2", "MNIST",
            Cell("shares", "statistics", "share [%]"), unit="%", comparable=False,
            reason="a share of time belongs to the machine, the widths and T, which are not given",
        ),
        Claim(
            "PRONG needs fewer updates than SGD to SGD's loss", "Fig. 3c", "MNIST",
            Reached("prong"), Reached("sgd"), "lower",
        ),
        Claim(
            "PRONG takes an order of magnitude fewer updates than SGD to SGD's loss (the paper: up "
            "to one)", "Section 1", "MNIST", Fewer("prong"), Bound(10.0),
        ),
        Claim(
            "PRONG ends at a lower training loss than SGD", "Fig. 3c", "MNIST",
            Final("prong", "train_loss"), Final("sgd", "train_loss"), "lower",
        ),
        Claim(
            "PRONG ends at a lower training loss than BatchNorm", "Fig. 3c", "MNIST",
            Final("prong", "train_loss"), Final("sgd_bn", "train_loss"), "lower",
        ),
    ),
    profiles={
        "smoke": Profile({**SMALL, "study": WhiteningTime(steps=2, repeats=1)}),
        "cpu": Profile(
            {
                **SHORT,
                "grids": SMALL_GRIDS,
                "settings": {name: grid[1] for name, grid in SMALL_GRIDS.items()},
            }
        ),
    },
)  # fmt: skip


EPS, SHORT_EPS = (0.01, 0.03, 0.1, 0.3, 1.0), (0.03, 0.1, 1.0)


def _eps(value: float) -> str:
    return f"prong[eps={value:g}]"


def _eps_grids(every: int) -> dict[str, list[Settings]]:
    """5 points each, learning rates in proportion to eps."""
    return {
        _eps(eps): [
            {"lr": float(f"{ratio * eps:.2g}"), "every": every}
            for ratio in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
        ]
        for eps in EPS
    }


BY_EPS = replace(
    BASE,
    name="eps",
    title="PRONG with several eps, each with its best learning rate",
    source="Desjardins et al. 2015 (PRONG), Fig. 3a",
    grids=_eps_grids(T),
    settings={name: grid[2] for name, grid in _eps_grids(T).items()},
    optimizers=tuple(map(_eps, EPS)),
    spaces={_eps(eps): rates(1e-5 * eps, 0.1 * eps) for eps in EPS},
    paper=(
        Claim(
            "a small eps with a small learning rate is faster", "Fig. 3a", "MNIST",
            Final(_eps(0.03), "train_loss"), Final(_eps(1.0), "train_loss"), "lower",
        ),
    ),
    profiles={
        "smoke": Profile({**SMALL, "optimizers": (_eps(0.03), _eps(1.0))}),
        "cpu": Profile(
            {
                **SHORTER,
                "grids": _eps_grids(SHORT_T),
                "settings": {name: grid[2] for name, grid in _eps_grids(SHORT_T).items()},
                "optimizers": tuple(map(_eps, SHORT_EPS)),
            }
        ),
    },
)  # fmt: skip


def _period(every: int, white: bool = False) -> str:
    return f"prong[every={every}{',white_start=1' if white else ''}]"


PERIODS = (10, 100, 1000, 10_000, 100_000)
FAN_IN = tuple(map(_period, PERIODS))
WHITE = tuple(_period(every, white=True) for every in PERIODS)
SHORT_PERIODS = (30, 300, 100_000)
SHORT_ROWS = tuple(
    _period(every, white=white) for white in (False, True) for every in SHORT_PERIODS
)
GRID: list[Settings] = [
    {"lr": lr, "eps": eps} for eps, lr in ((0.1, 1e-4), (1.0, 1e-3), (1.0, 3e-3), (1.0, 0.01))
]


def _stated(often: int) -> tuple[Claim, ...]:
    """What the paper shows of T, its best one being ``often``."""
    return (
        Claim(
            "whitened initial weights alone help (T = 1e5)", "Fig. 3b", "MNIST",
            Final(_period(100_000, True), "train_loss"), Final(_period(100_000), "train_loss"),
            "lower",
        ),
        Claim(
            f"T = 1e5 is worse than T = {often}", "Fig. 3b", "MNIST",
            Final(_period(often), "train_loss"), Final(_period(100_000), "train_loss"), "lower",
        ),
    )  # fmt: skip


PERIOD = replace(
    BASE,
    name="period",
    title="PRONG with several intervals T between refits, from plain and from whitened weights",
    source="Desjardins et al. 2015 (PRONG), Fig. 3b",
    grids=dict.fromkeys((*FAN_IN, *WHITE), GRID),  # 4 points each
    settings=dict.fromkeys((*FAN_IN, *WHITE), GRID[2]),
    optimizers=(*FAN_IN, *WHITE),
    spaces=dict.fromkeys((*FAN_IN, *WHITE), ridged(1e-6, 0.03, Range(1e-3, 10))),
    paper=_stated(often=1000),
    profiles={
        "smoke": Profile({**SMALL, "optimizers": (_period(10), _period(100_000, True))}),
        "cpu": Profile(  # in 585 updates a T of 1000 says nothing
            {
                **SHORTER,
                "grids": dict.fromkeys(SHORT_ROWS, GRID[1:]),
                "settings": dict.fromkeys(SHORT_ROWS, GRID[2]),
                "optimizers": SHORT_ROWS,
                "paper": _stated(often=300),
            }
        ),
    },
)

RECIPE = Suite(
    name="prong-autoencoder",
    title="PRONG on the deep autoencoder: eps, the interval T, the initialisation, and curves",
    source="Desjardins et al. 2015 (PRONG), Fig. 3",
    variants={"curves": CURVES, "eps": BY_EPS, "period": PERIOD},
)
