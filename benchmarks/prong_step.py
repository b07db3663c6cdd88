"""Time of training in PRONG's coordinates against plain SGD's.

    OMP_NUM_THREADS=2 python benchmarks/prong_step.py autoencoder
    OMP_NUM_THREADS=2 python benchmarks/prong_step.py mlp --periods 5
    python benchmarks/prong_step.py autoencoder --device cuda

The deep autoencoder 784-1000-500-250-30 and its mirror image (tanh, batch 256) or the MLP
784-80-80-80-10 (ReLU, batch 50), SGD with momentum 0.9, a refit every T = 100 steps on 1,000
examples. All take turns, step by step, in one process. "A step" is the median of those without a
refit, "refit" what those that take part in one take more, "amortised" follows from both; "direct"
is the mean of all steps over SGD's.

The floor counts multiply-adds, those in float64 twice: forward and backward products of the layers,
and those of the inputs with P and back in the cheaper of the two forms; of a refit the pass, half
of each symmetric moment, the decomposition, and W, V and the momentum, in triangles half of each
product.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.whiten import PRONG, whiten

ENCODER = (784, 1000, 500, 250, 30)
SAMPLES = 1000
RULES = {
    "pca": {"basis": "pca"},
    "cholesky": {"basis": "cholesky"},
    "cholesky, from training": {"basis": "cholesky", "from_training": True},
}


class Task(NamedTuple):
    widths: tuple[int, ...]
    batch: int
    activation: type[nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]


def reconstruction(z: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, x, reduction="sum") / len(x)


def classification(z: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(z, x[:, :10].argmax(1))


TASKS = {
    "autoencoder": Task((*ENCODER, *ENCODER[-2::-1]), 256, nn.Tanh, reconstruction),
    "mlp": Task((784, 80, 80, 80, 10), 50, nn.ReLU, classification),
}


def network(task: Task, device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(task.widths):
        layers += [nn.Linear(i, o), nn.Identity() if o == 30 else task.activation()]
    return nn.Sequential(*layers[:-1]).to(device)


def floors(task: Task, triangular: bool, every: int) -> tuple[float, float]:
    """Multiply-adds of a whitened step, and of training with refits, over those of SGD."""
    plain = extra = refit = 0.0
    half = 0.5 if triangular else 1.0
    for index, (k, o) in enumerate(pairwise(task.widths)):
        passes = 2 if index == 0 else 3  # no gradient with respect to data
        plain += passes * task.batch * k * o
        rows, weight = (passes - 1) * task.batch * k * k, 2 * o * k * k
        extra += half * min(rows, weight)
        decomposition = k**3 / 3 if triangular else 9 / 2 * k**3
        refit += SAMPLES * k * o + 2 * (SAMPLES * k * k / 2 + decomposition)
        refit += half * (2 * weight + weight)  # W and V in float64, the momentum in float32
    return 1 + extra / plain, 1 + (extra + refit / every) / plain


class Trained:
    """A network in training, with the time of each step."""

    def __init__(self, task: Task, rule: PRONG | None, data: Tensor) -> None:
        self.task, self.model = task, network(task, str(data.device))
        whitener = None if rule is None else whiten(self.model, rule, data=data[:SAMPLES])
        self.opt = torch.optim.SGD(self.model.parameters(), lr=1e-5, momentum=0.9)
        if whitener is not None:
            whitener.attach(self.opt)
        self.times: list[float] = []

    def step(self, x: Tensor) -> None:
        begin = synchronised(x.device.type)
        self.opt.zero_grad()
        self.task.loss(self.model(x), x).backward()
        self.opt.step()
        self.times.append(synchronised(x.device.type) - begin)


def synchronised(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--periods", type=int, default=1)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    task = TASKS[given.task]
    task = task._replace(batch=given.batch or task.batch)
    data = torch.rand(max(2000, task.batch), 784, device=given.device)
    rules = {name: PRONG(every=given.every, eps=0.1, **rule) for name, rule in RULES.items()}
    runs = {name: Trained(task, rule, data) for name, rule in {"sgd": None, **rules}.items()}
    order = random.Random(0)
    for _ in range(given.periods * given.every):
        x = data[torch.randint(0, len(data), (task.batch,), device=given.device)]
        for name in order.sample(list(runs), len(runs)):
            runs[name].step(x)
    report(given, task, {name: run.times for name, run in runs.items()})


def report(given: argparse.Namespace, task: Task, times: dict[str, list[float]]) -> None:
    every, sgd = given.every, statistics.median(times["sgd"])
    print(
        f"{given.task} on {given.device}, batch {task.batch}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}: SGD {1e3 * sgd:.2f} ms"
    )
    print(f"{'':25} a step  refit [ms]  amortised  direct  floor: step  amortised")
    for name in RULES:
        # statistics of training batches are taken in the steps before a refit
        wide = 1 + ceil(SAMPLES / task.batch) if "training" in name else 1
        ends = range(every, len(times[name]) + 1, every)
        step = statistics.median(t for k, t in enumerate(times[name]) if (k + 1) % every)
        refit = statistics.median(sum(times[name][k - wide : k]) - wide * step for k in ends)
        amortised = (step + refit / every) / sgd
        direct = sum(times[name]) / sum(times["sgd"])
        least = floors(task, "cholesky" in name, every)
        print(
            f"{name:25} {step / sgd:6.2f} {1e3 * refit:11.1f} {amortised:10.2f} {direct:7.2f}"
            f"{least[0]:13.2f} {least[1]:10.2f}"
        )


if __name__ == "__main__":
    main()
