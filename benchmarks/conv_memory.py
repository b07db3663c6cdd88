"""Peak memory that a block needs for a 512-channel 3x3 convolution of VGG16 at batch 128.

    python benchmarks/conv_memory.py --block TEKFAC --size 4

Prints, step by step, the peak resident memory beyond that of the model's own training step.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Preconditioner


class Layer(nn.Module):
    """The convolution, and a frozen classifier behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 10).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--block", default="TEKFAC", help="a class of natgrad.blocks")
    arguments.add_argument("--size", type=int, default=4, help="pixels a side: VGG16 has 4 and 2")
    arguments.add_argument("--channels", type=int, default=512)
    arguments.add_argument("--batch", type=int, default=128)
    given = arguments.parse_args()
    torch.manual_seed(0)
    model = Layer(given.channels)
    x = torch.randn(given.batch, given.channels, given.size, given.size)
    y = torch.randint(0, 10, (given.batch,))

    def backward() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    for _ in range(2):
        backward()
    before = peak_mib()
    block = getattr(natgrad.blocks, given.block)
    pre = Preconditioner(model, block, damping=1e-2, likelihood=Categorical(), refresh_every=2)
    state = sum(buffer.nbytes for buffer in pre.blocks.buffers()) / 2**20
    for step in range(4):
        begin = time.perf_counter()
        backward()
        pre.step()
        seconds = time.perf_counter() - begin
        print(f"step {step}: {peak_mib() - before:.0f} MiB beyond the model, {seconds:.1f} s")
    print(f"{given.block}: {state:.0f} MiB of state before the first step")


if __name__ == "__main__":
    main()
