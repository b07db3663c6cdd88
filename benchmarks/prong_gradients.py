"""When whitening the back-propagated gradients too makes PRONG less stable.

    python benchmarks/prong_gradients.py

64-40-20-10 on scikit-learn's digits, SGD with momentum 0.9, batch 100, 12 epochs, three seeds. Each
cell: median final training loss, and how many of the three seeds blew up (a batch loss above 5).
Then, for one seed, the largest Fisher eigenvalue of each layer in the coordinates trained, just
before and just after a refit.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from natgrad import Categorical
from natgrad.whiten import PRONG, Whitener, whiten, whitening_report

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
DIGITS = load_digits()
X = torch.tensor(DIGITS.data, dtype=torch.float32)[:1400] / 16
Y = torch.tensor(DIGITS.target)[:1400]


def start(
    seed: int, lr: float, rule: PRONG, activation: type[nn.Module]
) -> tuple[nn.Module, torch.optim.Optimizer, Whitener]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 40), activation(), nn.Linear(40, 20), activation(), nn.Linear(20, 10)
    )
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    whitener = whiten(model, rule, X)
    whitener.attach(opt)
    return model, opt, whitener


def batches(seed: int, epochs: int = 12):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(1400, generator=generator).split(100)


def outcome(seed: int, lr: float, rule: PRONG, activation: type[nn.Module]) -> tuple[float, bool]:
    """Final training loss, and whether a batch loss ever exceeded 5."""
    model, opt, _ = start(seed, lr, rule, activation)
    worst = 0.0
    for i in batches(seed):
        opt.zero_grad()
        loss = F.cross_entropy(model(X[i]), Y[i])
        if not math.isfinite(loss.item()):
            return math.inf, True
        worst = max(worst, loss.item())
        loss.backward()
        opt.step()
    return F.cross_entropy(model(X), Y).item(), worst > 5


def eigenvalues(lr: float, gradients: bool, every: int = 50) -> None:
    """The largest of each layer's Fisher block around the second refit."""
    rule = PRONG(every=every, eps=0.01, samples=1000, gradients=gradients)
    model, opt, _ = start(0, lr, rule, nn.Tanh)
    for k, i in enumerate(batches(0), start=1):
        opt.zero_grad()
        F.cross_entropy(model(X[i]), Y[i]).backward()
        opt.step()
        if k in (2 * every - 1, 2 * every):
            found = [
                f"{row.largest:.3g}" for row in whitening_report(model, X[:100], Categorical()).rows
            ]
            print(f"gradients={gradients!s:5} lr {lr:<5} step {k:3}: {' / '.join(found)}")


def main() -> None:
    torch.set_num_threads(1)
    print("activation, T, eps, gradients:", *(f"lr {lr}" for lr in RATES))
    for activation, every, eps, gradients in itertools.product(
        (nn.Tanh, nn.ReLU), (10, 50), (1e-1, 1e-2, 1e-3), (False, True)
    ):
        rule = PRONG(every=every, eps=eps, samples=1000, gradients=gradients)
        cells = []
        for lr in RATES:
            found = [outcome(seed, lr, rule, activation) for seed in range(3)]
            median = sorted(loss for loss, _ in found)[1]
            cells.append(f"{median:.2g} ({sum(blew for _, blew in found)})")
        print(activation.__name__, every, eps, gradients, *cells, sep="  ", flush=True)
    for gradients, lr in itertools.product((False, True), (0.003, 0.01)):
        eigenvalues(lr, gradients)


if __name__ == "__main__":
    main()
