"""Blocks of every class as a training loop would leave them: observed, decomposed, rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from natgrad import linalg
from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, Block, Diagonal, EigenCorrected, Exact
from natgrad.damping import Damping
from natgrad.decompose import decompose
from natgrad.sample import Sample
from tests import oracle
from tests.networks import mlp, normal
from tests.tapped import LIKELIHOODS
from tests.tapped import samples as samples_of

BLOCKS: tuple[type[Block], ...] = (KFAC, TKFAC, EKFAC, TEKFAC, Diagonal, Exact)
CORRECTED = ((KFAC, EKFAC), (TKFAC, TEKFAC))

B = TypeVar("B", bound=Block)


def block(
    cls: type[B],
    samples: Sample | Sequence[Sample],
    damping: float | Damping = 0.1,
    decay: float = 1.0,
    **kwargs: Any,
) -> B:
    """A block that has seen the samples, one commit each, and measured its scale on them."""
    each = [samples] if isinstance(samples, Sample) else list(samples)
    shape = (each[0].g.shape[-1], each[0].a.shape[-1])
    made = cls(shape, damping=damping, decay=decay, dtype=each[0].g.dtype, **kwargs)
    for sample in each:
        made.observe(sample)
        commit(made)
    refresh(made)
    for sample in each:
        made.rescale(sample)
        commit(made)
    return made


def commit(block: Block) -> None:
    for moment in block.moments():
        moment.commit()


def refresh(block: Block) -> None:
    """Decompose the factors and load what comes back."""
    wanted = block.factors()
    found = decompose(list(wanted.values()))
    assert all(result is not None for result in found)
    block.load(dict(zip(wanted, found, strict=True)))  # type: ignore[arg-type]


def basis(block: EigenCorrected) -> Tensor:
    """``Q = U_G (x) U_A``."""
    A, G = block.basis.eigen()
    return linalg.kron(G.vectors, A.vectors)


def damped_solve(F: Tensor, M: Tensor, ridge: float | Tensor) -> Tensor:
    """``(F + ridge I)^-1 vec(M)`` by the dense matrix."""
    eye = torch.eye(len(F), dtype=F.dtype)
    return torch.linalg.solve(F + ridge * eye, M.flatten()).view_as(M)


def places(net: nn.Module) -> dict[str, Tensor]:
    """Where the oracle's rows of each layer lie in the vector of all parameters."""
    start, index = 0, {}
    for name, p in net.named_parameters():
        index[name] = torch.arange(start, start + p.numel()).reshape(p.shape)
        start += p.numel()
    return {layer: M.flatten() for layer, M in oracle.matrices(index).items()}


def assembled(net: nn.Module, blocks: dict[str, Tensor]) -> Tensor:
    """Blocks of the layers as one matrix in the order of ``parameters_to_vector``."""
    index = places(net)
    size = sum(p.numel() for p in net.parameters())
    F = torch.zeros(size, size, dtype=torch.float64)
    for layer, matrix in blocks.items():
        F[index[layer][:, None], index[layer]] = matrix
    return F


def reordered(net: nn.Module, F: Tensor) -> Tensor:
    """The oracle's whole matrix in the order of ``parameters_to_vector``."""
    order = torch.cat(list(places(net).values())).argsort()
    return F[order[:, None], order]


@lru_cache
def layers(kind: str, seed: int, shape: tuple[int, ...] = (9, 3)) -> list[tuple[Sample, Tensor]]:
    """Each layer's sample, from backward passes, and its exact block, from the oracle."""
    net, x = mlp(3, 4, 2, seed=seed), normal(*shape, seed=seed)
    exact = oracle.blocks(net, x, kind)
    return [(s, exact[layer]) for layer, s in samples_of(net, x, LIKELIHOODS[kind]).items()]


def partial_traces(F: Tensor, o: int, i: int) -> tuple[Tensor, Tensor]:
    """``[i, i]``, summed over outputs, and ``[o, o]``, summed over inputs."""
    each = F.view(o, i, o, i)
    return torch.einsum("oiok->ik", each), torch.einsum("oipi->op", each)
