"""What decompositions cost, and what the options that make them cheaper change.

    python benchmarks/decompositions.py [widths split spread eigen training gram cholesky]

Each section prints a table. Times are of the processor, so that a busy machine does not count;
medians of rounds in which the candidates take turns. The digits are those of scikit-learn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import linalg
from natgrad.decompose import Factor, decompose
from natgrad.split import Split, gram


def table(header: str, rows: list[list[object]]) -> None:
    cells = header.split(", ")
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(cells))
    for row in rows:
        print("| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row) + " |")
    print(flush=True)


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if k or rounds == 1:  # the first round warms up
                taken[name].append(1e3 * (time.process_time() - begin))
    return {name: statistics.median(values) for name, values in taken.items()}


def rounds_for(d: int) -> int:
    return max(1, min(15, int(15 * (300 / d) ** 2)))


def moment(d: int, seed: int = 0) -> Tensor:
    """A second moment of correlated rows, spectrum falling as those of layers do."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(2 * d, d, generator=generator) * torch.logspace(0, -3, d)
    X = X @ (torch.randn(d, d, generator=generator) / d**0.5)
    return X.T @ X / len(X)


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images).float() / 16, torch.tensor(found.target)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(),
        nn.Linear(128, 10),
    )  # fmt: skip


def train(net: nn.Module, opt: torch.optim.Optimizer, at: list[int], seed: int = 0):
    """Loss over all digits after so many updates, and the seconds of each update."""
    x, y = digits()
    x = x.unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    losses, seconds = [], []
    for k in range(1, max(at) + 1):
        rows = torch.randint(0, len(x), (128,), generator=generator)
        begin = time.process_time()
        opt.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        opt.step()
        seconds.append(time.process_time() - begin)
        if k in at:
            with torch.no_grad():
                losses.append(float(F.cross_entropy(net(x), y)))
    return losses, seconds


# sections ---------------------------------------------------------------------------------------


def widths() -> None:
    """A 4609-wide factor whole and in blocks."""
    rows = []
    for widest in (None, 1024, 512):
        split = Split.of(4609, widest)
        X = torch.randn(4609, 4609, generator=torch.Generator().manual_seed(0))
        M = gram(X) / len(X) if split is None else split.matrix(gram(X, split=split) / len(X))
        few = X[:512].contiguous()
        found = milliseconds(
            {
                "inverse": lambda M=M: decompose([Factor(M, 0.1)]),
                "eigen": lambda M=M: decompose([Factor(M)]),
            },
            1,
        ) | milliseconds(
            {
                "solve": lambda M=M, few=few: few @ M,
                "statistics": lambda few=few, split=split: gram(few, split=split),
            },
            3,
        )
        megabytes = 4 * (4609**2 if split is None else split.entries) / 2**20
        seconds = [found["inverse"] / 1e3, found["eigen"] / 1e3]
        rows.append([widest, *seconds, found["solve"], found["statistics"], megabytes])
    table(
        "widest, inverse [s], eigendecomposition [s], product with 512 rows [ms], "
        "moment of 512 rows [ms], MiB",
        rows,
    )


def split() -> None:
    """Natural gradients with and without splitting, on a trained network, and training with it."""
    given = {
        "lr": 0.03, "damping": 0.03, "kl_clip": 1e-3, "likelihood": natgrad.Categorical(),
        "refresh_every": 10,
    }  # fmt: skip
    trained = conv_net()
    opt = natgrad.KFAC(trained, **given)
    train(trained, opt, [50])
    opt.remove()
    rows = []
    for method in ("KFAC", "EKFAC"):
        whole = None
        for widest in (None, 512, 128, 1):
            net = conv_net()
            net.load_state_dict(trained.state_dict())
            opt = getattr(natgrad, method)(net, widest=widest, **given)
            opt.param_groups[0]["lr"] = 0.0  # statistics of the trained network, which stays
            train(net, opt, [11])
            found = [layer.view.grad().flatten() for layer in opt.preconditioner.layers]
            whole = found if whole is None else whole
            pairs = list(zip(found, whole, strict=True))
            errors = [f"{float((U - V).norm() / V.norm()):.2f}" for U, V in pairs]
            angle = F.cosine_similarity(torch.cat(found), torch.cat(whole), dim=0)
            net = conv_net()
            opt = getattr(natgrad, method)(net, widest=widest, **given)
            losses, seconds = train(net, opt, [50])
            row = [method, widest, *errors, f"{float(angle):.3f}", *losses]
            rows.append([*row, 1e3 * statistics.mean(seconds)])
    table("method, widest, distance: 10 wide, 289 wide, 577 wide, 1025 wide, cosine of all, "
          "loss at 50, mean step [ms]", rows)  # fmt: skip


