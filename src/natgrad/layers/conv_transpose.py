"""``nn.ConvTranspose1d``, ``nn.ConvTranspose2d``, ``nn.ConvTranspose3d``."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.layers.conv import PatchView, batched, channel_rows
from natgrad.patches import grouped_rows, unfolded

__all__ = ["ConvTransposeView"]


class ConvTransposeView(PatchView):
    """An ordinary convolution of the input with zeros between its pixels, and the kernel flipped.

    ``z_t = W [patch_t; 1]`` with ``W [q, C_out / q, C_in / q * prod(kernel) (+1)]``: the stride
    spreads the input, ``dilation * (kernel - 1) - padding`` zeros go around it, ``output_padding``
    more at the far end. An ``output_size`` given to ``forward`` must be the one that
    ``output_padding`` stands for.
    """

    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def input_rows(self, h: Tensor) -> Tensor:
        """Patches of the spread input ``h [n, C_in, *space]`` as ``[(q,) n, t, i]``."""
        conv = self.module
        dims = len(conv.kernel_size)
        spread = F.pad(_spread(batched(h, dims), conv.stride), self._padding())
        ones = (1,) * dims
        patches = unfolded(spread, conv.kernel_size, ones, conv.dilation)
        return grouped_rows(patches, conv.groups, self.has_bias)

    def _padding(self) -> list[int]:
        """What :func:`torch.nn.functional.pad` takes: last dimension first, near and far end."""
        conv = self.module
        padding: list[int] = []
        for k, d, p, extra in zip(
            conv.kernel_size, conv.dilation, cast(tuple[int, ...], conv.padding),
            conv.output_padding, strict=True,
        ):  # fmt: skip
            padding = [d * (k - 1) - p, d * (k - 1) - p + extra, *padding]
        return padding

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """``grad_z [n, C_out, *space]`` as ``[(q,) n, t, C_out / q]``."""
        return channel_rows(batched(grad_z, len(self.module.kernel_size)), self.module.groups)

    def weight_as_matrix(self, weight: Tensor) -> Tensor:
        """``weight [C_in, C_out / q, *kernel]`` with the kernel flipped, output channels first."""
        q = self.module.groups
        flipped = weight.flip(tuple(range(2, weight.ndim)))
        W = flipped.view(q, -1, *weight.shape[1:]).transpose(1, 2).flatten(2)
        return W if q > 1 else W.squeeze(0)

    def matrix_as_weight(self, W: Tensor) -> Tensor:
        """The inverse."""
        conv = self.module
        C_in, C_out, *kernel = conv.weight.shape
        q = conv.groups
        blocks = W.reshape(q, C_out, C_in // q, *kernel).transpose(1, 2)
        return blocks.reshape(conv.weight.shape).flip(tuple(range(2, conv.weight.ndim)))


def _spread(h: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``h [n, C, *space]`` with ``stride - 1`` zeros between neighbours."""
    if all(s == 1 for s in stride):
        return h
    space = [(size - 1) * s + 1 for size, s in zip(h.shape[2:], stride, strict=True)]
    spread = h.new_zeros(*h.shape[:2], *space)
    steps = tuple(slice(None, None, s) for s in stride)
    spread[(slice(None), slice(None), *steps)] = h
    return spread
