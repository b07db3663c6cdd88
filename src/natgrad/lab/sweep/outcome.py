"""What a sweep found, read from the storage into plain records and into the results folder."""

from __future__ import annotations

import json
import shutil
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from natgrad.lab.folder import write_json
from natgrad.lab.optimizers import complete
from natgrad.lab.running import is_over
from natgrad.lab.sweep.queue import PLACE
from natgrad.lab.sweep.trial import ENDED
from natgrad.lab.sweep.work import ROWS, SEEDS, Worker

__all__ = ["RECORD", "note_outcome"]

RECORD = "sweep.json"


def note_outcome(worker: Worker) -> dict[str, Any]:
    """Write every trial to ``sweep.json``, the chosen settings and the runs over seeds to theirs.

    Everything comes from the storage, so that any worker's folder gets all of it, whoever trained
    what; networks are there where they were trained.

    Returns:
        The record: ``{"searches": [{"optimizer", "space", "best", "trials": [...]}], ...}``.
    """
    best = worker.best()
    tuned = {name: complete(name, trial.params) for name, trial in best.items()}
    searches = [
        {
            **worker.described["sweep"]["searches"][k],
            "best": best[name].user_attrs[PLACE] if name in best else None,
            "trials": [_of_trial(t) for t in queue.ended().values()],
            "given_up": queue.places - len(queue.ended()),
        }
        for k, (name, queue) in enumerate(worker.searches.items())
    ]
    runs = _note_runs(worker) if best else []
    record: dict[str, Any] = {
        "recipe": worker.described["recipe"]["name"],
        "data": worker.described["data"]["name"],
        "profile": worker.described["profile"],
        "metric": worker.described["metric"],
        "rule": worker.sweep.rule(),
        "budget": str(worker.sweep.plan.budget),
        "seeds": list(worker.sweep.plan.seeds),
        "command": worker.results.manifest()["command"],
        "searches": searches,
        "runs": runs,
    }
    record = json.loads(json.dumps(record))
    write_json(worker.results.path / RECORD, record)
    worker.results.update_manifest(tuned=tuned)
    return record


def _of_trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "place": trial.user_attrs[PLACE],
        "settings": dict(trial.params),
        "ended": trial.user_attrs.get(ENDED, "finished"),
        "validation_loss": trial.value if trial.state == TrialState.COMPLETE else _last(trial),
        "curve": [value for _, value in sorted(trial.intermediate_values.items())],
        "seconds": trial.user_attrs.get("seconds"),
    }


def _last(trial: FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None


def _note_runs(worker: Worker) -> list[dict[str, Any]]:
    """The last figures of every run; its curve goes where ``natgrad compare`` has them."""
    queue, runs = worker.over_seeds(), worker.runs()
    found = []
    for place, trial in queue.ended().items():
        optimizer, seed = runs[place]
        ended = trial.user_attrs.get(ENDED, "finished")
        rows = trial.user_attrs.get(ROWS, [])
        folder, own = worker.results.run(optimizer, seed), worker.folder(SEEDS, trial.number)
        if not is_over(folder.status()):
            folder.set_rows(rows or own.rows())
            if (own.path / "weights.pt").is_file():
                shutil.copyfile(own.path / "weights.pt", folder.path / "weights.pt")
            folder.set_status({**own.status(), "status": ended})
        last = rows[-1] if rows else {}
        figures = {k: v for k, v in last.items() if k.endswith(("_loss", "_metric"))}
        found.append({"optimizer": optimizer, "seed": seed, "ended": ended, **figures})
    return found
