"""The products of a plain step as they are, and compiled by ``torch.compile``: does it pay?

    python benchmarks/compiled_solve.py --threads 2

All layers' ``G^-1 M A^-1`` (K-FAC) and ``U_G [(U_G^T M U_A) / (s + damping)] U_A^T`` (EKFAC) of a
network in one call of a pure function, on gradients and factors that are given. Turn by turn,
medians; and equal shapes in one stack against one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch._dynamo
from torch import Tensor

from natgrad import linalg

NETWORKS = {
    "mlp": (784, 80, 80, 80, 10),
    "autoencoder": (784, 1000, 500, 250, 30, 250, 500, 1000, 784),
    "transformer": (256, 768, 256, 1024, 256, 768, 256, 1024, 256, 768, 256, 1024, 256),
}


def factored(Ms: Sequence[Tensor], Gs: Sequence[Tensor], As: Sequence[Tensor]) -> list[Tensor]:
    return [linalg.kron_solve(G, A, M) for M, G, A in zip(Ms, Gs, As, strict=True)]


def corrected(
    Ms: Sequence[Tensor], Gs: Sequence[Tensor], As: Sequence[Tensor], scales: Sequence[Tensor]
) -> list[Tensor]:
    given = zip(Ms, Gs, As, scales, strict=True)
    return [linalg.rotated_quotient(G, A, M, s, 0.1) for M, G, A, s in given]


def measured(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds, turn by turn."""
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 3):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                seen[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in seen.items()}


def compile_(rounds: int) -> None:
    print("| network | method | as it is [ms] | compiled [ms] | ratio |\n|---|---|---|---|---|")
    for network, sizes in NETWORKS.items():
        pairs = [(o, i + 1) for i, o in itertools.pairwise(sizes)]
        Ms = [torch.randn(o, i) for o, i in pairs]
        Gs, As = ([torch.randn(k, k) for k in each] for each in zip(*pairs, strict=True))
        scales = [torch.rand(o, i) for o, i in pairs]
        for method, function, given in (
            ("K-FAC", factored, (Ms, Gs, As)), ("EKFAC", corrected, (Ms, Gs, As, scales)),
        ):  # fmt: skip
            quick = torch.compile(function, dynamic=False)
            quick(*given)
            found = measured(
                {
                    "eager": lambda f=function, x=given: f(*x),
                    "quick": lambda f=quick, x=given: f(*x),
                },
                rounds,
            )
            eager, compiled = found["eager"], found["quick"]
            print(
                f"| {network} | {method} | {eager:.3g} | {compiled:.3g} | {eager / compiled:.2f} |"
            )


def stacked(rounds: int) -> None:
    print("\n| layers | o x i | one by one [ms] | stacked [ms] | ratio |\n|---|---|---|---|---|")
    for k, o, i in ((2, 80, 81), (6, 16, 144), (6, 64, 576), (6, 256, 257), (6, 1024, 257)):
        Ms, G, A = [torch.randn(o, i) for _ in range(k)], torch.randn(k, o, o), torch.randn(k, i, i)
        found = measured(
            {
                "alone": lambda Ms=Ms, G=G, A=A: factored(Ms, list(G), list(A)),
                "stack": lambda Ms=Ms, G=G, A=A: linalg.kron_solve(G, A, torch.stack(Ms)).unbind(),
            },
            rounds,
        )
        ratio = found["alone"] / found["stack"]
        print(f"| {k} | {o} x {i} | {found['alone']:.3g} | {found['stack']:.3g} | {ratio:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.recompile_limit = 64  # a shape of its own for every layer
    with torch.no_grad():
        stacked(arguments.rounds)
        compile_(arguments.rounds // 4)
