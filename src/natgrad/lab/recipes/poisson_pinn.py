"""A physics-informed network of a few hundred parameters, to the accuracy of a numerical solver."""

from functools import partial

from natgrad.lab.poisson import RELATIVE_ERROR, Poisson, draw, network, points
from natgrad.lab.profile import Profile
from natgrad.lab.recipe import Recipe
from natgrad.likelihood import Gaussian

RECIPE = Recipe(
    name="poisson-pinn",
    title="2D Poisson equation by a physics-informed network of 501 parameters",
    source="Müller & Zeinhofer 2023 (arXiv 2302.13163), section 4.1",
    architecture="2-20-20-1, tanh, double precision",
    data=points(30),
    network=partial(network, (20, 20)),
    likelihood=Gaussian(),
    metric=RELATIVE_ERROR,
    objective=Poisson(),
    illustrate=draw,
    batch_size=1_000_000,  # all points in every step
    l2=0.0,
    epochs=1000,
    tuning_epochs=250,
    seconds=60,
    evaluations_per_epoch=1,
    evaluations=60,
    schedule="linear",
    unscheduled=("lbfgs", "exactngd"),
    threads=1,
    grids={  # 5 points each
        "adam": [{"lr": lr} for lr in (3e-3, 0.01, 0.03, 0.1, 0.2)],
        "lbfgs": [{"history": history} for history in (3, 10, 30, 100, 300)],
        "exactngd": [
            {"lr": 1.0, "damping": damping, "halvings": 30, "geodesic": 1}
            for damping in (1e-12, 1e-11, 1e-10, 1e-8, 1e-6)
        ],
    },
    settings={
        "adam": {"lr": 0.01},
        "lbfgs": {"history": 100},
        "exactngd": {"lr": 1.0, "damping": 1e-12, "halvings": 30, "geodesic": 1},
    },
    optimizers=("adam", "lbfgs", "exactngd"),
    profiles={
        "smoke": Profile({"data": points(8), "seconds": 0.5, "evaluations": 3, "seeds": (0,)})
    },
    differs=(
        "two hidden layers of 20 units instead of one; a little damping instead of the "
        "pseudo-inverse; Adam's learning rate falls linearly to zero, L-BFGS (strong Wolfe line "
        "search) and ExactNGD choose their step lengths themselves, and ExactNGD bends its steps "
        "(geodesic acceleration)"
    ),
)
