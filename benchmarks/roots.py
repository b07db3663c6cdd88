"""Time and error of square roots: Newton-Schulz and Denman-Beavers against SVD and eigh.

    python benchmarks/roots.py --threads 1 --publish docs/results/roots
    python benchmarks/roots.py --stack 64 --largest 256 --publish docs/results/roots
    python benchmarks/roots.py --device cuda

Prints tables of times per matrix and, without --stack, of errors; --publish puts them between
their markers in DIR/README.md and a picture beside it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from natgrad.roots import Roots, denman_beavers, eigh_roots, newton_schulz

CONDITIONS = (1e2, 1e6)


def svd_roots(A: Tensor) -> tuple[Tensor, Tensor]:
    U, s, Vh = torch.linalg.svd(A)
    half = s.sqrt().unsqueeze(-2)
    return (U * half) @ Vh, (U / half) @ Vh


METHODS: dict[str, Callable[[Tensor], object]] = {
    "product": lambda A: A @ A,
    "SVD": svd_roots,
    "eigh": eigh_roots,
    "NS": newton_schulz,
    "NS, 5 its": lambda A: newton_schulz(A, iterations=5),
    "DB": denman_beavers,
}


def matrix(d: int, condition: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A float64 matrix with eigenvalues spaced evenly in their logarithms, and its exact Z."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]
    l = condition ** -torch.linspace(0, 1, d, dtype=torch.float64)
    A = (Q * l) @ Q.mT
    return (A + A.mT) / 2, (Q * l.rsqrt()) @ Q.mT


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def timings(A: Tensor, device: str, budget: float, known: dict[str, float]) -> dict[str, float]:
    """Median seconds of each method, taking turns; left out where predicted over the budget."""
    calls = {
        name: (lambda method=method: method(A))
        for name, method in METHODS.items()
        if 8 * known.get(name, 0.0) <= budget
    }
    first = {name: seconds(call, device, 1) for name, call in calls.items()}
    if sum(first.values()) > budget:  # far too long for a warm-up to matter
        return first | {"rounds": 1}
    warm = {name: seconds(call, device, 1) for name, call in calls.items()}
    repeats = {name: max(1, round(5e-3 / warm[name])) for name in calls}
    each = sum(warm[name] * repeats[name] for name in calls)
    rounds = max(1, min(15, int(budget / each)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds(call, device, repeats[name]))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return medians | {"rounds": rounds}


def matrices(d: int, condition: float, stack: int) -> Tensor:
    members = [matrix(d, condition, seed)[0].float() for seed in range(stack)]
    return members[0] if stack == 1 else torch.stack(members)


def time_table(found: dict[int, dict[str, float]], condition: float, stack: int) -> str:
    names = list(METHODS)
    lines = [
        f"Milliseconds a matrix, {f'stacks of {stack}, ' if stack > 1 else ''}float32, condition "
        f"number {condition:.0e}; in parentheses, how many times faster than SVD / than eigh. "
        "NS and DB to their rounding floor.",
        "",
        "| d | " + " | ".join(names) + " | rounds |",
        "|---:|" + "---:|" * (len(names) + 1),
    ]
    for d, row in found.items():
        each = {name: taken / stack for name, taken in row.items()}
        cells = [cell(each, name) for name in names]
        lines.append(f"| {d} | " + " | ".join(cells) + f" | {row['rounds']:.0f} |")
    return "\n".join(lines)


def cell(row: dict[str, float], name: str) -> str:
    if name not in row:
        return "over budget"
    ratios = [f"{row[other] / row[name]:.3g}" if other in row else "-" for other in ("SVD", "eigh")]
    text = f"{row[name] * 1e3:.3g}"
    return text if name in ("product", "SVD", "eigh") else f"{text} ({' / '.join(ratios)})"


def error(Z: Tensor, expected: Tensor) -> float:
    return float(((Z.double() - expected).norm() / expected.norm()).nan_to_num(math.inf))


def error_row(d: int, condition: float, dtype: torch.dtype, device: str) -> str:
    columns: list[list[float]] = []
    for seed in range(3):
        A, expected = (M.to(device) for M in matrix(d, condition, seed))
        rounded = A.to(dtype)
        exact = eigh_roots(rounded.double()).inverse_root if dtype == torch.float32 else expected
        row = [error(exact, expected)]
        for method in (eigh_roots, newton_schulz, denman_beavers):
            found: Roots = method(rounded)
            row += [error(found.inverse_root, expected), float(found.residual)]
            row += [float(found.iterations)]
        columns.append([*row, error(newton_schulz(rounded, iterations=5).inverse_root, expected)])
    m = [statistics.median(values) for values in zip(*columns, strict=True)]
    given = f"{m[0]:.0e}" if dtype == torch.float32 else "-"
    cells = [f"{condition:.0e}", given, f"{m[1]:.0e}", f"{m[2]:.0e}"]
    for k in (4, 7):
        cells += [f"{m[k]:.0e}", f"{m[k + 1]:.0e}", f"{m[k + 2]:.0f}"]
    cells.append(f"{m[10]:.0e}")
    return "| " + " | ".join(cells) + " |"


def error_table(d: int, dtype: torch.dtype, device: str) -> str:
    name = str(dtype).removeprefix("torch.")
    lines = [
        f"{name}, d = {d}: relative error of Z against the known eigenbasis, residual |I - ZY|_F, "
        "iterations; medians of three matrices (inf: failed). "
        '"Rounding of A": error of the float64 root of the float32 matrix.',
        "",
        "| condition | rounding of A | eigh error | residual "
        "| NS error | residual | its | DB error | residual | its "
        "| NS, 5 its: error |",
        "|---:|" + "---:|" * 10,
    ]
    return "\n".join(lines + [error_row(d, 10.0**k, dtype, device) for k in range(0, 11, 2)])


def picture(found: dict[float, dict[int, dict[str, float]]], path: Path) -> None:
    """As PDF and PNG; the path is without a suffix."""
    from matplotlib.figure import Figure

    from natgrad.lab.report.style import INK, looks, save_figure, styled

    with styled():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axis, (condition, rows) in zip(figure.subplots(1, 2, sharey=True), found.items()):  # noqa: B905
            for name, look in looks(("eigh", "NS", "NS, 5 its", "DB")).items():
                points = [(d, row["SVD"] / row[name]) for d, row in rows.items() if name in row]
                x, y = zip(*points, strict=True)
                axis.plot(
                    x, y, color=look.colour, marker=look.marker, linestyle=look.dash, label=name
                )
            axis.axhline(10, color=INK, alpha=0.5, linewidth=0.8, label="ten times")
            axis.axhline(1, color=INK, linewidth=0.8)
            axis.set(yscale="log", xlabel="d", title=f"condition number {condition:.0e}")
            axis.set_xscale("log", base=2)
        figure.axes[0].set_ylabel("times faster than SVD")
        figure.axes[0].legend()
        save_figure(figure, path)


def publish(page: Path, section: str, text: str) -> None:
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    old = page.read_text() if page.exists() else ""
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2] if found else ""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}" + ("" if found else "\n"))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--stack", type=int, default=1, help="matrices in one call")
    arguments.add_argument("--largest", type=int, default=4096)
    arguments.add_argument(
        "--budget", type=float, default=150.0, help="seconds of rounds at a size"
    )
    arguments.add_argument("--error-size", type=int, default=256)
    arguments.add_argument("--publish", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{given.threads} thread(s)"
    parts = [f"torch {torch.__version__}, {where}."]
    sizes = [2**k for k in range(4, 13) if 2**k <= given.largest]
    found: dict[float, dict[int, dict[str, float]]] = {}
    for condition in CONDITIONS:
        rows, known = found.setdefault(condition, {}), dict[str, float]()
        for d in sizes:
            rows[d] = timings(
                matrices(d, condition, given.stack).to(given.device),
                given.device,
                given.budget,
                known,
            )
            known = dict.fromkeys(METHODS, float("inf")) | rows[d]
        parts.append(time_table(rows, condition, given.stack))
        print(parts[-1], flush=True)
    for dtype in (torch.float32, torch.float64) if given.stack == 1 else ():
        parts.append(error_table(given.error_size, dtype, given.device))
        print(parts[-1], flush=True)
    if given.publish:
        section = f"{given.device}, stack of {given.stack}"
        publish(given.publish / "README.md", section, "\n\n".join(parts))
        if sizes:
            picture(found, given.publish / f"{given.device}-{given.stack}")


if __name__ == "__main__":
    main()
