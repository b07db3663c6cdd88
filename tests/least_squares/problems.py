"""Small least-squares problems, and their Jacobians by brute force."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import natgrad
from natgrad import PointResiduals, laplacian
from tests.networks import mlp, normal


def network(*widths: int, seed: int = 0) -> nn.Sequential:
    return mlp(*(widths or (2, 5, 1)), seed=seed)


def regression(net: nn.Module, n: int = 7) -> Callable[[], Tensor]:
    x, y = normal(n, 2, seed=1), normal(n, 1, seed=2)
    return lambda: net(x) - y


def poisson(interior: int = 6, edge: int = 4) -> tuple[PointResiduals, PointResiduals]:
    x, s = normal(interior, 2, seed=3), normal(edge, 2, seed=4)
    return (
        PointResiduals(lambda u, x: laplacian(u, x) + x.prod(), x),
        PointResiduals(lambda u, x: u(x), s, weight=2.0),
    )


def poisson_by_autograd(net: nn.Module, interior: int = 6, edge: int = 4) -> Callable[[], object]:
    """The same residuals as a function of the model, by nested backward passes."""
    x, s = normal(interior, 2, seed=3), normal(edge, 2, seed=4)

    def residuals() -> tuple[Tensor, Tensor]:
        points = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
        curved = [
            torch.autograd.grad(g[:, k].sum(), points, create_graph=True)[0][:, k] for k in range(2)
        ]
        return sum(curved) + x.prod(1), 2.0**0.5 * net(s)  # type: ignore[return-value]

    return residuals


def brute_force(
    net: nn.Module, residuals: object, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """``r`` and ``J`` one entry at a time, each part scaled as its loss wants."""
    call = residuals if callable(residuals) else poisson_by_autograd(net)
    found = call()
    parts = found if isinstance(found, tuple) else (found,)
    vectors = [r.flatten() / (r.numel() ** 0.5 if reduction == "mean" else 1.0) for r in parts]
    r = torch.cat(vectors)
    rows = [
        torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for g, p in zip(
                    torch.autograd.grad(
                        entry, list(net.parameters()), retain_graph=True, allow_unused=True
                    ),
                    net.parameters(),
                    strict=True,
                )
            ]
        )
        for entry in r
    ]
    return r.detach(), torch.stack(rows)


def optimizer(net: nn.Module, **kwargs: object) -> natgrad.ExactNGD:
    return natgrad.ExactNGD(net, **{"lr": 1.0, "momentum": 0.0, "damping": 1e-3, **kwargs})


def vector(net: nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def natural(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])
