"""Ten-fold cross-validation: the folds' findings on their test sets as one FROC curve.

As LUNA16 asks for it: every scan is marked by a network that was not trained on it, and the marks
of all ten folds are scored together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.errors import DataMissingError, DivergedError, UsageError
from natgrad.lab.folder import Results
from natgrad.lab.luna.archive import FOLDS
from natgrad.lab.luna.froc import Marks
from natgrad.lab.nodules.curves import CAPTION, FROC, Judged, drawing, judged, table
from natgrad.lab.nodules.kept_marks import kept_marks, pooled
from natgrad.lab.paper import Claim, Number
from natgrad.lab.profile import SMOKE, Profile
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder

__all__ = ["FOLD_NAMES", "POOL", "PooledStudy", "by_folds", "of_fold", "ten_fold"]

#: the variants of a suite that are the folds, and the one that pools them
FOLD_NAMES = tuple(f"fold{k}" for k in range(FOLDS))
POOL = "ten-fold"
TRAIN = "Train figures are means over folds, since each fold trains on eight subsets of the ten."


def ten_fold(name: str) -> DataSet:
    """All of LUNA16 as ten test sets, under a name: nothing is read for it but the folds' marks."""
    split = "each subset is the test set of one fold, and the folds' marks are scored together"
    return DataSet(name, split, _nothing)


def _nothing(folder: Path | None) -> Splits:
    none = Pair(torch.empty(0), torch.empty(0))
    return Splits(none, none, none, "the results of the ten folds beside these")


def of_fold(
    recipe: Recipe,
    fold: int,
    data: Callable[[int, int | None], DataSet],
    scans: Mapping[str, int],
) -> Recipe:
    """An experiment with a given subset as test set, in every profile.

    Args:
        recipe: the experiment.
        fold: the subset.
        data: LUNA16 with a subset as test set, and with so many scans of each.
        scans: of each subset in a smaller profile, by its name.
    """
    profiles = {
        name: replace(each, changes={**each.changes, "data": data(fold, scans[name])})
        for name, each in recipe.profiles.items()
    }
    return replace(recipe, data=data(fold, None), profiles=profiles)


def by_folds(
    whole: Callable[[int], Recipe], data: str, paper: Sequence[Number | Claim], thinned: str
) -> dict[str, Recipe]:
    """Variants of a suite: an experiment in each fold, and one that pools them.

    Args:
        whole: the experiment with a given subset as test set.
        data: what the ten folds together are called.
        paper: what the paper states of them.
        thinned: see :class:`natgrad.lab.nodules.study.FrocStudy`.
    """
    folds = {name: _fold(whole(k), k) for k, name in enumerate(FOLD_NAMES)}
    first = folds[FOLD_NAMES[0]]
    pool = replace(
        first,
        title=f"{whole(0).title}, the ten folds together",
        data=ten_fold(data),
        optimizers=(),
        study=PooledStudy(thinned),
        paper=tuple(paper),
        profiles={name: _smaller(each) for name, each in first.profiles.items()},
    )
    return {**folds, POOL: pool}


def _fold(recipe: Recipe, k: int) -> Recipe:
    """A fold, in the smoke profile with SGD alone: ten folds are ten times the work."""
    smoke = recipe.profiles[SMOKE]
    alone = replace(smoke, changes={**smoke.changes, "optimizers": ("sgd",)})
    profiles = {**recipe.profiles, SMOKE: alone}
    return replace(recipe, title=f"{recipe.title}, fold {k}", paper=(), profiles=profiles)


def _smaller(profile: Profile) -> Profile:
    """The profile of what trains nothing: of its changes the network's alone."""
    kept = ("network", "architecture")
    return replace(profile, changes={k: v for k, v in profile.changes.items() if k in kept})


