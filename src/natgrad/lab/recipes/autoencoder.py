"""The deep autoencoder of Hinton & Salakhutdinov, as second-order methods are measured on it."""

from functools import partial

from natgrad.lab.data import MNIST_PIXELS
from natgrad.lab.metrics import SQUARED_ERROR
from natgrad.lab.networks import autoencoder
from natgrad.lab.optimizers import Settings
from natgrad.lab.optimizers.grids import damped
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.likelihood import Bernoulli

AUTOMATICS = ("kfac_auto", "tkfac_auto", "ekfac_auto", "tekfac_auto", "tkfac_auto_bf16")
AUTOMATIC: Settings = {
    "stats_every": 5, "fraction": 0.1, "burn_in": 3, "reject_every": 5, "average": 0.8,
}  # fmt: skip
TOGETHER: Settings = {"per": "step", "decay": 0.95}
APART: Settings = {"per": "output", "decay": 0.95}
FORGETFUL: Settings = {"per": "output", "decay": 0.8}

RECIPE = Recipe(
    name="autoencoder",
    title="Deep autoencoder on MNIST with a 30-dimensional code",
    source="Martens 2010 (Hessian-free), Table 1; Martens & Grosse 2015 (K-FAC), Section 13",
    architecture="784-1000-500-250-30 and its mirror image, tanh, linear code layer",
    data=MNIST_PIXELS,
    network=partial(autoencoder, (784, 1000, 500, 250, 30)),
    likelihood=Bernoulli(),
    metric=SQUARED_ERROR,
    batch_size=500,
    l2=1e-5,
    epochs=100,
    tuning_epochs=10,
    evaluations_per_epoch=10,
    evaluations=10,  # one at each tenth of the budget: they cost as much as the training
    grids={  # 6 points each
        "sgd": [{"lr": lr} for lr in (2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3)],
        "sgd_nesterov": [{"lr": lr} for lr in (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3)],
        "adam": [{"lr": lr} for lr in (2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3)],
        "adamw": [
            {"lr": lr, "weight_decay": decay} for lr in (5e-4, 1e-3, 2e-3) for decay in (0.01, 0.1)
        ],
        "muon": [{"lr": lr} for lr in (2e-3, 3e-3, 5e-3, 8e-3, 0.012, 0.02)],
        "soap": [{"lr": lr} for lr in (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.03)],
        "kfac_pytorch": [
            {"kl_clip": clip, "damping": damping}
            for damping in (1e-3, 1e-2)
            for clip in (3e-3, 0.01, 0.03)
        ],
        **{
            name: [
                {**AUTOMATIC, "damping": damping, **kind}
                for damping in (0.01, 0.03)
                for kind in (TOGETHER, APART, FORGETFUL)
            ]
            for name in AUTOMATICS
        },
        **damped((0.3, 1.0), (0.001, 0.003, 0.01)),
    },
    settings={
        "sgd": {"lr": 1e-3},
        "sgd_nesterov": {"lr": 2e-3},
        "adam": {"lr": 1e-3},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01},
        "muon": {"lr": 8e-3},
        "soap": {"lr": 0.01},
        "kfac_pytorch": {"kl_clip": 0.01, "damping": 1e-3},
        **{key: {"lr": 0.001, "damping": 1.0} for key in ("kfac", "ekfac", "tkfac", "tekfac")},
        **{name: {**AUTOMATIC, "damping": 0.03, **FORGETFUL} for name in AUTOMATICS},
    },
    schedule="linear",
    unscheduled=AUTOMATICS,
    optimizers=(
        "sgd_nesterov",
        "adam",
        "muon",
        "soap",
        "kfac_pytorch",
        "kfac_auto",
        "tkfac_auto",
        "ekfac_auto",
        "tekfac_auto",
    ),
    profiles={
        "cpu": Profile({"epochs": 10, "tuning_epochs": 3}),
        "smoke": Profile(
            {
                "data": MNIST_PIXELS.first(500, 100, 100),
                "network": partial(autoencoder, (784, 50, 30)),
                "architecture": "784-50-30 and its mirror image, tanh, linear code layer",
                "batch_size": 100,
                "epochs": 1,
                "tuning_epochs": 0.4,
                "evaluations": 2,
                "optimizers": ("sgd_nesterov", "adam", "muon", "tkfac_auto"),
                "seeds": (0,),
            }
        ),
    },
    differs=(
        "tanh instead of logistic hidden units, Glorot-normal instead of sparse initialisation; "
        "50,000 training images, 10,000 of the 60,000 are held out for validation; batch 500, "
        "L2 1e-5; learning rates fall linearly to zero, except where they are chosen at every step"
    ),
)
