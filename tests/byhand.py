"""The approximations written out from paired rows, without a line of natgrad.

``a [n, t, i]`` and ``g [c, n, t, o]`` come from the oracle's targets and ``torch.func``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import unfold

from tests import oracle

Rows = tuple[Tensor, Tensor]


def rows(net: nn.Sequential, x: Tensor, kind: str, y: Tensor | None = None) -> dict[str, Rows]:
    """Rows of every Linear and Conv2d; ``g`` is weighted by the root of the outcome's probability.

    With targets ``y`` these are the rows of the empirical Fisher.
    """
    f = oracle.output(net, x).detach()
    drawn = list(oracle.outcomes(kind, f)) if y is None else [(f.new_ones(len(f)), y)]
    found = {}
    for k, layer in enumerate(net):
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        h = net[:k](x).detach()
        z, tail = layer(h).detach(), net[k + 1 :]
        score = vmap(grad(lambda z, y, tail=tail: oracle.nll(kind, tail(z[None])[0], y)))
        each = [positions(layer, score(z, y)) for _, y in drawn]
        roots = torch.stack([weight.sqrt() for weight, _ in drawn])[..., None, None]
        found[str(k)] = (inputs(layer, h), (roots * torch.stack(each)).detach())
    return found


def inputs(layer: nn.Module, h: Tensor) -> Tensor:
    """``a [n, t, i]``: patches of a convolution, with ones for the bias."""
    if isinstance(layer, nn.Conv2d):
        h = unfold(h, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    h = h.reshape(len(h), -1, h.shape[-1])
    return h if layer.bias is None else torch.cat([h, torch.ones_like(h[..., :1])], -1)


def positions(layer: nn.Module, z: Tensor) -> Tensor:
    """``[n, t, o]``."""
    return z.flatten(2).mT if isinstance(layer, nn.Conv2d) else z.reshape(len(z), -1, z.shape[-1])


def gradients(a: Tensor, g: Tensor) -> Tensor:
    """``J [c n, o, i]``."""
    return torch.einsum("cnto,nti->cnoi", g, a).flatten(0, 1)


def exact(a: Tensor, g: Tensor) -> Tensor:
    """``1/n sum vec(J) vec(J)^T``."""
    J = gradients(a, g).flatten(1)
    return J.mT @ J / len(a)


def reduced(a: Tensor, g: Tensor) -> Rows:
    """``mean_t a`` and ``sum_t g``."""
    return a.mean(1, keepdim=True), g.sum(2, keepdim=True)


def kfac(a: Tensor, g: Tensor) -> Rows:
    """``A`` and ``G`` of K-FAC-expand."""
    n, t = a.shape[:2]
    A = torch.einsum("nti,ntj->ij", a, a) / (n * t)
    return A, torch.einsum("cnto,cntp->op", g, g) / n


def tkfac(a: Tensor, g: Tensor) -> Rows:
    """``delta Phi`` and ``Psi``."""
    n = len(a)
    P = torch.einsum("cnto,nti,ntj->ij", g.square(), a, a) / n
    S = torch.einsum("nti,cnto,cntp->op", a.square(), g, g) / n
    return P, S / S.trace()


def corrected(A: Tensor, G: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """``Q diag(Q^T F Q) Q^T`` in the eigenbasis of ``G (x) A``."""
    Q = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
    scale = (Q.mT @ exact(a, g) @ Q).diagonal()
    return Q @ torch.diag(scale) @ Q.mT


def dense(structure: str, a: Tensor, g: Tensor, shared: str = "expand") -> Tensor:
    """A layer's matrix under a structure of :func:`natgrad.fisher`."""
    F = exact(a, g)
    if structure in ("block", "dense"):
        return F
    if structure == "diagonal":
        return torch.diag(F.diagonal())
    A, G = (tkfac if "tk" in structure or "tek" in structure else kfac)(
        *(reduced(a, g) if shared == "reduce" else (a, g))
    )
    return (
        corrected(A, G, a, g) if "ek" in structure else torch.kron(G.contiguous(), A.contiguous())
    )
