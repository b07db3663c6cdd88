"""Layers of one shape solved in one batched product.

``G_l^-1 M_l A_l^-1`` of ``k`` layers with equal shapes is two products of stacks ``[k, ..]``
instead of ``2 k`` small ones. The inverses of a stack lie in one piece of memory, of which the
blocks' buffers are views: a new decomposition, copied into the buffers, is in the stack at once,
and nothing is held twice. Where buffers were moved (another device, another dtype) the stack is no
longer theirs, and is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from natgrad import linalg
from natgrad.blocks import Block, TwoFactor
from natgrad.padded import LEAST, padded_zeros

__all__ = ["Stack", "Stacks"]


class Stack:
    """The inverses of some two-factor blocks of one shape, in one piece of memory.

    Args:
        blocks: with inverted factors; their buffers are views of the stack from now on.
    """

    def __init__(self, blocks: Sequence[TwoFactor]) -> None:
        self.blocks = list(blocks)
        self.G, self.A = (self._taken(f"{name}_inverse") for name in ("G", "A"))

    def _taken(self, name: str) -> Tensor:
        buffers = [block.get_buffer(name) for block in self.blocks]
        first = buffers[0]
        stack = padded_zeros(len(buffers), *first.shape, dtype=first.dtype, device=first.device)
        for place, block, buffer in zip(stack, self.blocks, buffers, strict=True):
            setattr(block, name, place.copy_(buffer))
        return stack

    @property
    def is_theirs(self) -> bool:
        """Whether the blocks' buffers are still views of it."""
        pairs = ((self.G, "G_inverse"), (self.A, "A_inverse"))
        return all(
            getattr(block, name).data_ptr()
            == stack.data_ptr() + k * stack.stride(0) * stack.itemsize
            for stack, name in pairs
            for k, block in enumerate(self.blocks)
        )

    def solve(self, Ms: Sequence[Tensor]) -> Sequence[Tensor]:
        """``G_l^-1 M_l A_l^-1`` of every block, for gradients ``M_l [o, i]``."""
        M = torch.stack([M.to(self.G.dtype) for M in Ms])
        return linalg.kron_solve(self.G, self.A, M).unbind()


class Stacks:
    """Which blocks are solved together.

    On CPU only narrow ones, whose products take less time than the calls to them; on accelerators
    all. Blocks in groups, with a diagonal or split factor, with damping of the eigenvalues or with
    products in a dtype of their own are solved by themselves.

    Args:
        blocks: of all layers, in order.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        found: dict[tuple[object, ...], list[int]] = {}
        for index, block in enumerate(blocks):
            if isinstance(block, TwoFactor) and _stacks(block):
                kind = block.shape, block.dtype, block.ready.device
                found.setdefault(kind, []).append(index)
        self._members = [tuple(members) for members in found.values() if len(members) > 1]
        self._blocks = blocks
        self._stacks: dict[tuple[int, ...], Stack] = {}

    def solve(self, gradients: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The natural gradients of all stacks whose members' gradients are all there."""
        solved: dict[int, Tensor] = {}
        for members in self._members:
            if all(k in gradients for k in members):
                found = self._of(members).solve([gradients[k] for k in members])
                solved.update(zip(members, found, strict=True))
        return solved

    def _of(self, members: tuple[int, ...]) -> Stack:
        stack = self._stacks.get(members)
        if stack is None or not stack.is_theirs:
            blocks = [self._blocks[k] for k in members]
            stack = Stack([block for block in blocks if isinstance(block, TwoFactor)])
            self._stacks[members] = stack
        return stack


def _stacks(block: TwoFactor) -> bool:
    """Whether a block may be solved together with others."""
    sides = block.input, block.output
    if not block.is_factored or block.groups or block.product_dtype is not None:
        return False
    if any(side.diagonal or side.split is not None for side in sides):
        return False
    return block.ready.device.type != "cpu" or max(side.width for side in sides) < LEAST
