"""The autoencoder recipe as arrays, for programs that know no torch.

    python benchmarks/peers/autoencoder_task.py --data DIR --out task.npz

The file holds the pixels of every split (bytes, to be divided by 255), the initial weights of every
seed as the lab draws them, the conditions of the recipe, and one order of the data to check that
the reader's is the lab's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from natgrad.lab.recipe import load
from natgrad.lab.training import data_order

CONDITIONS = ("batch_size", "l2", "evaluations_per_epoch", "train_evaluated")


def bytes_of(pixels: Tensor) -> np.ndarray:
    return pixels.mul(255).round().to(torch.uint8).numpy()


def weights(seed: int) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    layers = [m for m in load("autoencoder").network() if isinstance(m, nn.Linear)]
    found = {f"seed{seed}/w{k}": m.weight.detach().T.numpy() for k, m in enumerate(layers)}
    return found | {f"seed{seed}/b{k}": m.bias.detach().numpy() for k, m in enumerate(layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    recipe = load("autoencoder")
    splits = recipe.data.load(args.data)
    arrays = {
        "train": bytes_of(splits.train.inputs),
        "validation": bytes_of(splits.validation.inputs),
        "test": bytes_of(splits.test.inputs),
        "order": data_order(len(splits.train), 0, 0).numpy(),
    }
    arrays |= {key: np.array(getattr(recipe, key)) for key in CONDITIONS}
    for seed in range(args.seeds):
        arrays |= weights(seed)
    np.savez(args.out, **arrays)
    print(f"{args.out}: {', '.join(key for key in arrays if '/' not in key)}, {args.seeds} seeds")


if __name__ == "__main__":
    main()
