"""The deep autoencoder of Hinton & Salakhutdinov, as second-order methods are measured on it."""

from functools import partial

from natgrad.lab.data import MNIST_PIXELS
from natgrad.lab.metrics import SQUARED_ERROR
from natgrad.lab.networks import autoencoder
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
    batch_size=128,
    l2=1e-5,
    epochs=5,
    tuning_epochs=1,
    evaluations_per_epoch=4,
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01)],
        "adam": [{"lr": lr} for lr in (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3)],
        "adamw": [
            {"lr": lr, "weight_decay": decay}
            for lr in (3e-4, 1e-3, 3e-3)
            for decay in (0.001, 0.01, 0.1)
        ],
        "muon": [{"lr": lr} for lr in (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01)],
        "kfac": [  # the best learning rate grows with the damping
            {"lr": round(ratio * damping, 6), "damping": damping}
            for damping in (0.1, 0.3, 1.0)
            for ratio in (0.001, 0.003, 0.01)
        ],
    },
    settings={
        "sgd": {"lr": 3e-4},
        "adam": {"lr": 1e-3},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01},
        "muon": {"lr": 1e-3},
        "kfac": {"lr": 1e-3, "damping": 1.0},
    },
    optimizers=("sgd", "adam", "kfac"),
    differs=(
        "tanh instead of logistic hidden units, Glorot-normal instead of sparse initialisation; "
        "50,000 training images, 10,000 of the 60,000 are held out for validation; batch 128, "
        "L2 1e-5, constant learning rate"
    ),
)
