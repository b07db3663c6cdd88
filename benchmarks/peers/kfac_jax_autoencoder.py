"""kfac-jax on the autoencoder recipe, its runs put beside those of ``natgrad compare``.

It runs in an environment of its own, without torch and without natgrad:

    python -m venv jaxenv && jaxenv/bin/pip install kfac-jax==0.0.8 jax==0.9.0
    python benchmarks/peers/autoencoder_task.py --data DATA --out task.npz
    natgrad compare autoencoder --seconds 40 --data DATA --out DIR
    jaxenv/bin/python benchmarks/peers/kfac_jax_autoencoder.py task.npz --out DIR
    natgrad report DIR

The task is the lab's: weights, batches and their order, penalty, budget and evaluations are the
same, and so is the rule of tuning (lowest validation loss from seed 0, mean of the last quarter of
the evaluations). Learning rate, momentum and damping adapt, with the settings of kfac-jax's own
autoencoder example but for the grid below; that example has a batch of 60,000 and warns that
adapting is meant for large batches.

The clock runs around ``step()`` until its result is there, burn-in included, whose batches are the
first ones again, so that update k has the lab's batch k. Compilation is off the clock: before a
run, steps are made from copies of the weights and a state that is then thrown away.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

NAME = "kfac_jax"
EXAMPLE = {
    "inverse_update_period": 5,
    "damping_adaptation_interval": 5,
    "num_burnin_steps": 5,
    "curvature_ema": 0.95,
    "damping_adaptation_decay": 0.95,
    "initial_damping": 150.0,
    "min_damping": 1e-5,
    "max_damping": 1000.0,
}
GRID = [
    {"initial_damping": damping, "inverse_update_period": period}
    for damping in (0.03, 0.1, 1.0)
    for period in (5, 10)
]
WARM_UP = 7  # every variant of the compiled step occurs in so many


class Task:
    """The arrays of autoencoder_task.py."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        self.train, self.validation, self.test = (
            self.arrays[split].astype(np.float32) / 255 for split in ("train", "validation", "test")
        )
        self.batch_size = int(self.arrays["batch_size"])
        self.l2 = float(self.arrays["l2"])
        self.updates_per_epoch = math.ceil(len(self.train) / self.batch_size)
        self.evaluations_per_epoch = int(self.arrays["evaluations_per_epoch"])
        if not np.array_equal(self.order(0, 0), self.arrays["order"]):
            raise SystemExit("this numpy shuffles otherwise than the lab's: install the same one")

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(self.train))

    def batches(self, seed: int) -> Iterator[np.ndarray]:
        for epoch in count():
            order = self.order(seed, epoch)
            for begin in range(0, len(order), self.batch_size):
                yield self.train[order[begin : begin + self.batch_size]]

    def weights(self, seed: int) -> list[dict[str, Any]]:
        layers = sum(key.startswith(f"seed{seed}/w") for key in self.arrays)
        if not layers:
            raise SystemExit(f"the task file has no weights of seed {seed}: export more seeds")
        return [{p: self.arrays[f"seed{seed}/{p}{k}"] for p in ("w", "b")} for k in range(layers)]

    def due(self, update: int) -> bool:
        points, n = self.evaluations_per_epoch, self.updates_per_epoch
        return update * points // n > (update * points - points) // n


