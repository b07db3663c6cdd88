"""Random crops and reflections of whole batches of images.

What a batch looks like is a function of the seed and of the number of the update, as the order of
the examples is one of seed and epoch: every optimizer sees the same images, and a resumed run those
of a run that was not stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation", "RandomCrop", "centre_crop", "randomness"]


class Augmentation(Protocol):
    """Makes other images ``[n, c, h', w']`` of the images ``[n, c, h, w]`` of a batch."""

    @property
    def about(self) -> str:
        """What it does, in words."""
        ...

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        """The images, drawn anew."""
        ...


@dataclass(frozen=True)
class RandomCrop:
    """A window at a random place of each image, and the mirror image of every other.

    All images of a batch are taken by one gather: each has its own rows and columns, columns in
    reverse where it is mirrored.

    Args:
        size: height and width of the window; None is the image's own.
        padding: black pixels that are put around the image first.
        flip: whether an image is mirrored left to right with probability 1/2.

    Raises:
        ValueError: a size or padding below zero, or a crop that changes nothing.
    """

    size: int | None = None
    padding: int = 0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0 or (self.size is not None and self.size < 1):
            raise ValueError(f"size must be >= 1 and padding >= 0, got {self.size}, {self.padding}")
        if self.size is None and not self.padding and not self.flip:
            raise ValueError("a crop without size, padding and flip changes nothing")

    @property
    def about(self) -> str:
        """See :class:`Augmentation`."""
        size = "" if self.size is None else f"{self.size}x{self.size} "
        found = f"random {size}crops"
        if self.padding:
            found += f" of images padded by {self.padding}"
        return found + (" and horizontal flips" if self.flip else "")

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Windows ``[n, c, size, size]`` of images ``[n, c, h, w]``, contiguous.

        Raises:
            ValueError: the padded images are smaller than the window.
        """
        n, c, h, w = images.shape
        height, width = (h, w) if self.size is None else (self.size, self.size)
        tall, wide = h + 2 * self.padding, w + 2 * self.padding
        if tall < height or wide < width:
            raise ValueError(f"images of {tall}x{wide} have no window of {height}x{width}")
        rows = torch.randint(tall - height + 1, (n, 1), generator=random) + torch.arange(height)
        columns = torch.randint(wide - width + 1, (n, 1), generator=random) + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=random) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        places = (rows.unsqueeze(2) * wide + columns.unsqueeze(1)).view(n, 1, height * width)
        pixels = F.pad(images, (self.padding,) * 4).flatten(2)
        taken = pixels.gather(2, places.to(images.device).expand(n, c, -1))
        return taken.view(n, c, height, width)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The window ``[..., size, size]`` in the middle; images of that size are returned as they are.

    Raises:
        ValueError: the images are smaller.
    """
    h, w = images.shape[-2:]
    if h < size or w < size:
        raise ValueError(f"images of {h}x{w} have no window of {size}x{size}")
    top, left = (h - size) // 2, (w - size) // 2
    return images[..., top : top + size, left : left + size]


def randomness(*key: int) -> torch.Generator:
    """The generator of one draw, on the CPU: a function of a seed and the draw's number."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