@dataclass(frozen=True)
class PooledStudy:
    """FROC curves of the folds together, from their results in the folders beside.

    ``DIR/fold0 ... DIR/fold9`` beside ``DIR/ten-fold``: the folders of a suite, or those of ten
    machines put together.

    Attributes:
        thinned: see :class:`natgrad.lab.nodules.study.FrocStudy`.
        resamples: of the bootstrap.
    """

    thinned: str = ""
    resamples: int = 1000

    def watch(self, results: Results) -> Watch | None:
        """None: nothing is trained here."""
        return None

    def conclude(self, work: Work) -> None:
        """Write the table and the figure.

        Raises:
            DataMissingError: a fold is not there or not finished.
            DivergedError: no optimizer finished from any seed in all folds.
            UsageError: a fold was run in another profile, or for another budget than the rest.
            DamagedError: the marks of a fold are not what was written.
        """
        folds = _finished_folds(work)
        seeds = [int(seed) for seed in _in_all(folds, "seeds")]
        found: dict[str, Judged] = {}
        lost: dict[str, list[int]] = {}
        for name in _in_all(folds, "optimizers"):
            if work.stop():
                return
            marks = {seed: _of_folds(folds, name, seed) for seed in seeds}
            whole = {seed: pairs for seed, pairs in marks.items() if pairs is not None}
            lost[name] = [seed for seed in seeds if seed not in whole]
            if whole:
                found[name] = _pooled(whole, self.resamples)
                scored = pooled([test for _, test in next(iter(whole.values()))])
        if not found:
            raise DivergedError("no optimizer finished from any seed in all ten folds")
        held = f"The test is over {scored.scans:,} scans with {scored.nodules:,} nodules."
        notes = [TRAIN, self.thinned, held]
        work.folder.write_table(FROC, table(found, lost, self.resamples, notes))
        work.folder.write_figure(FROC, drawing(found), CAPTION)


def _finished_folds(work: Work) -> list[Results]:
    beside = work.results.path.parent
    folds = [Results(beside / name) for name in FOLD_NAMES]
    missing = [each.path.name for each in folds if each.manifest().get("status") != "finished"]
    if missing:
        suite = work.recipe.name.partition("/")[0]
        raise DataMissingError(
            f"the folds are pooled when all ten are finished, and {', '.join(missing)} are not: "
            f"natgrad compare {suite}/{missing[0]} --out {beside / missing[0]}, and so on"
        )
    for each in folds:
        profile = each.manifest().get("profile", {}).get("name")
        if profile != work.recipe.profile.name:
            raise UsageError(
                f"{each.path.name} was run in the {profile} profile, this is the "
                f"{work.recipe.profile.name} one: folds are pooled in one profile only"
            )
        if each.manifest().get("budget") != folds[0].manifest().get("budget"):
            raise UsageError(f"{each.path.name} had another budget than {folds[0].path.name}")
    return folds


def _in_all(folds: Sequence[Results], key: str) -> list[str]:
    """What the manifests of all folds list under a key, in the first one's order."""
    lists = [[str(entry) for entry in each.manifest().get(key, [])] for each in folds]
    return [entry for entry in lists[0] if all(entry in each for each in lists)]


def _of_folds(
    folds: Sequence[Results], optimizer: str, seed: int
) -> list[tuple[Marks, Marks]] | None:
    """The marks of one optimizer and seed in every fold; None where it diverged in one."""
    found = [
        kept_marks(study_folder(each.path), optimizer, seed)
        for each in folds
        if each.run(optimizer, seed).status().get("status") == "finished"
    ]
    whole = [pair for pair in found if pair is not None]
    return whole if len(whole) == len(folds) else None


def _pooled(marks: Mapping[int, Sequence[tuple[Marks, Marks]]], resamples: int) -> Judged:
    train = {seed: [pair[0] for pair in pairs] for seed, pairs in marks.items()}
    test = {seed: pooled([pair[1] for pair in pairs]) for seed, pairs in marks.items()}
    return judged(train, test, resamples)
