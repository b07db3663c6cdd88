"""TEKFAC's learning rate, on ResNet-20 and CIFAR-100 (TEKFAC paper, the second Table 4)."""

from natgrad.lab.recipe import Suite
from natgrad.lab.tekfac import SOURCE
from natgrad.lab.tekfac_sweep import sweep

#: test accuracy in percent, mean and standard deviation of three runs, nu 0.01
TABLE = {
    1e-4: (76.38, 0.15),
    1e-3: (77.04, 0.15),
    0.01: (76.08, 0.14),
    0.1: (72.47, 0.23),
}

RECIPE = Suite(
    name="tekfac-lr",
    title="TEKFAC's learning rate, ResNet-20",
    source=f"{SOURCE}, second table of number 4",
    variants=sweep("lr", TABLE, {"nu": 0.01}, "second Table 4"),
)
