"""The deep autoencoder of Hinton & Salakhutdinov, as second-order methods are measured on it."""

from functools import partial

from natgrad.lab.data import MNIST_PIXELS
from natgrad.lab.metrics import SQUARED_ERROR
from natgrad.lab.networks import autoencoder
from natgrad.lab.optimizers.grids import damped
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.likelihood import Bernoulli

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
        "muon": [{"lr": lr} for lr in (2e-3, 5e-3, 0.01, 0.015, 0.02, 0.03)],
        "soap": [{"lr": lr} for lr in (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.03)],
        "kfac_pytorch": [
            {"kl_clip": clip, "damping": damping}
            for damping in (1e-3, 1e-2)
            for clip in (3e-3, 0.01, 0.03)
        ],
        **{
            name: [
                {"damping": damping, "stats_every": every, "fraction": fraction, "reject_every": 5}
                for damping in (0.001, 0.003, 0.01)
                for every, fraction in ((2, 0.25), (5, 0.1))
            ]
            for name in ("kfac_auto", "tkfac_auto", "ekfac_auto", "tekfac_auto")
        },
        "tkfac_auto_bf16": [
            {
                "damping": damping,
                "stats_every": every,
                "fraction": 0.1,
                "burn_in": 3,
                "reject_every": 5,
            }
            for damping in (0.003, 0.01, 0.03)
            for every in (2, 5)
        ],
        **damped((0.3, 1.0), (0.001, 0.003, 0.01)),
    },
    settings={
        "sgd": {"lr": 1e-3},
        "sgd_nesterov": {"lr": 2e-3},
        "adam": {"lr": 1e-3},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01},
        "muon": {"lr": 0.01},
        "soap": {"lr": 0.01},
        "kfac_pytorch": {"kl_clip": 0.01, "damping": 1e-3},
        **{key: {"lr": 0.001, "damping": 1.0} for key in ("kfac", "ekfac", "tkfac", "tekfac")},
        "tkfac_auto_bf16": {
            "damping": 0.03,
            "stats_every": 5,
            "fraction": 0.1,
            "burn_in": 3,
            "reject_every": 5,
        },
        **{
            name: {"damping": 0.01, "stats_every": 5, "fraction": 0.1, "reject_every": 5}
            for name in ("kfac_auto", "tkfac_auto", "ekfac_auto", "tekfac_auto")
        },
    },
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
        "L2 1e-5, constant learning rate"
    ),
)
