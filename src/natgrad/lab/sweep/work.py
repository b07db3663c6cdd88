"""What every worker of a sweep does: trials while there are any, then the best over seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial

from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.comparison import settled
from natgrad.lab.data import Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.folder import Results, RunFolder
from natgrad.lab.manifest import check_unchanged
from natgrad.lab.optimizers import complete
from natgrad.lab.running import Silent, Status, Watch
from natgrad.lab.sweep.plan import Search, Sweep, described_sweep
from natgrad.lab.sweep.queue import AFTER, Queue, Stopped
from natgrad.lab.sweep.trial import Draws, carry_trial, pruner_of, settings_of

__all__ = ["ROWS", "SEEDS", "Worker"]

SEEDS = "seeds"  #: the study of the runs over seeds
ROWS = "rows"  #: attribute of its trials: the curve
CONDITIONS = "sweep"  #: attribute of a study: what must be the same for all workers
POLL_S = 0.2

Work: TypeAlias = Callable[[Trial, int], float]


def _nobody(done: int) -> None:
    """Is told how much is done."""


@dataclass
class Worker:
    """One of the processes that work at a sweep; alone, or beside others.

    Attributes:
        sweep: what to do.
        splits: the data.
        results: a folder; workers with one storage may share it or have their own.
        storage: that all of them share.
        watch: is told of every step.
        stop: asked between steps.
        rhythm: of the checkpoints.
        done: is told how many trials and runs are done, by all workers together.
    """

    sweep: Sweep
    splits: Splits
    results: Results
    storage: RDBStorage
    watch: Watch = field(default_factory=Silent)
    stop: Callable[[], bool] = bool
    rhythm: Rhythm | None = None
    done: Callable[[int], None] = _nobody

    def __post_init__(self) -> None:
        """Open the studies; refuse those of a sweep of this name under other conditions."""
        self.described = described_sweep(self.sweep, self.splits)
        self.searches = {s.optimizer: self._search(s) for s in self.sweep.searches}

    def carry_through(self) -> Status:
        """Work until nothing is left to do.

        Returns:
            ``"finished"``, or ``"interrupted"`` when ``stop`` said so.
        """
        tried = [(self.searches[s.optimizer], self._trying(s)) for s in self.sweep.searches]
        if not self._drain(tried, 0):
            return "interrupted"
        runs, queue = self.runs(), self.over_seeds()
        before = sum(queue.done() for queue, _ in tried)
        finished = self._drain([(queue, lambda t, place: self._run(t, *runs[place]))], before)
        return "finished" if finished else "interrupted"

    def best(self) -> dict[str, FrozenTrial]:
        """The best trial of each optimizer that has one."""
        found = {name: queue.best() for name, queue in self.searches.items()}
        return {name: trial for name, trial in found.items() if trial is not None}

    def runs(self) -> list[tuple[str, int]]:
        """Optimizer and seed of every run; optimizers take turns within a seed."""
        names = list(self.best())
        return [(name, seed) for seed in self.sweep.plan.seeds for name in names]

    def over_seeds(self) -> Queue:
        """The runs of the best settings."""
        study = self._study(SEEDS, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
        return Queue(study, len(self.runs()), lambda place: {}, self._silent())

    def _drain(self, tasks: Sequence[tuple[Queue, Work]], before: int) -> bool:
        """Work until all of it is done, by whomever; False when stopped."""
        while True:
            for queue, _ in tasks:
                queue.refresh()
            done = [queue.done() for queue, _ in tasks]
            self.done(before + sum(done))
            if self.stop():
                return False
            try:
                worked = any(queue.take(work) for queue, work in tasks)
            except Stopped:
                return False
            if not worked:
                if all(queue.over() for queue, _ in tasks):
                    return True
                time.sleep(POLL_S)  # others are still at work

    def _trying(self, search: Search) -> Work:
        def work(trial: Trial, place: int) -> float:
            settings = settings_of(trial, search, place)
            run = self.sweep.plan.trial(search.optimizer, settings)
            return settled(self._carry(trial, run, search.optimizer))

        return work

    def _run(self, trial: Trial, optimizer: str, seed: int) -> float:
        settings = complete(optimizer, self.best()[optimizer].params)
        rows = self._carry(trial, self.sweep.plan.run(optimizer, settings, seed), SEEDS)
        trial.set_user_attr(ROWS, rows)
        value: float = rows[-1]["validation_loss"]
        return value

    def _carry(self, trial: Trial, run: Any, part: str) -> list[dict[str, Any]]:
        failed = trial.user_attrs.get(AFTER)
        before = None if failed is None else self.folder(part, failed)
        own = self.folder(part, trial.number)
        return carry_trial(trial, run, own, before, self.splits, self.watch, self.stop, self.rhythm)

    def folder(self, part: str, number: int) -> RunFolder:
        """The folder of a trial, which only its own worker writes to."""
        return RunFolder(self.results.path / "trials" / part / str(number))

    def _search(self, search: Search) -> Queue:
        plan = self.sweep.plan
        epochs = plan.tuning_budget().epochs
        points = plan.recipe.evaluations or (epochs or 1) * plan.recipe.evaluations_per_epoch
        pruner = pruner_of(self.sweep.pruner, round(points))
        study = self._study(search.optimizer, Draws(self.sweep.seed), pruner)
        return Queue(study, len(search), search.fixed, self._silent())

    def _silent(self) -> float:
        return 3.0 * (self.storage.get_heartbeat_interval() or 1)

    def _study(
        self, part: str, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner
    ) -> optuna.Study:
        study = optuna.create_study(
            storage=self.storage, study_name=f"{self.sweep.name}/{part}", sampler=sampler,
            pruner=pruner, direction="minimize", load_if_exists=True,
        )  # fmt: skip
        described: Mapping[str, Any] = json.loads(json.dumps(self.described))
        conditions = study.user_attrs.get(CONDITIONS)
        if conditions is None:
            study.set_user_attr(CONDITIONS, described)
            return study
        try:
            check_unchanged(conditions, described)
        except UsageError as error:
            raise UsageError(
                f'the storage holds a sweep "{self.sweep.name}" under other conditions; give this '
                f"one another --name ({error})"
            ) from error
        return study
