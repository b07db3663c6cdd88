"""The transformer that optimizers are timed on.

It is made of linear layers, without ``nn.MultiheadAttention``, which some peers crash
on and others leave alone: every method has the same matrices to precondition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """A causal transformer: ``[n, t]`` indices to ``[n, t, characters]`` logits.

    Pre-norm blocks, as GPT-2 has them (Radford et al. 2019), of linear layers alone.

    Args:
        characters: size of the alphabet.
        length: the longest sequence.
        width: of the embeddings.
        heads: of each attention.
        depth: number of blocks.
    """

    def __init__(
        self, characters: int, length: int, width: int = 256, heads: int = 4, depth: int = 6
    ) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character at every position."""
        positions = torch.arange(x.shape[1], device=x.device).expand_as(x)
        h = self.character(x) + self.position(positions)
        logits: Tensor = self.head(self.norm(self.blocks(h)))
        return logits


class _Block(nn.Module):
    """Attention and a two-layer network, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        split = self.qkv(self.norm(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(n, t, width))
        added: Tensor = x + self.network(x)
        return added
