"""The Fisher matrix by brute force, in float64 and without a line of natgrad.

Every expectation over targets is a finite sum: all classes, all combinations of bits, or the points
of a cubature that is exact for the second moments of a normal distribution. Every gradient is one
of ``torch.func``. A layer's matrix is ``[o, i + 1]``, bias last, and is flattened row-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

KINDS = ("categorical", "bernoulli", "gaussian")


def nll(kind: str, f: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of one example, summed over its positions."""
    if kind == "categorical":
        return -f.log_softmax(-1).gather(-1, y.unsqueeze(-1)).sum()
    if kind == "bernoulli":
        return -(y * f.sigmoid().log() + (1 - y) * (1 - f.sigmoid()).log()).sum()
    return (f - y).square().sum() / 2


def mean_nll(kind: str, f: Tensor, y: Tensor) -> Tensor:
    """The user's loss: the mean over examples."""
    return torch.stack([nll(kind, a, b) for a, b in zip(f, y, strict=True)]).mean()


def targets(kind: str, f: Tensor, seed: int = 0) -> Tensor:
    """Some targets that fit outputs like ``f``, not drawn from the model."""
    g = torch.Generator().manual_seed(seed + 1000)
    if kind == "categorical":
        return torch.randint(f.shape[-1], f.shape[:-1], generator=g)
    if kind == "bernoulli":
        return torch.randint(2, f.shape, generator=g).to(f)
    return torch.randn(f.shape, dtype=f.dtype, generator=g)


def outcomes(kind: str, f: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """``(weight [n], targets)`` over which sums of squared scores are exact expectations."""
    n, entries = len(f), f[0].numel()
    if kind == "categorical":
        p = f.softmax(-1).reshape(n, -1, f.shape[-1])
        for classes in product(range(f.shape[-1]), repeat=p.shape[1]):
            y = torch.tensor(classes).expand(n, -1)
            weight = p.gather(-1, y.unsqueeze(-1)).squeeze(-1).prod(1)
            yield weight, y.reshape(f.shape[:-1])
    elif kind == "bernoulli":
        p = f.sigmoid().reshape(n, entries)
        for bits in product((0.0, 1.0), repeat=entries):
            y = torch.tensor(bits, dtype=f.dtype).expand(n, -1)
            yield (p * y + (1 - p) * (1 - y)).prod(1), y.reshape(f.shape)
    else:
        for k, sign in product(range(entries), (-1.0, 1.0)):
            noise = torch.zeros(n, entries, dtype=f.dtype)
            noise[:, k] = sign * entries**0.5
            yield torch.full((n,), 0.5 / entries, dtype=f.dtype), f + noise.reshape(f.shape)


def matrices(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """``[..., o, i (+1)]`` for each layer, from tensors named like its parameters."""
    weights = {name[: -len(".weight")]: W for name, W in named.items() if name.endswith("weight")}
    return {
        layer: torch.cat([W, named[f"{layer}.bias"].unsqueeze(-1)], -1)
        if f"{layer}.bias" in named
        else W
        for layer, W in weights.items()
    }


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def output(net: nn.Module, x: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
    """The model's output in evaluation mode, where nothing listens."""
    mode = net.training
    net.eval()
    f = functional_call(net, params or parameters(net), (x,))
    net.train(mode)
    return f


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """``d f_n / d theta`` as ``[n, *outputs, P]``, layer by layer."""
    per_layer = matrices(
        vmap(jacrev(lambda p, x: output(net, x[None], p)[0]), (None, 0))(parameters(net), x)
    )
    return torch.cat([J.flatten(-2) for J in per_layer.values()], -1)


def example_gradients(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> dict[str, Tensor]:
    """Gradient of each example's own nll, ``[n, o, i (+1)]`` for each layer."""

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nll(kind, output(net, x[None], params)[0], y)

    return matrices(vmap(grad(loss), (None, 0, 0))(parameters(net), x, y))


def _columns(net: nn.Module, x: Tensor, kind: str) -> dict[str, Tensor]:
    columns: dict[str, list[Tensor]] = {}
    for weight, y in outcomes(kind, output(net, x)):
        for layer, M in example_gradients(net, x, y, kind).items():
            columns.setdefault(layer, []).append(weight.sqrt()[:, None] * M.flatten(1))
    return {layer: torch.cat(found) for layer, found in columns.items()}


def fisher(net: nn.Module, x: Tensor, kind: str) -> Tensor:
    """The whole exact Fisher matrix, ``[P, P]``, layer by layer."""
    J = torch.cat(list(_columns(net, x, kind).values()), 1)
    return J.mT @ J / len(x)


def blocks(net: nn.Module, x: Tensor, kind: str) -> dict[str, Tensor]:
    """The exact Fisher block of each layer."""
    return {layer: J.mT @ J / len(x) for layer, J in _columns(net, x, kind).items()}


def empirical_blocks(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> dict[str, Tensor]:
    """The empirical Fisher block of each layer."""
    found = example_gradients(net, x, y, kind)
    return {layer: M.flatten(1).mT @ M.flatten(1) / len(x) for layer, M in found.items()}


def rows(net: nn.Sequential, x: Tensor, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """``a [n, i (+1)]`` and weighted ``g [outcomes, n, o]`` of every Linear on plain vectors."""
    drawn = list(outcomes(kind, output(net, x).detach()))
    found = {}
    for k, layer in enumerate(net):
        if not isinstance(layer, nn.Linear):
            continue
        h = net[:k](x).detach()
        z = (h @ layer.weight.mT + (0 if layer.bias is None else layer.bias)).detach()
        tail = net[k + 1 :]
        score = vmap(grad(lambda z, y, tail=tail: nll(kind, tail(z), y)))
        g = torch.stack([weight.sqrt()[:, None] * score(z, y) for weight, y in drawn]).detach()
        a = h if layer.bias is None else torch.cat([h, torch.ones_like(h[:, :1])], 1)
        found[str(k)] = (a, g)
    return found
