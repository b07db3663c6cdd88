"""A small causal transformer on the characters of the King James Bible."""

from functools import partial

from natgrad.lab.data import KJV
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.networks import CharacterModel
from natgrad.lab.optimizers.grids import damped
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.text import CHARACTERS
from natgrad.likelihood import Categorical

RECIPE = Recipe(
    name="charlm",
    title="A small transformer on the characters of the King James Bible",
    source="no paper",
    architecture="2 stock encoder layers of width 64 with 4 heads, causal, 64 characters",
    data=KJV,
    network=partial(CharacterModel, len(CHARACTERS), 64),
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=32,
    l2=0.0,
    epochs=4,
    tuning_epochs=0.5,
    evaluations_per_epoch=10,
    grids={  # 6 points each
        "sgd": [{"lr": lr} for lr in (0.01, 0.03, 0.1, 0.2, 0.5, 1.0)],
        "adam": [{"lr": lr} for lr in (3e-4, 1e-3, 2e-3, 3e-3, 0.01, 0.03)],
        "adamw": [
            {"lr": lr, "weight_decay": decay} for lr in (3e-3, 0.01, 0.03) for decay in (0.01, 0.1)
        ],
        "muon": [{"lr": lr} for lr in (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)],
        "soap": [{"lr": lr} for lr in (1e-3, 3e-3, 0.01, 0.02, 0.03, 0.1)],
        **damped((0.1, 1.0), (0.3, 1.0, 2.0)),
    },
    settings={
        "sgd": {"lr": 0.1},
        "adam": {"lr": 3e-3},
        "adamw": {"lr": 3e-3, "weight_decay": 0.01},
        "muon": {"lr": 3e-3},
        "soap": {"lr": 3e-3},
        **{key: {"lr": 0.1, "damping": 0.1} for key in ("kfac", "ekfac", "tkfac", "tekfac")},
    },
    optimizers=("adamw", "muon", "soap", "kfac", "tekfac"),
    train_evaluated=1_000,
    differs="beyond the papers: where today's users look first, beside today's optimizers",
    profiles={
        "cpu": Profile({"epochs": 0.2, "tuning_epochs": 0.04, "evaluations": 5}),
        "smoke": Profile(
            {
                "data": KJV.first(128, 32, 32),
                "epochs": 1,
                "tuning_epochs": 0.5,
                "evaluations_per_epoch": 2,
                "optimizers": ("adamw", "muon", "kfac"),  # SOAP is of another package
                "seeds": (0,),
            }
        ),
    },
)
