"""One hyperparameter of TEKFAC over the paper's range (Gao et al. 2020, both Tables 4)."""

from __future__ import annotations

from dataclasses import replace

from natgrad.lab.image_networks import CIFAR10_CHANNELS, CIFAR100_CHANNELS
from natgrad.lab.image_sets import CIFAR10, CIFAR100
from natgrad.lab.optimizers import Settings
from natgrad.lab.paper import Claim, Final, Number
from natgrad.lab.recipe import Recipe
from natgrad.lab.studies.sensitivity import Printed, Sensitivity
from natgrad.lab.tekfac import NOT_PRINTED, SOURCE, classifier

__all__ = ["sweep"]

METHOD = "tekfac_restricted"
NOT_TUNED = "nothing is tuned; validation images are held out of the training set all the same"


def sweep(key: str, printed: Printed, fixed: Settings, where: str) -> dict[str, Recipe]:
    """ResNet-20 on CIFAR-100, as in the paper, and on CIFAR-10.

    Args:
        key: the hyperparameter.
        printed: the paper's test accuracy, mean and standard deviation, by its value.
        fixed: the other settings.
        where: in the paper.
    """
    whole = classifier("resnet20", CIFAR100, CIFAR100_CHANNELS, 100)
    other = classifier("resnet20", CIFAR10, CIFAR10_CHANNELS, 10)
    found = {"cifar100": whole, "cifar10": other}
    return {name: _of_one(recipe, key, printed, fixed, where) for name, recipe in found.items()}


def _of_one(recipe: Recipe, key: str, printed: Printed, fixed: Settings, where: str) -> Recipe:
    study = Sensitivity(key, printed, METHOD, CIFAR100.name)
    grids: dict[str, list[Settings]] = {
        study.name(value): [{key: value, **fixed}] for value in printed
    }
    settings = {name: points[0] for name, points in grids.items()}
    own = {"grids": grids, "settings": settings}
    smaller = {
        name: replace(profile, changes={**profile.changes, **own})
        for name, profile in recipe.profiles.items()
    }
    ends = (study.name(min(printed)), study.name(max(printed)))
    smaller["smoke"] = replace(
        smaller["smoke"], changes={**smaller["smoke"].changes, "optimizers": ends}
    )
    listed = ", ".join(f"{name} {value:g}" for name, value in fixed.items())
    return replace(
        recipe,
        title=f"TEKFAC's {key} ({listed}), {recipe.title}",
        source=f"{SOURCE}, {where}",
        grids=grids,
        settings=settings,
        optimizers=tuple(grids),
        paper=_stated(study, where),
        profiles=smaller,
        study=study,
        differs=f"{NOT_PRINTED}; {NOT_TUNED}",
    )


def _stated(study: Sensitivity, where: str) -> tuple[Number | Claim, ...]:
    key, printed = study.key, study.printed
    numbers = [
        Number(
            f"{key} {value:g}, test accuracy", mean, where, CIFAR100.name,
            Final(study.name(value)), sd, "%",
        )
        for value, (mean, sd) in printed.items()
    ]  # fmt: skip
    best = max(printed, key=lambda value: printed[value][0])
    claim = Claim(
        f"{key} {best:g} is more accurate than {key} {max(printed):g}", where, CIFAR100.name,
        Final(study.name(best)), Final(study.name(max(printed))),
    )  # fmt: skip
    return (*numbers, claim)