class Peer:
    """kfac-jax's optimizer on the autoencoder's objective."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        import jax
        import jax.numpy as jnp
        import kfac_jax

        def logits(params: Any, x: Any) -> Any:
            for k, layer in enumerate(params):
                x = x @ layer["w"] + layer["b"]
                x = x if k in (len(params) // 2 - 1, len(params) - 1) else jnp.tanh(x)
            return x

        def nll(f: Any, x: Any) -> Any:
            return jnp.sum(jnp.maximum(f, 0) - f * x + jnp.log1p(jnp.exp(-jnp.abs(f))), axis=-1)

        def objective(params: Any, x: Any) -> Any:
            f = logits(params, x)
            kfac_jax.register_multi_bernoulli_predictive_distribution(f, x)
            penalty = sum(jnp.sum(layer["w"] ** 2) for layer in params)
            return jnp.mean(nll(f, x)) + task.l2 / 2 * penalty

        @jax.jit
        def measures(params: Any, x: Any) -> Any:
            f = logits(params, x)
            error = jnp.sum((jax.nn.sigmoid(f) - x) ** 2, axis=-1)
            return jnp.mean(nll(f, x)), jnp.mean(error)

        self.jax, self.task, self.settings, self.measures = jax, task, settings, measures
        self.optimizer = kfac_jax.Optimizer(
            jax.value_and_grad(objective), l2_reg=task.l2,
            regularized_parameters_path_exclusions="b", use_adaptive_learning_rate=True,
            use_adaptive_momentum=True, use_adaptive_damping=True, **settings,
        )  # fmt: skip

    def start(self, seed: int) -> None:
        jnp = self.jax.numpy
        self.params = self.jax.tree.map(jnp.array, self.task.weights(seed))
        self.stream = self.task.batches(seed)
        first = list(islice(self.task.batches(seed), self.settings["num_burnin_steps"]))
        self.burn_in = iter(first)
        self.key, key = self.jax.random.split(self.jax.random.PRNGKey(seed))
        begin = time.perf_counter()
        self.state = self.optimizer.init(self.params, key, first[0])
        self.jax.block_until_ready(self.state)
        self.prepared = time.perf_counter() - begin

    def step(self) -> float:
        self.key, key = self.jax.random.split(self.key)
        self.params, self.state, stats = self.optimizer.step(
            self.params, self.state, key, data_iterator=chain(self.burn_in, self.stream)
        )
        self.jax.block_until_ready(self.params)
        return float(stats["loss"])

    def evaluate(self, tuning: bool) -> dict[str, float]:
        task, row = self.task, {}
        measured = {"train": task.train[: int(task.arrays["train_evaluated"])]}
        measured |= {"validation": task.validation} | ({} if tuning else {"test": task.test})
        for split, pixels in measured.items():
            chunks = [pixels[k : k + 2000] for k in range(0, len(pixels), 2000)]
            found = np.array([self.measures(self.params, x) for x in chunks], dtype=np.float64)
            mean = found.T @ [len(x) for x in chunks] / len(pixels)
            row |= {f"{split}_loss": float(mean[0]), f"{split}_metric": float(mean[1])}
        return row


def train(task: Task, settings: dict[str, Any], seed: int, budget: float, place: Path) -> float:
    """One run, written as the lab writes its own; returns what tuning judges it by."""
    tuning = "tuning" in place.parts
    peer = Peer(task, settings)
    peer.start(seed)
    for _ in range(WARM_UP):
        peer.step()
    peer.start(seed)
    seconds, update, status = peer.prepared, 0, "finished"
    rows: list[dict[str, Any]] = []
    while True:
        over = seconds >= budget
        if task.due(update) or over:
            row = {
                "optimizer": NAME, "seed": seed, "settings": settings,
                "epoch": update / task.updates_per_epoch, "update": update, "seconds": seconds,
                **peer.evaluate(tuning),
            }  # fmt: skip
            if not math.isfinite(row["train_loss"]):
                status = "diverged"
                break
            rows.append(row)
        if over:
            break
        begin = time.perf_counter()
        loss = peer.step()
        if not math.isfinite(loss):
            status = "diverged"
            break
        seconds += time.perf_counter() - begin
        update += 1
    write(place, rows, {"status": status, "optimizer": NAME, "seed": seed, "settings": settings})
    said = f"{rows[-1]['train_loss']:.3f} after {update} updates, {1e3 * seconds / update:.0f} ms"
    print(f"seed {seed} {settings}: {status}, training loss {said} each", flush=True)
    if status == "diverged":
        return math.inf
    last = rows[-max(1, len(rows) // 4) :]
    return statistics.fmean(row["validation_loss"] for row in last)


def write(place: Path, rows: list[dict[str, Any]], status: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    (place / "run.json").write_text(json.dumps(status, indent=2) + "\n")


def tune(task: Task, out: Path, budget: float) -> dict[str, Any]:
    losses = []
    for index, point in enumerate(GRID):
        place = out / "tuning" / NAME / str(index)
        losses.append(train(task, {**EXAMPLE, **point}, 0, budget, place))
    chosen = {**EXAMPLE, **GRID[losses.index(min(losses))]}
    scores = [loss if math.isfinite(loss) else None for loss in losses]
    note(out, tuned={NAME: chosen}, tuning_losses={NAME: scores})
    return chosen


def note(out: Path, added_by: str | None = None, **entries: dict[str, Any]) -> None:
    """Add to entries of the folder's manifest."""
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, more in entries.items():
        manifest[key] = {**(manifest.get(key) or {}), **more}
    if added_by is not None:
        manifest["added_by"] = list(dict.fromkeys([*manifest.get("added_by", []), added_by]))
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="Written by autoencoder_task.py.")
    parser.add_argument("--out", type=Path, required=True, help="Of natgrad compare or run.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", type=json.loads, default=None, help="JSON: no tuning.")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax counts
    manifest = json.loads((args.out / "manifest.json").read_text())
    if manifest["recipe"]["name"] != "autoencoder" or not manifest["budget"]["seconds"]:
        raise SystemExit(f"{args.out} must hold the recipe autoencoder with a budget in seconds")
    task = Task(args.task)
    if args.settings is None:
        share = manifest["tuning_budget"] or manifest["budget"]
        settings = tune(task, args.out, share["seconds"])
    else:
        settings = {**EXAMPLE, **args.settings}
    for seed in manifest["seeds"]:
        place = args.out / "runs" / NAME / f"seed{seed}"
        train(task, settings, seed, manifest["budget"]["seconds"], place)
    command = shlex.join(["python", *sys.argv])
    note(args.out, command, versions={name: version(name) for name in ("jax", "kfac-jax")})


if __name__ == "__main__":
    main()
