"""What whitening does to the Fisher matrix (PRONG paper, Fig. 2), on a network it fits in."""

from functools import partial

from torch import nn

from natgrad.lab.data import MNIST_10X10
from natgrad.lab.metrics import ACCURACY
from natgrad.lab.networks import mlp
from natgrad.lab.optimizers.spaces import rates, ridged
from natgrad.lab.paper import Bound, Cell, Claim
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Range
from natgrad.lab.studies.conditioning import FIRST_WHITENING, LOG, FisherBeforeAndAfter
from natgrad.likelihood import Categorical

STUDY = FisherBeforeAndAfter(layers=("2", "4"))
REDUCTION = partial(Cell, "conditioning", column="reduction [%]")
CONDITION = partial(Cell, "conditioning", column=LOG)

RECIPE = Recipe(
    name="prong-conditioning",
    title="The Fisher matrix before and after whitening, and its condition along training",
    source="Desjardins et al. 2015 (PRONG), Fig. 2",
    architecture="100-16-16-16-10, tanh",
    data=MNIST_10X10,
    network=partial(mlp, (100, 16, 16, 16, 10), nn.Tanh),
    likelihood=Categorical(),
    metric=ACCURACY,
    batch_size=128,
    l2=0.0,
    epochs=20,
    tuning_epochs=5,
    evaluations_per_epoch=2,
    threads=1,
    study=STUDY,
    grids={  # 6 points each
        "sgd": [{"lr": lr} for lr in (0.01, 0.03, 0.05, 0.1, 0.2, 0.5)],
        "rmsprop": [{"lr": lr} for lr in (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)],
        "sgd_bn": [{"lr": lr} for lr in (0.01, 0.03, 0.05, 0.1, 0.2, 0.5)],
        "prong": [
            {"lr": lr, "eps": eps, "every": 400}
            for eps in (0.01, 0.1)
            for lr in (0.003, 0.01, 0.03)
        ],
    },
    settings={
        "sgd": {"lr": 0.1},
        "rmsprop": {"lr": 5e-4},
        "sgd_bn": {"lr": 0.1},
        "prong": {"lr": 0.01, "eps": 0.01, "every": 400},
    },
    optimizers=("sgd", "rmsprop", "sgd_bn", "prong"),
    spaces={
        "sgd": rates(1e-3, 1.0),
        "rmsprop": rates(1e-5, 0.03),
        "sgd_bn": rates(1e-3, 3.0),
        "prong": ridged(1e-4, 0.3, Range(1e-3, 3)),
    },
    paper=(
        Claim(
            "PRONG reduces the condition number by more than 95 %", "Fig. 2c, text",
            "MNIST, 10x10", REDUCTION("PRONG"), Bound(95.0),
        ),
        Claim(
            "PRONG is better conditioned than BatchNorm", "Fig. 2c", "MNIST, 10x10",
            CONDITION("PRONG"), CONDITION("SGD + BatchNorm"), wants="lower",
        ),
        Claim(
            "PRONG is better conditioned than RMSprop", "Fig. 2c", "MNIST, 10x10",
            CONDITION("PRONG"), CONDITION("RMSprop"), wants="lower",
        ),
        Claim(
            "the first whitening alone reduces the condition number by more than 95 %",
            "Fig. 2b", "MNIST, 10x10", Cell(FIRST_WHITENING, "mean", "reduction [%]"), Bound(95.0),
            own=True,
        ),
        Claim(
            "SGD alone, without whitening, reduces it by more than 95 %",
            "Fig. 2c", "MNIST, 10x10", REDUCTION("SGD"), Bound(95.0), own=True,
        ),
    ),
    profiles={
        "smoke": Profile(
            {
                "data": MNIST_10X10.first(512, 128, 128),
                "epochs": 1,
                "tuning_epochs": 0.5,
                "evaluations_per_epoch": 1,
                "seeds": (0,),
                "study": FisherBeforeAndAfter(layers=("2", "4"), examples=20),
            }
        ),
        "cpu": Profile({"epochs": 8, "tuning_epochs": 2}, comparable=True),
    },
    differs=(
        "the paper gives no widths, rates or eps: here 16 units a layer, momentum 0.9, rates "
        "picked on the validation set; condition numbers are compared where the training loss is "
        "equal, in place of rates tuned to an equal error; 10x10 pixels by averaging"
    ),
)  # fmt: skip
