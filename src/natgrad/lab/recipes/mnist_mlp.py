"""MNIST as in the SNGD paper, Fig. 3."""

from functools import partial

from natgrad.lab.data import MNIST
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.networks import mlp
from natgrad.lab.optimizers.grids import damped
from natgrad.lab.paper import Final, Number
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.likelihood import Categorical

RECIPE = Recipe(
    name="mnist-mlp",
    title="MLP on MNIST, the network and settings of the SNGD paper",
    source="Liu & Liu 2021 (SNGD), Fig. 3",
    architecture="784-80-80-80-10, ReLU",
    data=MNIST,
    network=partial(mlp, (784, 80, 80, 80, 10)),
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=50,
    l2=1e-3,
    epochs=20,
    tuning_epochs=5,
    evaluations_per_epoch=4,
    schedule="linear",
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)],
        "adam": [{"lr": lr} for lr in (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3)],
        "adamw": [
            {"lr": lr, "weight_decay": decay}
            for lr in (3e-4, 1e-3, 3e-3)
            for decay in (0.001, 0.01, 0.1)
        ],
        "muon": [{"lr": lr} for lr in (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01)],
        **{
            name: [{**point, "refresh_every": 100} for point in points]
            for name, points in damped((0.003, 0.01, 0.03), (0.03, 0.1, 0.3)).items()
        },
        "prong": [
            {"lr": lr, "eps": eps, "every": 300, "basis": "cholesky"}
            for eps in (0.01, 0.03, 0.1)
            for lr in (0.003, 0.01, 0.03)
        ],
        "sngd": [  # compensated: with 50 examples a batch it trains at no small eps as printed
            {"lr": lr, "eps": eps, "every": 100, "compensate": 1}
            for eps in (0.01, 0.1, 1.0)
            for lr in (0.003, 0.01, 0.03)
        ],
    },
    settings={
        "sgd": {"lr": 0.02},
        "adam": {"lr": 1e-3},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01},
        "muon": {"lr": 1e-3},
        **{
            name: {"lr": 0.001, "damping": 0.01, "refresh_every": 100}
            for name in ("kfac", "ekfac", "tkfac", "tekfac")
        },
        "prong": {"lr": 0.01, "eps": 0.03, "every": 300, "basis": "cholesky"},
        "sngd": {"lr": 0.01, "eps": 0.1, "every": 100, "compensate": 1},
    },
    paper=(
        Number(
            "SGD, test accuracy",
            97.62,
            "Fig. 3, text",
            "MNIST",
            Final("sgd"),
            unit="%",
            explanation="a rate that falls to zero gains half a percent over a constant one",
        ),
    ),
    profiles={
        "smoke": Profile(
            {
                "data": MNIST.first(500, 100, 100),
                "epochs": 1,
                "tuning_epochs": 0.5,
                "optimizers": ("sgd", "kfac"),
                "seeds": (0,),
            }
        )
    },
    differs=(
        "the paper gives no learning rate, momentum, initialisation or number of epochs: here "
        "momentum 0.9, torch's default initialisation, a learning rate picked on the "
        "validation set that falls linearly to zero; pixels in [0, 1], no augmentation"
    ),
)
