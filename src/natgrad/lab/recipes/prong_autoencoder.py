"""PRONG and SNGD beside SGD and BatchNorm on the deep autoencoder (PRONG paper, Fig. 3)."""

from dataclasses import replace

from natgrad.lab.recipes.autoencoder import RECIPE as AUTOENCODER

RATES = (1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03)

RECIPE = replace(
    AUTOENCODER,
    name="prong-autoencoder",
    title="PRONG and SNGD beside SGD and BatchNorm, deep autoencoder on MNIST",
    source="Desjardins et al. 2015 (PRONG), Fig. 3",
    batch_size=128,
    evaluations_per_epoch=4,
    epochs=3,
    tuning_epochs=0.3,
    train_evaluated=2_000,
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in RATES],
        "sgd_bn": [{"lr": lr} for lr in RATES],
        "prong": [  # the largest learning rate that trains grows with eps
            {"lr": round(ratio * eps, 7), "eps": eps, "every": 1000}
            for eps in (0.03, 0.1, 1.0)
            for ratio in (3e-4, 1e-3, 3e-3)
        ],
        "sngd": [{"lr": lr, "eps": eps} for eps in (0.3, 1.0, 3.0) for lr in (3e-3, 0.01, 0.03)],
    },
    settings={
        "sgd": {"lr": 1e-3},
        "sgd_bn": {"lr": 3e-3},
        "prong": {"lr": 1e-4, "eps": 0.1, "every": 1000},
        "sngd": {"lr": 0.01, "eps": 1.0},
    },
    optimizers=("sgd", "sgd_bn", "prong", "sngd"),
    differs=(
        "tanh and Glorot-normal weights (the paper's supplement with its widths and rates is not "
        "at hand), 50,000 training images, batch 128 for all (the paper: 256 for BatchNorm), "
        "L2 1e-5, constant learning rate"
    ),
)
