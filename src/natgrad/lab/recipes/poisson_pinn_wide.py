"""The same with some ten thousand parameters: more of them than residuals."""

from dataclasses import replace
from functools import partial

from natgrad.lab.poisson import network, points
from natgrad.lab.recipes import poisson_pinn

RECIPE = replace(
    poisson_pinn.RECIPE,
    name="poisson-pinn-wide",
    title="2D Poisson equation by a physics-informed network of 10,501 parameters",
    architecture="2-100-100-1, tanh, double precision",
    data=points(20),
    network=partial(network, (100, 100)),
    tuning_epochs=150,
    seconds=120,
    differs=poisson_pinn.RECIPE.differs.replace("20 units", "100 units"),
)
