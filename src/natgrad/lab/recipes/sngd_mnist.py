"""SNGD and PRONG beside SGD and BatchNorm on the network of the SNGD paper, Fig. 3."""

from dataclasses import replace

from natgrad.lab.data import MNIST
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import At, Claim, Final, Number, Reached
from natgrad.lab.profile import Profile
from natgrad.lab.recipes.mnist_mlp import RECIPE as MNIST_MLP
from natgrad.lab.space import Range

AVERAGED = "sngd[average=1]"
EVERY = 20  #: updates between new constants of averaged statistics, whose root is a large one
RATES = (0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)

RECIPE = replace(
    MNIST_MLP,
    name="sngd-mnist",
    title="SNGD and PRONG beside SGD and BatchNorm, MLP on MNIST",
    source="Liu & Liu 2021 (SNGD), Fig. 3; Desjardins et al. 2015 (PRONG), Section 4",
    epochs=80,
    tuning_epochs=8,
    schedule="constant",
    grids={  # 9 points each
        "sgd": [{"lr": lr} for lr in RATES],
        "sgd_bn": [{"lr": lr} for lr in RATES],
        "prong": [
            {"lr": lr, "eps": eps, "every": 1000}
            for eps in (0.3, 1.0, 3.0)
            for lr in (0.03, 0.1, 0.3)
        ],
        "prong_diagonal": [{"lr": lr, "eps": 0.01, "every": 1000} for lr in RATES],
        "sngd": [{"lr": lr, "eps": eps} for eps in (3.0, 10.0, 30.0) for lr in (0.003, 0.01, 0.03)],
        AVERAGED: [
            {"lr": lr, "eps": eps, "every": EVERY, "method": "eigh"}
            for eps in (1.0, 3.0, 10.0)
            for lr in (0.001, 0.003, 0.01)
        ],
    },
    settings={
        "sgd": {"lr": 0.05},
        "sgd_bn": {"lr": 0.05},
        "prong": {"lr": 0.1, "eps": 1.0, "every": 1000},
        "prong_diagonal": {"lr": 0.03, "eps": 0.01, "every": 1000},
        "sngd": {"lr": 0.01, "eps": 10.0},
        AVERAGED: {"lr": 0.003, "eps": 3.0, "every": EVERY, "method": "eigh"},
    },
    optimizers=("sgd", "sgd_bn", "prong", "prong_diagonal", "sngd", AVERAGED),
    spaces={
        "sgd": rates(1e-3, 1.0),
        "sgd_bn": rates(1e-3, 3.0),
        "prong": ridged(1e-3, 0.5, Range(0.01, 10)),
        "prong_diagonal": ridged(1e-3, 0.5, Range(1e-3, 10)),
        **dict.fromkeys(("sngd", AVERAGED), ridged(3e-4, 0.5, Range(0.03, 100))),
    },
    paper=(
        Number(
            "SGD, test accuracy", 97.62, "Fig. 3, text", "MNIST", Final("sgd"), unit="%",
            explanation="learning rate, momentum and epochs are not in the paper",
        ),
        Number(
            "SNGD, test accuracy", 97.79, "Fig. 3, text", "MNIST", Final("sngd"), unit="%",
            explanation=(
                "the paper has no ridge, and 50 examples of 784 pixels have no inverse root without"
            ),
        ),
        Claim(
            "SNGD is more accurate than SGD", "Fig. 3, text", "MNIST",
            Final("sngd"), Final("sgd"),
        ),
        Claim(
            "SNGD learns faster than SGD (epochs to SGD's final validation loss)", "Fig. 3",
            "MNIST", Reached("sngd", "epochs"), Reached("sgd", "epochs"), "lower",
        ),
        Claim(
            "the validation loss of SNGD is the lower one from epoch 60 on", "Fig. 3", "MNIST",
            At("sngd", "validation_loss", "epochs", 60), At("sgd", "validation_loss", "epochs", 60),
            "lower",
        ),
        Claim(
            "SNGD with averaged statistics, as its inference has them, is more accurate than SGD",
            "Fig. 3, text", "MNIST", Final(AVERAGED), Final("sgd"), own=True,
        ),
        Claim(
            "SNGD with averaged statistics learns faster than SGD", "Fig. 3", "MNIST",
            Reached(AVERAGED, "epochs"), Reached("sgd", "epochs"), "lower", own=True,
        ),
    ),
    profiles={
        "smoke": Profile(
            {
                "data": MNIST.first(500, 100, 100),
                "epochs": 1,
                "tuning_epochs": 0.5,
                "evaluations_per_epoch": 1,
                "seeds": (0,),
            }
        ),
        "cpu": Profile({"epochs": 5, "tuning_epochs": 1}),
    },
    differs=(
        "the paper gives no learning rate, momentum, initialisation or number of epochs: here "
        "momentum 0.9, torch's default initialisation, a constant learning rate picked on the "
        "validation set, 80 epochs (its curves run past 60); SNGD's ridge is relative to the mean "
        "eigenvalue and picked too (the paper has none; 50 examples of 784 pixels have no inverse "
        "root without); beside it, SNGD trained with averages over batches, of one batch in twenty"
    ),
)  # fmt: skip
