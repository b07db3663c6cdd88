"""The five optimizers written out with dense matrices, without a line of natgrad's.

Per-example gradients are ``torch.func``'s, rows those of ``tests.byhand``. Every layer has a
matrix ``[q, o, i]`` (``q`` groups, bias last), a Kronecker product is a ``torch.kron``, and every
damped inverse is a ``torch.linalg.solve`` with the whole block.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from tests import byhand, oracle

Matrices = dict[str, Tensor]
METHODS = ("KFAC", "EKFAC", "TKFAC", "TEKFAC", "ExactNGD")


def cnn(seed: int = 0) -> nn.Sequential:
    """Stride, padding, groups, a convolution without a bias, and a linear head: ``[n,2,5,5]``."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(),
        nn.Conv2d(4, 2, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def matrices(net: nn.Sequential, named: Matrices) -> Matrices:
    """``[.., q, o, i (+1)]`` of each layer, from tensors named like its parameters."""
    found = {}
    for name, module in net.named_children():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        W, q = named[f"{name}.weight"], getattr(module, "groups", 1)
        before = W.shape[: W.ndim - module.weight.ndim]
        W = W.reshape(*before, q, len(module.weight) // q, -1)
        if module.bias is not None:
            W = torch.cat([W, named[f"{name}.bias"].reshape(*W.shape[:-1], 1)], -1)
        found[name] = W
    return found


def per_example(net: nn.Sequential, x: Tensor, y: Tensor, kind: str) -> Matrices:
    """Gradients of each example's own nll, ``[n, q, o, i]`` for each layer."""

    def loss(params: Matrices, x: Tensor, y: Tensor) -> Tensor:
        return oracle.nll(kind, oracle.output(net, x[None], params)[0], y)

    return matrices(net, vmap(grad(loss), (None, 0, 0))(oracle.parameters(net), x, y))


def fisher_columns(net: nn.Sequential, x: Tensor, kind: str, y: Tensor | None) -> Matrices:
    """``J [R, q, o, i]`` of each layer with ``F = J^T J / n``; with targets, the empirical one."""
    f = oracle.output(net, x).detach()
    drawn = list(oracle.outcomes(kind, f)) if y is None else [(f.new_ones(len(f)), y)]
    parts = [(weight.sqrt(), per_example(net, x, targets, kind)) for weight, targets in drawn]
    return {
        layer: torch.cat([root[:, None, None, None] * found[layer] for root, found in parts])
        for layer in parts[0][1]
    }


def grouped_rows(net: nn.Sequential, x: Tensor, kind: str, y: Tensor | None) -> dict:
    """``a [q, n, t, i]`` and ``g [q, c, n, t, o]`` of each layer."""
    found = {}
    for name, (a, g) in byhand.rows(net, x, kind, y).items():
        module = net[int(name)]
        q, ones = getattr(module, "groups", 1), a[..., -1:]
        parts = (a if module.bias is None else a[..., :-1]).chunk(q, -1)
        if module.bias is not None:
            parts = [torch.cat([part, ones], -1) for part in parts]
        found[name] = torch.stack(list(parts)), torch.stack(g.chunk(q, -1))
    return found


def solve(F: Tensor, M: Tensor, ridge: Tensor | float = 0.0) -> Tensor:
    """``(F + ridge I)^-1 vec(M)``."""
    damped = F + ridge * torch.eye(len(F), dtype=F.dtype)
    return torch.linalg.solve(damped, M.flatten()).reshape(M.shape)


def damped_factors(A: Tensor, G: Tensor, ridge_A: Tensor, ridge_G: Tensor) -> Tensor:
    eyes = (torch.eye(len(X), dtype=X.dtype) for X in (A, G))
    eye_A, eye_G = eyes
    return torch.kron((G + ridge_G * eye_G).contiguous(), (A + ridge_A * eye_A).contiguous())


class BruteForce:
    """One of the optimizers; ``step`` takes a batch and changes ``net``, a copy of the given."""

    def __init__(
        self, method: str, net: nn.Sequential, kind: str, *, lr: float, damping: float,
        momentum: float = 0.0, weight_decay: float = 0.0, decay: float = 0.95,
        empirical: bool = False,
    ) -> None:  # fmt: skip
        self.method, self.net, self.kind = method, copy.deepcopy(net), kind
        self.lr, self.damping, self.momentum = lr, damping, momentum
        self.weight_decay, self.decay, self.empirical = weight_decay, decay, empirical
        self.averages: dict[tuple[str, str], Tensor] = {}
        self.count = 0
        self.bases: Matrices = {}
        self.velocity: Matrices = {}

    def step(self, x: Tensor, y: Tensor) -> None:
        self.count += 1
        M = {name: J.mean(0) for name, J in per_example(self.net, x, y, self.kind).items()}
        targets = y if self.empirical else None
        J = fisher_columns(self.net, x, self.kind, targets)
        if self.method == "ExactNGD":
            U = self._joint(J, M, len(x))
        else:
            rows = grouped_rows(self.net, x, self.kind, targets)
            U = {name: self._layer(name, J[name], *rows[name], M[name]) for name in M}
        W = matrices(self.net, oracle.parameters(self.net))
        for name in W:
            v = self.momentum * self.velocity.get(name, torch.zeros_like(W[name])) + U[name]
            self.velocity[name] = v
            self._write(name, (1 - self.lr * self.weight_decay) * W[name] - self.lr * v)

    @torch.no_grad()
    def _write(self, name: str, W: Tensor) -> None:
        module = self.net[int(name)]
        if module.bias is not None:
            module.bias.copy_(W[..., -1].flatten())
            W = W[..., :-1]
        module.weight.copy_(W.reshape(module.weight.shape))

    def _joint(self, J: Matrices, M: Matrices, n: int) -> Matrices:
        columns = torch.cat([part.flatten(1) for part in J.values()], 1)
        g = torch.cat([part.flatten() for part in M.values()])
        U = solve(columns.mT @ columns / n, g, self.damping)
        parts = U.split([m.numel() for m in M.values()])
        return {name: part.view_as(M[name]) for name, part in zip(M, parts, strict=True)}

    def _mean(self, name: str, what: str, new: Tensor) -> Tensor:
        """The bias-corrected average of batch means."""
        old = self.averages.get((name, what), torch.zeros_like(new))
        self.averages[name, what] = self.decay * old + (1 - self.decay) * new
        return self.averages[name, what] / (1 - self.decay**self.count)

    def _layer(self, name: str, J: Tensor, a: Tensor, g: Tensor, M: Tensor) -> Tensor:
        n = a.shape[1]
        parts = [
            self._group(f"{name}/{k}", J[:, k].flatten(1), a[k], g[k], M[k], n)
            for k in range(len(M))
        ]
        return torch.stack(parts)

    def _group(self, name: str, J: Tensor, a: Tensor, g: Tensor, M: Tensor, n: int) -> Tensor:
        A, G = self._factors(name, a, g)
        if "EK" in self.method:
            return solve(self._corrected(name, A, G, J, n), M, self.damping)
        root = A.new_tensor(self.damping).sqrt()
        pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt() if self.method == "KFAC" else 1
        return solve(damped_factors(A, G, pi * root, root / pi), M)

    def _factors(self, name: str, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        n, t = a.shape[:2]
        if self.method in ("KFAC", "EKFAC"):
            A = self._mean(name, "A", torch.einsum("nti,ntj->ij", a, a) / (n * t))
            return A, self._mean(name, "G", torch.einsum("cnto,cntp->op", g, g) / n)
        a2, g2 = a.square().sum(-1), g.square().sum(-1)
        P = self._mean(name, "P", torch.einsum("cnt,nti,ntj->ij", g2, a, a) / n)
        S = self._mean(name, "S", torch.einsum("nt,cnto,cntp->op", a2, g, g) / n)
        delta = self._mean(name, "delta", torch.einsum("nt,cnt->", a2, g2) / n)
        return P / delta.sqrt(), S / delta.sqrt()  # sqrt(delta) Phi and sqrt(delta) Psi

    def _corrected(self, name: str, A: Tensor, G: Tensor, J: Tensor, n: int) -> Tensor:
        """``Q diag(s) Q^T``; the old one's diagonal in the new basis is carried over (V:C18)."""
        Q = torch.kron(*(torch.linalg.eigh(X)[1].contiguous() for X in (G, A)))
        if name in self.bases:
            old = self.bases[name]
            matrix = old @ torch.diag(self.averages[name, "s"]) @ old.mT
            self.averages[name, "s"] = (Q.mT @ matrix @ Q).diagonal()
        self.bases[name] = Q
        s = self._mean(name, "s", (J @ Q).square().sum(0) / n)
        return Q @ torch.diag(s) @ Q.mT
