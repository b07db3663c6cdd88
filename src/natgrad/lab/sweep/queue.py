"""The trials of one search, each done once by whichever worker comes first.

Every place of a search is put into optuna's queue when the sweep begins, and workers take from it.
optuna alone decides who gets a trial; on top of that these rules hold, whoever comes when:

- a place belongs to the lowest trial of its number that has not failed: where two workers filled
  the queue at the same moment, the second trial of a place is dropped when it is taken;
- a trial has failed when its worker is dead (at once on the same machine) or gives no sign of life;
- a place all of whose trials have failed is put into the queue again, with the settings that were
  drawn for it, until it has failed ``ATTEMPTS`` times; interruptions by the user don't count.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from natgrad.lab.optimizers import Settings
from natgrad.lab.sweep.process import alive, me

__all__ = ["AFTER", "PLACE", "STOPPED", "Queue", "Stopped"]

ATTEMPTS = 3
#: attributes of a trial: its place in the search, the trial it takes up, its worker, why it failed
PLACE, AFTER, PROCESS, STOPPED, SPARE = "place", "after", "process", "stopped", "spare"


class Stopped(Exception):  # noqa: N818
    """The user wants the sweep to stop; the trial goes back into the queue."""


class _Spare(Exception):  # noqa: N818
    """The place of this trial is another one's."""


class Queue:
    """The places of a search.

    Args:
        study: of the search.
        places: how many there are.
        fixed: the settings of a place that are not drawn.
        silent: seconds after which a trial whose worker never said who it is has failed.
    """

    def __init__(
        self,
        study: optuna.Study,
        places: int,
        fixed: Callable[[int], Settings],
        silent: float,
    ) -> None:
        self.study, self.places, self.fixed, self.silent = study, places, fixed, silent
        self._seen: dict[int, float] = {}

    def refresh(self) -> None:
        """Give up the trials of dead workers, and queue the places that nobody has."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self._trials(TrialState.RUNNING):
            if self._dead(trial):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        by_place = self._by_place()
        for place in range(self.places):
            trials = by_place.get(place, [])
            if all(trial.state == TrialState.FAIL for trial in trials) and not _given_up(trials):
                self._queue(place, trials)

    def take(self, work: Callable[[Trial, int], float]) -> bool:
        """Do one trial, if there is one.

        Args:
            work: is given the trial and its place; returns what was reached, or raises
                ``optuna.TrialPruned``, or :class:`Stopped`.

        Returns:
            Whether there was one.
        """
        if not self._trials(TrialState.WAITING):
            return False
        taken: list[int] = []
        wrong: list[Exception] = []

        def objective(trial: Trial) -> float:
            taken.append(trial.number)
            trial.set_user_attr(PROCESS, me())
            place = trial.user_attrs.get(PLACE)
            if place is None or self._holder(place) != trial.number:
                trial.set_user_attr(SPARE, True)
                raise _Spare
            try:
                return work(trial, place)
            except Stopped:
                trial.set_user_attr(STOPPED, True)
                raise
            except (optuna.TrialPruned, UpdateFinishedTrialError):
                raise
            except Exception as error:
                wrong.append(error)
                raise

        try:
            self.study.optimize(objective, n_trials=1, catch=(_Spare,))
        except (UpdateFinishedTrialError, ValueError, AssertionError):
            # what optuna raises where this process was asleep and its trial given to another
            if wrong or not taken or self._trial(taken[0]).state != TrialState.FAIL:
                raise
        return True

    def over(self) -> bool:
        """Whether every place is done with."""
        return self.done() == self.places

    def done(self) -> int:
        """The number of places that are done with, those given up among them."""
        ended = self.ended()
        lost = [p for p, trials in self._by_place().items() if p not in ended and _given_up(trials)]
        return len(ended) + len(lost)

    def ended(self) -> dict[int, FrozenTrial]:
        """By place, the trials that came to an end: complete or pruned."""
        found: dict[int, FrozenTrial] = {}
        for trial in self._trials(TrialState.COMPLETE, TrialState.PRUNED):
            found.setdefault(trial.user_attrs.get(PLACE, -1), trial)
        return {place: found[place] for place in sorted(found) if 0 <= place < self.places}

    def best(self) -> FrozenTrial | None:
        """The lowest of the complete trials."""
        complete = [t for t in self.ended().values() if t.state == TrialState.COMPLETE]
        return min(complete, key=lambda t: (t.value, t.user_attrs[PLACE]), default=None)

    def _queue(self, place: int, failed: list[FrozenTrial]) -> None:
        params, attributes = dict(self.fixed(place)), {PLACE: place}
        if failed:
            attributes[AFTER] = failed[-1].number
            params = next((dict(t.params) for t in reversed(failed) if t.params), params)
        self.study.enqueue_trial(params, user_attrs=attributes)

    def _dead(self, trial: FrozenTrial) -> bool:
        if PROCESS in trial.user_attrs:
            return alive(trial.user_attrs[PROCESS]) is False
        since = self._seen.setdefault(trial.number, time.monotonic())
        return time.monotonic() - since > self.silent

    def _holder(self, place: int) -> int | None:
        holding = [t for t in self._by_place().get(place, []) if t.state != TrialState.FAIL]
        return holding[0].number if holding else None

    def _by_place(self) -> dict[int, list[FrozenTrial]]:
        found: dict[int, list[FrozenTrial]] = {}
        for trial in self._trials():
            if PLACE in trial.user_attrs and SPARE not in trial.user_attrs:
                found.setdefault(trial.user_attrs[PLACE], []).append(trial)
        return found

    def _trial(self, number: int) -> FrozenTrial:
        return next(trial for trial in self._trials() if trial.number == number)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)


def _given_up(trials: list[FrozenTrial]) -> bool:
    failed = [t for t in trials if t.state == TrialState.FAIL and STOPPED not in t.user_attrs]
    return len(failed) >= ATTEMPTS
