"""Time of a step in whitened coordinates against plain SGD's, on the MLP of the SNGD paper.

    python benchmarks/sngd_step.py --threads 1
    python benchmarks/sngd_step.py --device cuda

784-80-80-80-10, ReLU, batch 50. All take turns, step by step, in one process. The ratio at refresh
r is that of one step between refreshes, plus a refresh's time beyond it divided by r; medians of
the ratios of neighbouring steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from natgrad.whiten import PRONG, SNGD, Rule, whiten

WIDTHS = (784, 80, 80, 80, 10)
REFRESHES = (1, 10, 100, 1000)


def network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(WIDTHS):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device)


def stepper(device: str, batch: int, rule: Rule | None) -> Callable[[], float]:
    """One training step, in seconds."""
    net = network(device)
    # smooth images in [0, 1]: their spectrum decays, as that of digits does
    coarse = torch.rand(batch, 1, 7, 7)
    x = F.interpolate(coarse, size=28, mode="bilinear").flatten(1).to(device)
    y = torch.randint(0, 10, (batch,), device=device)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3)
    if rule is not None:
        whiten(net, rule).attach(opt)

    def step() -> float:
        begin = time.perf_counter()
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


def measured(device: str, batch: int, steps: int) -> tuple[float, dict[str, list[float]]]:
    """Median seconds of SGD's step, and ratios for each method at each of its refreshes."""
    never = 10**9
    sgd = stepper(device, batch, None)
    plain = {
        "SNGD": stepper(device, batch, SNGD(every=never)),
        "SNGD, per_unit": stepper(device, batch, SNGD(every=never, per_unit=True)),
        "SNGD, compensate": stepper(device, batch, SNGD(every=never, compensate=True)),
        "SNGD, eigh": stepper(device, batch, SNGD(every=never, method="eigh")),
        "PRONG": stepper(device, batch, PRONG(every=1000)),
    }
    full = {
        "SNGD": stepper(device, batch, SNGD()),
        "SNGD, per_unit": stepper(device, batch, SNGD(per_unit=True)),
        "SNGD, compensate": stepper(device, batch, SNGD(compensate=True)),
        "SNGD, eigh": stepper(device, batch, SNGD(method="eigh")),
    }
    runs: dict[tuple[str, bool], list[float]] = {}
    base: list[float] = []
    for k in range(steps + 20):
        for name, step in plain.items():
            reference, taken = sgd(), step()
            if k >= 20:
                base.append(reference)
                runs.setdefault((name, False), []).append(taken / reference)
            if name in full and k % 10 == 0:
                reference, taken = sgd(), full[name]()
                runs.setdefault((name, True), []).append(taken / reference)
    ratios: dict[str, list[float]] = {}
    for name in plain:
        between = statistics.median(runs[name, False])
        if name not in full:
            ratios[name] = [float("nan")] * 3 + [between]  # its refits are left out
            continue
        refresh = statistics.median(runs[name, True])
        ratios[name] = [between + (refresh - between) / r for r in REFRESHES]
    return statistics.median(base), ratios


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch", type=int, default=50)
    arguments.add_argument("--steps", type=int, default=1000)
    arguments.add_argument("--threads", type=int, default=None)
    given = arguments.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    base, ratios = measured(given.device, given.batch, given.steps)
    print(f"{given.device}, batch {given.batch}: SGD {base * 1e3:.3f} ms; ratios to it")
    print(f"{'refresh':18s}" + "".join(f"{r:>8d}" for r in REFRESHES))
    for name, row in ratios.items():
        print(f"{name:18s}" + "".join("       -" if r != r else f"{r:8.2f}" for r in row))


if __name__ == "__main__":
    main()
