"""Time of a convolution's statistics, by unfolding its input and by shifts of it.

    python benchmarks/conv_statistics.py layers --threads 1
    python benchmarks/conv_statistics.py network --threads 1
    python benchmarks/conv_statistics.py network --threads 1 --block EKFAC

``layers``: the input factor of 3x3 convolutions of ResNet-20 and VGG, and observing a whole sample.
``network``: a step of ResNet-20 with statistics and without decompositions, against SGD's.
The ways take turns in one process; medians of the process's own time on the CPU, so that other
processes on the same core don't count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Preconditioner
from natgrad.layers.conv import ConvView
from natgrad.patches import Patches
from natgrad.sample import Sample

LAYERS = (
    (3, 32), (16, 32), (32, 16), (64, 8),  # ResNet-20
    (64, 32), (128, 16), (256, 8), (512, 4), (512, 2),  # VGG
)  # fmt: skip


class Residual(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, o // i, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.past = nn.Identity() if i == o else nn.Conv2d(i, o, 1, o // i, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.body(h) + self.past(h))


def resnet20() -> nn.Sequential:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Residual(i, o) for i, o in pairwise(widths)]
    start = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@contextmanager
def unfolding() -> Iterator[None]:
    """Rows made for everything."""
    kept = ConvView.inputs
    ConvView.inputs = lambda view, h: kept(view, h).rows
    try:
        yield
    finally:
        ConvView.inputs = kept


def rows_of(patches: Patches) -> Tensor:
    """Rows made anew."""
    return Patches(patches.image, patches.window).rows


def alternating(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - begin))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def layers(batch: int, rounds: int) -> None:
    print("channels  size   factor, unfolding  by shifts   observe, unfolding  by shifts   [ms]")
    for channels, size in LAYERS:
        view = ConvView("conv", nn.Conv2d(channels, max(channels, 16), 3, padding=1, bias=False))
        h = torch.randn(batch, channels, size, size)
        g = torch.randn(1, batch, size**2, view.shape[0])
        patches = view.inputs(h)

        def observe(whole: bool, h: Tensor = h, g: Tensor = g, view: ConvView = view) -> None:
            sample = Sample(view.input_rows(h) if whole else view.inputs(h), g)
            sample.input_moment()
            sample.output_moment()

        def factor(patches: Patches = patches) -> Tensor:
            rows = rows_of(patches).flatten(0, 1)
            return rows.mT @ rows

        ways = {
            "unfolding": factor,
            "shifts": patches.second_moment,
            "observe unfolding": partial(observe, True),
            "observe shifts": partial(observe, False),
        }
        found = alternating(ways, rounds)
        print(f"{channels:8} {size:5} " + "".join(f"{x:16.1f}" for x in found.values()), flush=True)


def network(batch: int, rounds: int, block: str) -> None:
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step(name: str) -> Callable[[], None]:
        torch.manual_seed(0)
        model = resnet20()
        sgd = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        pre = None
        if name != "SGD":
            kind = getattr(natgrad.blocks, block)
            pre = Preconditioner(
                model, kind, damping=1e-2, likelihood=Categorical(), refresh_every=10**6
            )

        def run() -> None:
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if pre is not None:
                pre.step()
            sgd.step()

        def unfolded() -> None:
            with unfolding():
                run()

        return unfolded if name == "unfolding" else run

    found = alternating({name: step(name) for name in ("SGD", "unfolding", "shifts")}, rounds)
    print(f"ResNet-20, batch {batch}, {block}: SGD {found['SGD']:.0f} ms a step")
    for name in ("unfolding", "shifts"):
        ratio = found[name] / found["SGD"]
        print(f"{name:10} {found[name]:8.0f} ms {ratio:8.2f} of SGD's step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["layers", "network"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--block", default="KFAC", help="a class of natgrad.blocks")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if given.what == "layers":
        layers(given.batch, given.rounds)
    else:
        network(given.batch, given.rounds, given.block)


if __name__ == "__main__":
    main()
