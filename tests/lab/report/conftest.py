"""Results folders as `natgrad compare` leaves them, made of formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PAPER = [
    {
        "kind": "number",
        "what": f"{name}, test accuracy",
        "value": value,
        "where": "Fig. 3",
        "data": "MNIST",
        "ours": {
            "kind": "final",
            "optimizer": name,
            "quantity": "test_metric",
            "complement": False,
        },
        "spread": None,
        "unit": "%",
        "comparable": True,
        "reason": "",
        "explanation": "",
    }
    for name, value in (("sgd", 97.62), ("sngd", 97.79))
]

MANIFEST: dict[str, Any] = {
    "schema": 1,
    "recipe": {
        "name": "mnist-mlp",
        "title": "Four-layer perceptron on MNIST",
        "source": "Liu and Liu 2021, A Novel Structured Natural Gradient Descent, Fig. 3, "
        "https://example.org/sngd.pdf, arXiv:2109.10100",
        "paper": PAPER,
        "differs": "Learning rates are tuned here; the paper does not give its own.",
        "batch_size": 50,
        "l2": 1e-3,
        "network": "784-80-80-80-10, ReLU",
        "likelihood": "Categorical",
        "parameters": 76570,
    },
    "profile": {"name": "cpu", "differs": "epochs: 10 instead of 70", "comparable": True},
    "metric": {"name": "accuracy", "unit": "%", "better": "higher"},
    "data": {
        "name": "MNIST",
        "source": "ylecun/mnist (Hugging Face hub)",
        "sizes": {"train": 50000, "validation": 10000, "test": 10000},
    },
    "budget": {"epochs": 10, "seconds": None},
    "optimizers": [],
    "seeds": [0, 1, 2],
    "grids": {},
    "tuned": {},
    "tuning_rule": "Lowest final validation loss after 2 epochs with seed 0.",
    "command": "natgrad compare mnist-mlp --data /home/someone/data",
    "versions": {"natgrad": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
    "machine": {"cpu": "A processor", "cores": 2, "threads": 2, "hostname": "secret-host"},
    "git": {"revision": "0123abc", "dirty": True},
    "started": "2026-01-01T10:00:00+00:00",
    "finished": "2026-01-01T10:20:00+00:00",
    "status": "finished",
}


def row(epoch: float, update: int, seconds: float, **values: float | None) -> dict[str, Any]:
    return {
        "optimizer": "any",
        "seed": 0,
        "settings": {"lr": 0.1},
        "epoch": epoch,
        "update": update,
        "seconds": seconds,
        **values,
    }


def write_run(
    folder: Path, rows: Sequence[Mapping[str, Any]], status: str = "finished", tail: str = ""
) -> None:
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in rows)
    (folder / "rows.jsonl").write_text(lines + tail, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"status": status}), encoding="utf-8")


def write_manifest(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**MANIFEST, **changes})
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def losses(folder: Path, optimizer: str, seed: int, values: Sequence[float | None]) -> None:
    """A run that ends with these validation losses, 10 updates and 2 seconds apart."""
    rows = [row(i, 10 * i, 2.0 * i, validation_loss=v) for i, v in enumerate(values)]
    bad = values[-1] is None or not math.isfinite(values[-1])
    write_run(folder / "runs" / optimizer / f"seed{seed}", rows, "diverged" if bad else "finished")


def learning(
    seed: int, rate: float, ms: float, floor: float = 0.06, stop: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a plausible training run of 10 epochs of 1000 updates, evaluated twice an epoch."""
    rows = []
    for k in range(21):
        update = 500 * k
        wiggle = 1 + 0.06 * math.sin(3.1 * k + 2 * seed) + 0.08 * (seed - 1)
        fall = math.exp(-rate * math.sqrt(k)) * wiggle
        train = 2.3 * fall + 0.01 * wiggle
        validation = 2.3 * fall + floor * wiggle + 0.0008 * k * rate
        lost = stop is not None and k >= stop
        values = {
            "train_loss": None if lost else train,
            "train_metric": None if lost else 100 - 90 * fall - 0.2,
            "validation_loss": None if lost else validation,
            "validation_metric": None if lost else 100 - 88 * fall - 20 * floor,
            "test_loss": None if lost else validation * 1.03,
            "test_metric": None if lost else 100 - 88 * fall - 21 * floor - 0.1 * (seed % 3),
        }
        seconds = update * ms / 1000 * (1 + 0.03 * seed)
        rows.append(row(k / 2, update, seconds, **values))
        if lost:
            break
    return rows


SPEEDS = {"sgd": (1.0, 0.5), "adam": (1.15, 0.7), "muon": (1.3, 1.2), "kfac": (1.9, 1.5)}


def write_comparison(folder: Path) -> Path:
    """A whole comparison: four optimizers, three seeds, one diverged, one interrupted."""
    rates = [0.003, 0.01, 0.03, 0.1]
    grids = {name: [{"lr": lr, "momentum": 0.9} for lr in rates] for name in SPEEDS}
    dampings = [1e-3, 1e-2]
    grids["kfac"] = [{"lr": lr, "damping": d, "momentum": 0.9} for lr in rates for d in dampings]
    tuned = {name: grid[2] for name, grid in grids.items()}
    tuned["sgd"] = grids["sgd"][3]
    write_manifest(folder, optimizers=list(SPEEDS), grids=grids, tuned=tuned)
    for name, (rate, ms) in SPEEDS.items():
        for seed in range(3):
            stop = 9 if (name, seed) == ("muon", 1) else None
            rows = [
                {**entry, "settings": tuned[name]} for entry in learning(seed, rate, ms, stop=stop)
            ]
            status = "diverged" if stop else "finished"
            if (name, seed) == ("adam", 2):
                rows, status = rows[:8], "interrupted"
            write_run(folder / "runs" / name / f"seed{seed}", rows, status)
        for index, settings in enumerate(grids[name]):
            lost = settings["lr"] == 0.1 and name == "adam"
            slower = rate * (1 - 0.2 * abs(math.log10(settings["lr"] / tuned[name]["lr"])))
            rows = learning(0, slower, ms, stop=3 if lost else None)[:5]
            write_run(
                folder / "tuning" / name / str(index), rows, "diverged" if lost else "finished"
            )
    return folder


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return write_comparison(tmp_path / "results")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder from the validation losses of every seed of every optimizer."""

    def make(_manifest: Mapping[str, Any] | None = None, **runs: Sequence[Sequence[Any]]) -> Path:
        path = tmp_path / "results"
        write_manifest(path, **{"optimizers": list(runs), **(_manifest or {})})
        for optimizer, seeds in runs.items():
            for seed, values in enumerate(seeds):
                losses(path, optimizer, seed, values)
        return path

    return make
