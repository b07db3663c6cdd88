"""The floor nu of TEKFAC's damping, on ResNet-20 and CIFAR-100 (TEKFAC paper, Table 4, Fig. 4)."""

from natgrad.lab.recipe import Suite
from natgrad.lab.tekfac import NUS, SOURCE
from natgrad.lab.tekfac_sweep import sweep

#: test accuracy in percent, mean and standard deviation of three runs, learning rate 1e-3
TABLE = {
    1e-4: (76.81, 0.28),
    1e-3: (76.65, 0.12),
    0.01: (77.04, 0.15),
    0.1: (76.71, 0.17),
    1.0: (76.03, 0.26),
    10.0: (74.74, 0.11),
    100.0: (73.68, 0.09),
}
assert tuple(TABLE) == NUS

RECIPE = Suite(
    name="tekfac-nu",
    title="TEKFAC's parameter nu, ResNet-20",
    source=f"{SOURCE}, Table 4, Fig. 4",
    variants=sweep("nu", TABLE, {"lr": 1e-3}, "Table 4"),
)
