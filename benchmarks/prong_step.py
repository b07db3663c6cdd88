"""Time of a step in PRONG's coordinates against plain SGD's, on the deep autoencoder.

    python benchmarks/prong_step.py --threads 2
    python benchmarks/prong_step.py --device cuda

784-1000-500-250-30 and its mirror image, tanh, SGD with momentum 0.9. All take turns, step by step,
in one process; medians. The amortised ratio adds a refit's time, statistics of 1,000 examples
included, divided by T = 1000. The floor counts multiply-adds: forward and backward products of the
layers, and those of the inputs with P and back, each in the cheaper of the two forms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from natgrad.whiten import PRONG, whiten

ENCODER = (784, 1000, 500, 250, 30)
WIDTHS = (*ENCODER, *ENCODER[-2::-1])
EVERY = 1000


def network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(WIDTHS):
        layers += [nn.Linear(i, o), nn.Identity() if o in (30, 784) else nn.Tanh()]
    return nn.Sequential(*layers).to(device)


def synchronised(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def floor(batch: int, triangular: bool) -> float:
    """Multiply-adds of a whitened step over those of a plain one."""
    plain = extra = 0.0
    for index, (k, o) in enumerate(pairwise(WIDTHS)):
        passes = 2 if index == 0 else 3  # no gradient with respect to data
        plain += passes * batch * k * o
        rows = (passes - 1) * batch * k * k * (0.5 if triangular else 1)
        extra += min(rows, 2 * o * k * k)
    return 1 + extra / plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    data = torch.rand(2000, 784, device=given.device)
    runs, refits = {}, {}
    for name in ("sgd", "pca", "cholesky"):
        model = network(given.device)
        if name != "sgd":
            rule = PRONG(every=EVERY, eps=0.1, samples=1000, basis=name)
            whitener = whiten(model, rule, data=data)
            begin = synchronised(given.device)
            whitener.refit()
            refits[name] = synchronised(given.device) - begin
        runs[name] = model, torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, (model, opt) in runs.items():
            x = data[torch.randint(0, len(data), (given.batch,), device=given.device)]
            begin = synchronised(given.device)
            opt.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(x), x, reduction="sum") / given.batch
            loss.backward()
            opt.step()
            times[name].append(synchronised(given.device) - begin)
    medians = {name: statistics.median(found[3:]) for name, found in times.items()}
    sgd = medians["sgd"]
    print(f"{given.device}, batch {given.batch}, torch {torch.__version__}: SGD {1e3 * sgd:.1f} ms")
    print("basis     a step   refit, s   amortised at T = 1000   floor in multiply-adds")
    for name, refit in refits.items():
        step = medians[name] / sgd
        amortised = step + refit / EVERY / sgd
        least = floor(given.batch, name == "cholesky")
        print(f"{name:9} {step:6.2f} {refit:10.2f} {amortised:15.2f} {least:24.2f}")


if __name__ == "__main__":
    main()
