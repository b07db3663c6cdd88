"""A small convolutional network with batch normalization on CIFAR-10 (JPEG)."""

from natgrad.lab.data import CIFAR10_JPEG
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.networks import cnn
from natgrad.lab.optimizers.grids import damped
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.likelihood import Categorical

RECIPE = Recipe(
    name="cifar-cnn",
    title="A small CNN with batch normalization on CIFAR-10 (JPEG)",
    source="no paper",
    architecture="conv 16-32-64 (3x3, BatchNorm, ReLU), pooled, linear 10",
    data=CIFAR10_JPEG,
    network=cnn,
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=128,
    l2=5e-4,
    epochs=40,
    tuning_epochs=5,
    evaluations_per_epoch=4,
    grids={  # 6 points each
        "sgd": [{"lr": lr} for lr in (0.01, 0.03, 0.05, 0.1, 0.2, 0.5)],
        "adam": [{"lr": lr} for lr in (3e-4, 1e-3, 2e-3, 3e-3, 0.01, 0.03)],
        "adamw": [
            {"lr": lr, "weight_decay": decay} for lr in (1e-3, 3e-3, 0.01) for decay in (0.01, 0.1)
        ],
        **damped((0.01, 0.1), (0.1, 0.3, 1.0)),
    },
    settings={
        "sgd": {"lr": 0.05},
        "adam": {"lr": 3e-3},
        "adamw": {"lr": 3e-3, "weight_decay": 0.01},
        **{key: {"lr": 0.01, "damping": 0.1} for key in ("kfac", "ekfac", "tkfac", "tekfac")},
    },
    optimizers=("sgd", "adam", "adamw", "kfac"),
    train_evaluated=5_000,
    profiles={
        "cpu": Profile({"epochs": 5, "tuning_epochs": 1}),
        "smoke": Profile(
            {
                "data": CIFAR10_JPEG.first(256, 64, 64),
                "epochs": 2,
                "tuning_epochs": 0.5,
                "evaluations_per_epoch": 1,
                "optimizers": ("sgd", "kfac"),
                "seeds": (0,),
            }
        ),
    },
    differs="not the original pixels of CIFAR-10: a JPEG copy; no augmentation",
)