def spread() -> None:
    """Step times of an autoencoder at batch 128, statistics and refreshes every 10 steps."""
    widths = (784, 500, 250, 30, 250, 500, 784)
    rows = []
    for method in ("KFAC", "EKFAC"):
        for shared_out in (False, True):
            torch.manual_seed(0)
            layers = [m for pair in pairwise(widths)
                      for m in (nn.Linear(*pair), nn.Tanh())][:-1]  # fmt: skip
            net, x = nn.Sequential(*layers), torch.rand(128, 784)
            every = 10
            opt = getattr(natgrad, method)(
                net, lr=1e-3, damping=0.1, likelihood=natgrad.Bernoulli(), stats_every=every,
                refresh_every=every, spread=shared_out,
            )  # fmt: skip
            taken = []
            for _ in range(2 * every + 1):
                begin = time.process_time()
                opt.zero_grad()
                F.binary_cross_entropy_with_logits(net(x), x, reduction="sum").div(128).backward()
                opt.step()
                taken.append(1e3 * (time.process_time() - begin))
            taken = taken[1:]
            median = statistics.median(taken)
            longest = max(taken)
            mean = statistics.mean(taken)
            rows.append([method, shared_out, median, mean, longest, longest / median])
    table("method, spread, median [ms], mean [ms], longest [ms], longest / median", rows)


def eigen() -> None:
    """A step of orthogonal iteration against the eigendecomposition."""
    rows = []
    for d in (256, 512, 1024, 2048):
        M = moment(d)
        U = linalg.eigh(M)[0].vectors
        assert isinstance(U, Tensor)
        moved = 0.9 * M + 0.1 * moment(d, seed=1)
        calls: dict[str, Callable[[], object]] = {
            "fresh": lambda M=moved: linalg.eigh(M),
            "warm": lambda M=moved, U=U: linalg.eigh_from(M, U),
            "QR": lambda M=moved: torch.linalg.qr(M),
            "product": lambda M=moved: M @ M,
        }
        found = milliseconds(calls, rounds_for(d))
        rest = []
        for _ in range(3):
            R = U.mT @ moved @ U
            rest.append(float((R - torch.diag(R.diagonal())).norm() / R.norm()))
            U = linalg.eigh_from(moved, U)[0].vectors
        rows.append([d, *found.values(), found["fresh"] / found["warm"], *rest])
    table("d, eigh [ms], warm [ms], QR [ms], product [ms], eigh / warm, "
          "off diagonal before, after one step, after two", rows)  # fmt: skip


def training() -> None:
    """Digits with a fresh basis at every refresh, and with a step from the last."""
    at, rows = [25, 50, 100, 200, 400], []
    for every in (1, 10):
        for kind in ("fresh", "warm"):
            logs, taken = [], []
            for seed in range(4):
                net = mlp(seed)
                opt = natgrad.EKFAC(
                    net, lr=0.02, damping=0.01, likelihood=natgrad.Categorical(), kl_clip=1e-3,
                    refresh_every=every, eigen=kind,
                )  # fmt: skip
                losses, seconds = train(net, opt, at, seed)
                logs.append(torch.tensor(losses).log())
                taken += seconds
            means = torch.stack(logs).mean(0).exp().tolist()
            rows.append([every, kind, *means, 1e3 * statistics.mean(taken)])
    header = ", ".join(f"loss at {k}" for k in at)
    table(f"refresh_every, eigen, {header}, mean step [ms]", rows)


def grams() -> None:
    """Gram matrices by one product, and by blocks on and below the diagonal."""
    rows = []
    for n, d in ((256, 512), (256, 785), (256, 1001), (2048, 577), (2048, 1153), (512, 2305), (512, 4609)):  # fmt: skip  # noqa: E501
        X = torch.randn(n, d)
        found = milliseconds({"whole": lambda X=X: X.mT @ X, "half": lambda X=X: gram(X)}, 7)
        error = float((gram(X) - X.mT @ X).norm() / (X.mT @ X).norm())
        rows.append([n, d, *found.values(), found["whole"] / found["half"], f"{error:.0e}"])
    table("rows, d, one product [ms], below the diagonal [ms], ratio, relative difference", rows)


def cholesky() -> None:
    """Factorisation in stacks of four and one by one; three ways from it to the inverse."""
    rows = []
    for d in (80, 250, 500, 1000):
        M = torch.stack([moment(d, k) + 1e-2 * torch.eye(d) for k in range(4)])
        L, eye = torch.linalg.cholesky(M), torch.eye(d).expand(4, d, d)
        calls: dict[str, Callable[[], object]] = {
            "stacked": lambda M=M: torch.linalg.cholesky_ex(M),
            "one by one": lambda M=M: [torch.linalg.cholesky_ex(each) for each in M],
            "cholesky_inverse": lambda L=L: torch.cholesky_inverse(L),
            "one by one ": lambda L=L: [torch.cholesky_inverse(each) for each in L],
            "cholesky_solve": lambda L=L, eye=eye: torch.cholesky_solve(eye, L),
            "inv": lambda M=M: torch.linalg.inv(M),
            "product": lambda M=M: M @ M,
        }
        found = milliseconds(calls, rounds_for(d))
        rows.append([d, *(taken / 4 for taken in found.values())])
    table("d, Cholesky stacked [ms], one by one, cholesky_inverse stacked, one by one, "
          "cholesky_solve of I, linalg.inv of M, product M M", rows)  # fmt: skip


SECTIONS: dict[str, Callable[[], None]] = {
    "widths": widths, "split": split, "spread": spread, "eigen": eigen, "training": training,
    "gram": grams, "cholesky": cholesky,
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="section",
                           help=", ".join(SECTIONS))  # fmt: skip
    arguments.add_argument("--threads", type=int, default=1)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.sections or SECTIONS:
        print(f"{name}: {SECTIONS[name].__doc__}\n", flush=True)
        SECTIONS[name]()


if __name__ == "__main__":
    main()
