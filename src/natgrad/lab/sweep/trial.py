"""One trial: settings drawn, a network trained, its curve told to the storage."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Splits
from natgrad.lab.folder import RunFolder
from natgrad.lab.optimizers import Setting
from natgrad.lab.running import Row, Status, Together, Watch, carry_out
from natgrad.lab.space import Choice, Range
from natgrad.lab.sweep.plan import Pruner, Search
from natgrad.lab.sweep.queue import PLACE, Stopped
from natgrad.lab.training import Run, Training

__all__ = ["ENDED", "Draws", "carry_trial", "pruner_of", "settings_of"]

ENDED = "ended"  #: attribute of a trial: "finished", "diverged" or "pruned"
UNTOUCHED = 0.25  #: the share of a trial's evaluations before any is pruned
MEDIAN_OF = 4  #: finished trials before any is pruned by their median


class Draws(BaseSampler):
    """TPE whose random numbers are a function of seed and place.

    Workers that start together then draw different settings, and one worker draws the same ones
    every time. Trials that are running count as bad ones, so that workers keep their distance.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self._tpe = seed, TPESampler()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the random numbers of this trial."""
        mixed = np.random.SeedSequence((self.seed, trial.user_attrs.get(PLACE, 0)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._tpe = TPESampler(seed=int(mixed.generate_state(1)[0]), constant_liar=True)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See optuna."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See optuna."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See optuna."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Any,
    ) -> None:
        """See optuna."""
        self._tpe.after_trial(study, trial, state, values)


def pruner_of(kind: Pruner, evaluations: int) -> BasePruner:
    """The pruner of that name for curves of so many points."""
    first = max(1, round(UNTOUCHED * evaluations))
    if kind == "median":
        return MedianPruner(n_startup_trials=MEDIAN_OF, n_warmup_steps=first)
    if kind == "halving":
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    return NopPruner()


def settings_of(trial: Trial, search: Search, place: int) -> dict[str, Setting]:
    """The settings that a trial tries, noted in the storage."""
    if search.space is None:
        keys = search.points[place]
        return {key: _chosen(trial, key, search.values(key)) for key in keys}
    return {key: _drawn(trial, key, kind) for key, kind in search.space.items()}


def _drawn(trial: Trial, key: str, kind: Range | Choice) -> Setting:
    if isinstance(kind, Choice):
        return _chosen(trial, key, kind.values)
    if kind.whole:
        return trial.suggest_int(key, int(kind.low), int(kind.high), log=kind.log)
    return trial.suggest_float(key, kind.low, kind.high, log=kind.log)


def _chosen(trial: Trial, key: str, values: Sequence[Setting]) -> Setting:
    value = trial.suggest_categorical(key, values)
    assert value is not None  # no choice is
    return value


def carry_trial(
    trial: Trial,
    run: Run,
    place: RunFolder,
    before: RunFolder | None,
    splits: Splits,
    watch: Watch,
    stop: Callable[[], bool],
    rhythm: Rhythm | None,
) -> list[dict[str, Any]]:
    """Train a trial to its end, from the checkpoint of the trial that it takes up.

    Args:
        trial: in the storage; a tuning run may be pruned.
        run: what to train.
        place: its own folder: no other worker writes there.
        before: the folder of a failed trial of the same settings.
        splits: the data.
        watch: is told of every step.
        stop: asked between steps.
        rhythm: of the checkpoints.

    Returns:
        The curve.

    Raises:
        TrialPruned: it fell behind, or diverged.
        Stopped: ``stop`` said so.
    """
    if before is not None:
        _inherit(before, place)
    follower = Follower(watch, trial, prune=run.tuning)
    status = carry_out(run, splits, place, follower, lambda: follower.behind or stop(), rhythm)
    if status == "interrupted" and not follower.behind:
        raise Stopped
    if status == "interrupted":
        status = "pruned"
        place.checkpoints.drop()
        place.set_status({**place.status(), "status": status})
    trial.set_user_attr(ENDED, status)
    trial.set_user_attr("seconds", place.status()["seconds"])
    if status != "finished":
        raise optuna.TrialPruned
    return place.rows()


class Follower(Together):
    """Tells the storage of every evaluation of a trial, and asks the pruner.

    Args:
        watch: is told too.
        trial: in the storage.
        prune: whether the pruner is asked.
    """

    def __init__(self, watch: Watch, trial: Trial, prune: bool) -> None:
        super().__init__(watch)
        self.trial, self.prune, self.behind = trial, prune, False

    def begin(self, training: Training) -> None:
        """A run begins, or goes on: with the curve of the trial before it."""
        super().begin(training)
        for step, row in enumerate(training.rows):
            self.trial.report(row["validation_loss"], step)

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        super().evaluated(training, row)
        self.trial.report(row["validation_loss"], len(training.rows) - 1)
        self.behind = self.prune and self.trial.should_prune()

    def end(self, training: Training, status: Status) -> None:
        """The run is over, pruned, or interrupted."""
        pruned = status == "interrupted" and self.behind
        super().end(training, "pruned" if pruned else status)


def _inherit(before: RunFolder, place: RunFolder) -> None:
    place.path.mkdir(parents=True, exist_ok=True)
    for path in before.checkpoints.found():
        shutil.copyfile(path, place.path / path.name)
