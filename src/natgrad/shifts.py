"""``sum patch patch^T`` over all patches of images, from products of the images with their shifts.

An entry of the moment belongs to two offsets ``k``, ``k'`` of the kernel. Away from the border it
is ``sum_u x[u] x[u + k' - k]^T``, the same for all pairs with the same difference: a 3x3 kernel
has 81 pairs and 25 differences, 13 without their mirror images. Near the border an offset does not
see every pixel: the image is cut into pieces whose pixels the same offsets see, nine of them for
a 3x3 kernel, and the products of each piece are added where they belong. Nothing is subtracted.

The differences of a row are had at once, as the product of the pixels with their neighbourhoods
in the row; those across rows by shifting whole rows, which are kept outermost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Padding", "cost", "shifted_moment"]

Padding: TypeAlias = tuple[tuple[int, int], ...]  #: zeros before and after, by dimension

NEIGHBOURHOODS = 2**22  #: bytes made at a time: they should stay in the cache of a CPU
PRODUCT = 1e6  #: multiply-adds that take as long as calling for a product
ADDITION = 2.5e5  #: the same for adding a block to the moment


class Span(NamedTuple):
    """Pixels ``start <= u < stop`` of a row or column, and the kernel's offsets that see them."""

    start: int
    stop: int
    offsets: tuple[int, ...]


class Rows(NamedTuple):
    """Rows ``start <= y < stop`` times those ``down`` further, for some offsets of the former."""

    down: int
    start: int
    stop: int
    offsets: tuple[int, ...]


def shifted_moment(x: Tensor, kernel: tuple[int, int], padding: Padding) -> Tensor:
    """``sum_{n,t} a a^T [q, i, i]`` of the patches ``a``, stride and dilation 1.

    Args:
        x: images ``[q, n, C, H, W]``.
        kernel: its height and width.
        padding: zeros before and after the rows, and the columns.

    Returns:
        The moment, ``i = C * prod(kernel)``, in the order of :func:`torch.nn.functional.unfold`.
    """
    q, n, C, H, W = x.shape
    height, width = kernel
    reach = width - 1
    lines = x.new_zeros(q, H, n, W + 2 * reach, C)
    lines.narrow(3, reach, W).copy_(x.permute(0, 3, 1, 4, 2))
    wanted = _rows(H, height, *padding[0])
    products = [x.new_empty(q, C, (2 * reach + 1 if r.down else width) * C) for r in wanted]
    moment = x.new_zeros(q, height, width, C, height, width, C)
    for span in _spans(W, width, *padding[1]):
        window = lines.narrow(3, span.start, span.stop - span.start + 2 * reach)
        _multiply(window, reach, wanted, products)
        for rows, product in zip(wanted, products, strict=True):
            blocks = product.view(q, C, -1, C)
            for j in rows.offsets:
                for k in span.offsets:
                    first = 0 if rows.down else k  # the rest mirrors these
                    place = moment[:, j, k, :, j + rows.down, first:]
                    place += blocks.narrow(2, reach - k if rows.down else 0, width - first)
    return _mirrored(moment.view(q, height * width, C, height * width, C))


def cost(x: Sequence[int], kernel: tuple[int, int], padding: Padding) -> tuple[float, float]:
    """Multiply-adds of :func:`shifted_moment`, and those that its calls are worth.

    Args:
        x: shape ``[q, n, C, H, W]`` of the images.
        kernel: its height and width.
        padding: zeros before and after the rows, and the columns.
    """
    q, n, C, H, W = x
    width = kernel[1]
    columns, wanted = _spans(W, width, *padding[1]), _rows(H, kernel[0], *padding[0])
    across = sum(span.stop - span.start for span in columns)
    down = sum((r.stop - r.start) * (2 * width - 1 if r.down else width) for r in wanted)
    places = sum(len(span.offsets) for span in columns) * sum(len(r.offsets) for r in wanted)
    calls = PRODUCT * len(columns) * len(wanted) + ADDITION * places
    return float(q * n * C * C * across * down), calls


@lru_cache
def _spans(size: int, kernel: int, before: int, after: int) -> list[Span]:
    """``size`` pixels cut where an offset of the kernel begins or ceases to see them."""
    out = size + before + after - kernel + 1
    seen = [(max(j - before, 0), min(j - before + out, size)) for j in range(kernel)]
    cuts = sorted({cut for ends in seen if ends[0] < ends[1] for cut in ends})
    spans = []
    for start, stop in pairwise(cuts):
        offsets = [j for j, (lo, hi) in enumerate(seen) if lo <= start and stop <= hi]
        spans.append(Span(start, stop, tuple(offsets)))
    return [span for span in spans if span.offsets]


@lru_cache
def _rows(size: int, kernel: int, before: int, after: int) -> list[Rows]:
    """All products of rows: each span with itself and what lies up to ``kernel - 1`` below."""
    found = []
    for down in range(kernel):
        for span in _spans(size, kernel, before, after):
            offsets = tuple(j for j in span.offsets if j + down < kernel)
            stop = min(span.stop, size - down)
            if offsets and span.start < stop:
                found.append(Rows(down, span.start, stop, offsets))
    return found


def _multiply(window: Tensor, reach: int, wanted: list[Rows], products: list[Tensor]) -> None:
    """Write pixels times neighbourhoods; of the same row only those from the pixel on."""
    C = window.shape[-1]
    wide = (2 * reach + 1) * C
    bound = max(NEIGHBOURHOODS, sum(product.nbytes for product in products))
    for part, near in enumerate(_neighbourhoods(window, reach, bound)):
        pixels = near.narrow(-1, reach * C, C)
        for rows, product in zip(wanted, products, strict=True):
            count, start = rows.stop - rows.start, wide - product.shape[-1]
            upper = pixels.narrow(1, rows.start, count).flatten(1, 2)
            lower = near.narrow(1, rows.start + rows.down, count).narrow(-1, start, wide - start)
            product.baddbmm_(upper.mT, lower.flatten(1, 2), beta=min(part, 1))


def _neighbourhoods(window: Tensor, reach: int, bound: int) -> Iterator[Tensor]:
    """``window [q, H, n, width + 2 reach, C]`` as ``[q, H, n' width, (2 reach + 1) C]``."""
    q, H, _, padded, C = window.shape
    width, wide = padded - 2 * reach, (2 * reach + 1) * C
    bound = bound if window.device.type == "cpu" else 32 * bound
    chunk = max(1, bound // max(1, q * H * width * wide * window.element_size()))
    for part in torch.split(window, chunk, dim=2):
        count, steps = part.shape[2], (*part.stride()[:4], 1)
        overlapping = part.as_strided((q, H, count, width, wide), steps, part.storage_offset())
        yield overlapping.reshape(q, H, count * width, wide)


def _mirrored(moment: Tensor) -> Tensor:
    """The blocks ``[q, k, C, k', C]`` with ``k <= k'`` as the symmetric ``[q, C k, C k']``."""
    q, K, C = moment.shape[:3]
    for k in range(K):
        for other in range(k):
            moment[:, k, :, other] = moment[:, other, :, k].mT
    return moment.permute(0, 2, 1, 4, 3).reshape(q, C * K, C * K)
