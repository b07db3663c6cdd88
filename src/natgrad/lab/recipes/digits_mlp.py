"""The demo: scikit-learn's bundled digits, nothing to download."""

from functools import partial

from natgrad.lab.data import DIGITS
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.networks import mlp
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Range
from natgrad.likelihood import Categorical

RECIPE = Recipe(
    name="digits-mlp",
    title="A small MLP on the digits bundled with scikit-learn",
    source="the demo; no paper",
    architecture="64-64-64-10, ReLU",
    data=DIGITS,
    network=partial(mlp, (64, 64, 64, 10)),
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=50,
    l2=1e-3,
    epochs=8,
    tuning_epochs=8,
    evaluations_per_epoch=2,
    threads=1,
    seeds=(0, 1, 2, 3, 4),
    profiles={
        "smoke": Profile(
            {"epochs": 0.5, "tuning_epochs": 0.1, "optimizers": ("sgd", "kfac"), "seeds": (0,)}
        )
    },
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)],
        "adam": [{"lr": lr} for lr in (1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1)],
        "adamw": [
            {"lr": lr, "weight_decay": decay}
            for lr in (0.005, 0.015, 0.05)
            for decay in (0.001, 0.01, 0.1)
        ],
        "muon": [{"lr": lr} for lr in (1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.05, 0.1)],
        "kfac": [  # the best learning rate grows with the damping
            {"lr": round(ratio * damping, 6), "damping": damping}
            for damping in (0.03, 0.1, 0.3)
            for ratio in (0.1, 0.3, 1.0)
        ],
    },
    settings={
        "sgd": {"lr": 0.1},
        "adam": {"lr": 0.02},
        "adamw": {"lr": 0.015, "weight_decay": 0.01},
        "muon": {"lr": 0.01},
        "kfac": {"lr": 0.009, "damping": 0.03},
    },
    spaces={
        "sgd": {"lr": Range(0.003, 1.0), "momentum": Range(0.5, 0.99, log=False)},
        "adam": {"lr": Range(3e-4, 0.3)},
        "adamw": {"lr": Range(3e-4, 0.3), "weight_decay": Range(1e-4, 1.0)},
        "muon": {"lr": Range(3e-4, 0.3)},
        "kfac": {"lr": Range(3e-4, 1.0), "damping": Range(3e-3, 3.0)},
    },
)
