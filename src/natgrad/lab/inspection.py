"""How good the approximations of the Fisher matrix are, at initialisation and along training."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from natgrad import Comparison, compare
from natgrad.compare import ComparisonRow
from natgrad.lab import provenance
from natgrad.lab.data import Splits
from natgrad.lab.optimizers import Settings
from natgrad.lab.recipe import Recipe
from natgrad.lab.report.text import profile_text
from natgrad.lab.training import Budget, Run, Training

__all__ = ["Snapshot", "inspect_training", "write_inspection", "write_page"]

SEED = 0
FIGURES = ("errors", "spectra", "matrices")


@dataclass(frozen=True)
class Snapshot:
    """The approximations at one moment of a training run."""

    epoch: float
    update: int
    train_loss: float  #: of the last batch before; that of the examples compared on at the start
    comparison: Comparison


def inspect_training(
    recipe: Recipe,
    optimizer: str,
    settings: Settings,
    splits: Splits,
    *,
    epochs: Sequence[float],
    examples: int,
    damping: float,
    samples: int | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> list[Snapshot]:
    """Train a recipe and compare the structures at the given epochs, on validation examples.

    Args:
        recipe: the experiment.
        optimizer: what trains it, with its ``settings``.
        settings: of the optimizer.
        splits: the data.
        epochs: when to look, ascending; 0 is the initialisation.
        examples: the Fisher matrices are means over this many validation examples.
        damping: added to the eigenvalues for the natural gradients.
        samples: None for the exact Fisher, else draws per example of the sampled one.
        tell: is given a line of progress.
    """
    budget = Budget(epochs=max(*epochs, 1e-9))
    training = Training(Run(recipe, optimizer, settings, SEED, budget), splits)
    pair = splits.validation.first(examples)
    loss = recipe.likelihood.nll(training.model(pair.inputs), pair.targets).mean().item()
    snapshots = []
    for epoch in epochs:
        while training.epoch < epoch:
            loss = training.step()
        tell(f"epoch {training.epoch:.3g}, {training.update} updates, loss {loss:.4g}: comparing")
        found = compare(
            training.model, pair.inputs, recipe.likelihood, targets=pair.targets, damping=damping,
            kind="exact" if samples is None else "sampled", samples=samples or 1,
        )  # fmt: skip
        snapshots.append(Snapshot(training.epoch, training.update, loss, found))
    return snapshots


def write_inspection(
    folder: Path,
    recipe: Recipe,
    optimizer: str,
    settings: Settings,
    snapshots: Sequence[Snapshot],
    samples: int | None = None,
    data: str | None = None,
) -> Path:
    """Write records, tables and figures of the snapshots.

    Args:
        folder: where to.
        recipe: the experiment, in its profile.
        optimizer: what trained it, with its ``settings``.
        settings: of the optimizer.
        snapshots: what was found.
        samples: as for :func:`inspect_training`.
        data: the name of what was read; None for that of the recipe's data set.

    Returns:
        The page with all of it, ``inspection.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "architecture": recipe.architecture,
        "data": data or recipe.data.name,
        "profile": asdict(recipe.profile),
        "optimizer": optimizer,
        "settings": dict(settings),
        "seed": SEED,
        "fisher": "exact" if samples is None else f"sampled, {samples} draws an example",
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "git": provenance.git(),
        "command": provenance.command(),
        "snapshots": [_record(snapshot) for snapshot in snapshots],
    }
    (folder / "inspection.json").write_text(json.dumps(record, indent=1) + "\n")
    for number, snapshot in enumerate(snapshots):
        _draw(folder, number, snapshot.comparison)
    return write_page(folder)


def write_page(folder: Path) -> Path:
    """Write ``inspection.md`` from the record and the figures in a folder."""
    record = json.loads((folder / "inspection.json").read_text())
    sections = [_section(folder, k, snapshot) for k, snapshot in enumerate(record["snapshots"])]
    page = folder / "inspection.md"
    page.write_text("\n\n".join([_head(record), _medians(record), *sections]) + "\n")
    return page


def _record(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "epoch": snapshot.epoch,
        "update": snapshot.update,
        "loss": snapshot.train_loss,
        "examples": snapshot.comparison.examples,
        "damping": snapshot.comparison.damping,
        "rows": snapshot.comparison.records(),
    }


def _head(record: dict[str, Any]) -> str:
    first = record["snapshots"][0]
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    return (
        f"# {record['recipe']}: {record['architecture']}\n\n"
        f"    {record['command']}\n\n"
        f"{record['data']}, trained by {record['optimizer']} ({settings}), seed {record['seed']}"
        f"; profile {profile_text(record['profile'])}. "
        f"Fisher matrices ({record['fisher']}) are means over {first['examples']} validation "
        "examples; natural gradients are those of their mean loss, with damping "
        f"{first['damping']:g}. Error: |F - F'| / |F|, Frobenius. Trace: tr F' / tr F. Cosine and "
        "step error: between the damped natural gradients u' and u, |u - u'| / |u|."
    )


def _medians(record: dict[str, Any]) -> str:
    """For each moment and structure the medians over layers."""
    head = ("epoch", "loss", "structure", "error", "trace", "cosine", "step error")
    lines = [head, ("---",) * len(head)]
    for snapshot in record["snapshots"]:
        structures = dict.fromkeys(row["structure"] for row in snapshot["rows"])
        for structure in structures:
            rows = [row for row in snapshot["rows"] if row["structure"] == structure]
            figures = (
                f"{statistics.median(row[key] for row in rows):.3f}"
                for key in ("error", "trace_ratio", "cosine", "step_error")
            )
            when = (f"{snapshot['epoch']:.3g}", f"{snapshot['loss']:.3g}")
            lines.append((*when, structure.upper(), *figures))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Medians over layers:\n\n{table}"


def _draw(folder: Path, number: int, comparison: Comparison) -> None:
    for kind in FIGURES:
        try:
            figure = comparison.plot(kind)
        except ValueError:  # no matrix is small enough to be shown
            continue
        figure.savefig(folder / f"{kind}-{number}.pdf")
        figure.savefig(folder / f"{kind}-{number}.png", dpi=110)


def _section(folder: Path, number: int, snapshot: dict[str, Any]) -> str:
    rows = tuple(ComparisonRow(**row) for row in snapshot["rows"])
    table = Comparison(rows, snapshot["examples"], snapshot["damping"], {}, {})
    title = f"## Epoch {snapshot['epoch']:.3g} ({snapshot['update']} updates)"
    shown = [kind for kind in FIGURES if (folder / f"{kind}-{number}.png").exists()]
    figures = [f"![{kind}]({kind}-{number}.png)" for kind in shown]
    return "\n\n".join([title, f"```\n{table}\n```", *figures])
