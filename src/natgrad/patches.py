"""Input rows that are the patches of images, unfolded only where something asks for the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from natgrad.shifts import Padding, cost, shifted_moment
from natgrad.split import Split, gram

__all__ = ["Patches", "Window", "grouped_rows", "unfolded"]

NARROW = 64  #: channels up to which a convolution in groups beats unfolding and multiplying
MANY = 64  #: positions from which on it does
ROWS_BYTES, MANY_ROWS_BYTES = 2**22, 2**27  #: of rows weighted at a time, on CPU and elsewhere

WEIGHT_GRADIENT: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


@dataclass(frozen=True)
class Window:
    """What of an image makes a patch, by dimension of space; ``ones`` adds the bias column."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding  #: zeros before and after
    groups: int = 1
    ones: bool = False

    def positions(self, space: Sequence[int]) -> tuple[int, ...]:
        """Patches by dimension of an image of this size."""
        sizes = zip(space, self.padding, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((x + sum(p) - d * (k - 1) - 1) // s + 1 for x, p, k, s, d in sizes)


@dataclass(frozen=True)
class Patches:
    """The patches of ``image [n, C, *space]`` as rows ``[(q,) n, t, C / q * prod(kernel) (+ 1)]``.

    A convolution's rows take ``prod(kernel)`` times the memory of its input, and their second
    moment as many times more multiply-adds than it needs; both are avoided where only sums over
    the rows are wanted.
    """

    image: Tensor
    window: Window

    @property
    def shape(self) -> torch.Size:
        """``[(q,) n, t, i]``, of the rows."""
        n, C, *space = self.image.shape
        q, t = self.window.groups, prod(self.window.positions(space))
        i = C // q * prod(self.window.kernel) + self.window.ones
        return torch.Size((q, n, t, i) if q > 1 else (n, t, i))

    @property
    def nbytes(self) -> int:
        """Memory of the images."""
        return self.image.nbytes

    @cached_property
    def rows(self) -> Tensor:
        """The rows written out."""
        window = self.window
        patches = unfolded(
            _padded(self.image, self.window), window.kernel, window.stride, window.dilation
        )
        return grouped_rows(patches, window.groups, window.ones)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Patches:
        """The same patches in another dtype, and on another device if one is given."""
        image = self.image.to(device=device, dtype=dtype)
        return self if image is self.image else Patches(image, self.window)

    def kept(self) -> Patches:
        """A copy that shares no memory with the layer's input, without rows."""
        return Patches(self.image.clone(), self.window)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for checkpoints."""
        window = {field.name: getattr(self.window, field.name) for field in fields(Window)}
        return {"image": self.image, **window}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Patches:
        """The inverse of :meth:`state`."""
        window = Window(**{field.name: state[field.name] for field in fields(Window)})
        return Patches(state["image"], window)

    def gradients(self, g: Tensor) -> Tensor:
        """``sum_t g a^T [(q,) c, n, o, i]`` of each example: a convolution in as many groups.

        Args:
            g: output rows ``[(q,) c, n, t, o]``.
        """
        window, h = self.window, _padded(self.image, self.window)
        (n, C, *space), q = h.shape, window.groups
        c, o = g.shape[-4], g.shape[-1]
        out = window.positions(self.image.shape[2:])
        by_example = g.reshape(q, c, n, -1, o).permute(2, 0, 1, 4, 3).reshape(1, -1, *out)
        found = WEIGHT_GRADIENT[len(space)](
            h.reshape(1, n * C, *space), (n * q * c * o, C // q, *window.kernel), by_example,
            stride=window.stride, dilation=window.dilation, groups=n * q,
        )  # fmt: skip
        J = found.reshape(n, q, c, o, -1).permute(1, 2, 0, 3, 4)
        J = J if q > 1 else J.squeeze(0)
        return torch.cat([J, g.sum(-2).unsqueeze(-1)], -1) if window.ones else J

    @property
    def gradients_need_no_rows(self) -> bool:
        """Whether :meth:`gradients` takes less time than making rows: measured on a CPU."""
        channels = self.image.shape[1] // self.window.groups
        small = prod(self.window.kernel) == 1 or self.shape[-2] < MANY
        return self.image.device.type == "cpu" and channels <= NARROW and not small

    def part(self, examples: slice) -> Patches:
        """Those of some examples."""
        return Patches(self.image[examples], self.window)

    # sums over the rows -------------------------------------------------------------------------

    def mean(self) -> Tensor:
        """``mean_t a [(q,) n, 1, i]``."""
        mean = self._summed(self.image) / self.shape[-2]
        return (
            torch.cat([mean, mean.new_ones(*mean.shape[:-1], 1)], -1) if self.window.ones else mean
        )

    def second_moment(self) -> Tensor:
        """``sum_{n,t} a a^T [(q,) i, i]``, by shifts of the images where that is cheaper."""
        shifts = self._shifts()
        if shifts is None:
            return gram(self.rows.flatten(-3, -2))
        moment = shifted_moment(*shifts)
        if self.window.groups == 1:
            moment = moment.squeeze(0)
        return self._with_ones(moment) if self.window.ones else moment

    def weighted_moment(self, weights: Tensor) -> Tensor:
        """``sum_{n,t} w a a^T [(q,) i, i]`` for ``w [(q,) n, t] >= 0``, some images at a time.

        Rows of a few images stay in the cache of a CPU while they are weighted and multiplied.
        """
        n, t, i = self.shape[-3:]
        q = self.window.groups
        at_once = ROWS_BYTES if self.image.device.type == "cpu" else MANY_ROWS_BYTES
        some = max(1, at_once // (q * t * i * self.image.element_size()))
        total = self.image.new_zeros(*self.shape[:-3], i, i)
        for start in range(0, n, some):
            examples = slice(start, start + some)
            root = weights[..., examples, :].sqrt().unsqueeze(-1)
            total += gram(self.part(examples).rows.mul_(root).flatten(-3, -2))
        return total

    def norms(self) -> Tensor:
        """``|a|^2 [(q,) n, t]``."""
        window, image = self.window, self.image
        n, C, *space = image.shape
        squares = image.square().reshape(n, window.groups, C // window.groups, *space).sum(2)
        seen = unfolded(_padded(squares, window), window.kernel, window.stride, window.dilation)
        norms = seen.sum(tuple(range(-len(window.kernel), 0))).flatten(2).movedim(1, 0)
        norms = norms if window.groups > 1 else norms.squeeze(0)
        return norms + 1 if window.ones else norms

    def moment(self, split: Split | None = None) -> Tensor:
        """:meth:`second_moment`, or its blocks of ``split`` alone, in the cheaper way."""
        products = self.moment_products()
        if products is not None:
            if split is None:
                return self.second_moment()
            if products < self.shape[-3:-1].numel() * split.entries * self.window.groups:
                return split.taken(self.second_moment())
        return gram(self.rows.flatten(-3, -2), None, split)

    def bound(self) -> Tensor:
        """What no entry of :meth:`second_moment` exceeds: ``|x|^2``, or the number of rows."""
        x = self.image.flatten()
        squared = torch.dot(x, x)
        return squared + self.shape[-3:-1].numel() if self.window.ones else squared

    def moment_products(self) -> float | None:
        """Multiply-adds of :meth:`second_moment`, all groups together; None where it makes rows."""
        shifts = self._shifts()
        if shifts is None:
            return None
        x, kernel, padding = shifts
        return cost(x.shape, kernel, padding)[0]

    def _shifts(self) -> tuple[Tensor, tuple[int, int], Padding] | None:
        """What :func:`shifted_moment` takes; None where only rows will do, or are cheaper."""
        window = self.window
        if len(window.kernel) > 2 or max(*window.stride, *window.dilation) > 1:
            return None
        *above, height, width = 1, *window.kernel
        padding = ((0, 0), *window.padding)[len(above) :]
        C, *space = self.image.shape[1:]
        q, shape = window.groups, (1, *space)[len(above) :]
        x = self.image.reshape(-1, q, C // q, *shape).movedim(1, 0)
        products, calls = cost(x.shape, (height, width), padding)
        *_, n, t, i = self.shape
        return (x, (height, width), padding) if products + calls < q * n * t * i**2 else None

    def _with_ones(self, moment: Tensor) -> Tensor:
        """The moment with the bias column: the sum of all rows, and their number."""
        n, t, i = self.shape[-3:]
        found = moment.new_empty(*moment.shape[:-2], i, i)
        found[..., :-1, :-1] = moment
        found[..., -1, -1] = n * t
        total = self._summed(self.image.sum(0, keepdim=True))[..., 0, 0, :]
        found[..., :-1, -1] = found[..., -1, :-1] = total
        return found

    def _summed(self, image: Tensor) -> Tensor:
        """``sum_t a [(q,) n, 1, i]`` without the bias column, one dimension of space at a time."""
        window, sums = self.window, _padded(image, self.window)
        each = zip(window.kernel, window.stride, window.dilation, strict=True)
        for out, (k, s, d) in zip(window.positions(image.shape[2:]), each, strict=True):
            ends = [(j * d, j * d + s * (out - 1) + 1) for j in range(k)]
            sums = torch.stack([sums[:, :, lo:hi:s].sum(2) for lo, hi in ends], -1)
        by_group = sums.reshape(len(sums), window.groups, 1, -1).movedim(1, 0)
        return by_group if window.groups > 1 else by_group.squeeze(0)


def _padded(image: Tensor, window: Window) -> Tensor:
    sides = [side for pair in reversed(window.padding) for side in pair]
    return F.pad(image, sides) if any(sides) else image


def unfolded(
    h: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """All patches of ``h [n, C, *space]`` as ``[n, C, *out, *kernel]``, without copying."""
    sizes = zip(h.shape[2:], kernel, stride, dilation, strict=True)
    out = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes]
    steps = h.stride()[2:]
    across = [step * s for step, s in zip(steps, stride, strict=True)]
    within = [step * d for step, d in zip(steps, dilation, strict=True)]
    return h.as_strided((*h.shape[:2], *out, *kernel), (*h.stride()[:2], *across, *within))


def grouped_rows(patches: Tensor, q: int, ones: bool) -> Tensor:
    """``[n, C, *out, *kernel]`` as ``[(q,) n, t, C / q * prod(kernel) (+1)]``, in a single copy."""
    n, C = patches.shape[:2]
    dims = (patches.ndim - 2) // 2
    out, kernel = patches.shape[2 : 2 + dims], patches.shape[2 + dims :]
    i = C // q * prod(kernel)
    rows = patches.new_ones(q, n, prod(out), i + ones)
    place = rows[..., :i].view(q, n, *out, C // q, *kernel)
    by_group = patches.view(n, q, C // q, *out, *kernel).movedim(1, 0)
    place.copy_(by_group.movedim(2, 2 + dims))
    return rows if q > 1 else rows.squeeze(0)
