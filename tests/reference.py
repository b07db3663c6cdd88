"""The K-FAC optimizer written out for a Sequential of Linear layers, on the oracle's rows.

Formulas of Martens & Grosse 2015 and nothing shared with natgrad: bias-corrected averages of ``A``
and ``G``, factored damping with ``pi``, momentum on the natural gradient, decoupled weight decay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import oracle


class ReferenceKFAC:
    def __init__(
        self, net: nn.Sequential, kind: str, *, lr: float, damping: float, momentum: float = 0.0,
        decay: float = 0.95, weight_decay: float = 0.0, kl_clip: float | None = None,
    ) -> None:  # fmt: skip
        self.params = oracle.parameters(net)
        self.net, self.kind, self.lr, self.momentum = net, kind, lr, momentum
        self.damping, self.decay, self.weight_decay = damping, decay, weight_decay
        self.kl_clip, self.count = kl_clip, 0
        self.A: dict[str, Tensor] = {}
        self.G: dict[str, Tensor] = {}
        self.velocity: dict[str, Tensor] = {}

    def step(self, x: Tensor, y: Tensor) -> None:
        self.net.load_state_dict(self.params)
        self.count += 1
        gradients = oracle.example_gradients(self.net, x, y, self.kind)
        M = {layer: each.mean(0) for layer, each in gradients.items()}
        for layer, (a, g) in oracle.rows(self.net, x, self.kind).items():
            self._average(self.A, layer, torch.einsum("ni,nj->ij", a, a) / len(x))
            self._average(self.G, layer, torch.einsum("cno,cnp->op", g, g) / len(x))
        U = {layer: self._natural(layer, M[layer]) for layer in M}
        if self.kl_clip is not None:
            size = self.lr**2 * sum(float((U[layer] * M[layer]).sum()) for layer in M)
            U = {layer: min(1.0, (self.kl_clip / size) ** 0.5) * U[layer] for layer in U}
        for layer, W in oracle.matrices(self.params).items():
            v = self.momentum * self.velocity.get(layer, torch.zeros_like(W)) + U[layer]
            self.velocity[layer] = v
            W = (1 - self.lr * self.weight_decay) * W - self.lr * v
            i = self.params[f"{layer}.weight"].shape[1]
            self.params[f"{layer}.weight"] = W[:, :i]
            if f"{layer}.bias" in self.params:
                self.params[f"{layer}.bias"] = W[:, i]

    def _average(self, averages: dict[str, Tensor], layer: str, new: Tensor) -> None:
        old = averages.get(layer, torch.zeros_like(new))
        averages[layer] = self.decay * old + (1 - self.decay) * new

    def _natural(self, layer: str, M: Tensor) -> Tensor:
        corrected = 1 - self.decay**self.count
        A, G = self.A[layer] / corrected, self.G[layer] / corrected
        pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
        damped_A = A + pi * self.damping**0.5 * torch.eye(len(A), dtype=A.dtype)
        damped_G = G + self.damping**0.5 / pi * torch.eye(len(G), dtype=A.dtype)
        return torch.linalg.solve(damped_A, torch.linalg.solve(damped_G, M).mT).mT
