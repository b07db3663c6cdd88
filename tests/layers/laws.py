"""What must hold for every view, checked against the Jacobians of single examples.

The only thing of natgrad's that the brute force uses is ``view.to_matrix``, to put a parameter's
entries in the order of the matrix; that rows are in that order, too, is shown by the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from natgrad import blocks
from natgrad.blocks import Block
from natgrad.decompose import decompose
from natgrad.layers import LayerView, views_of
from natgrad.sample import Sample
from natgrad.tap import Tap
from tests.networks import normal
from tests.tapped import LIKELIHOODS

Select = Callable[[Any, int], Any]  #: the n-th example of an input, as a batch of one
STRUCTURES = (blocks.Diagonal, blocks.KFAC, blocks.TKFAC, blocks.EKFAC, blocks.TEKFAC)


def first(x: Any, n: int) -> Any:
    return x[n : n + 1]


def tapped(
    net: nn.Module, x: Any, kind: str | None, **kwargs: Any
) -> list[tuple[LayerView, Sample]]:
    """Views and samples of one pass with a random loss; ``kind`` None is the user's gradient."""
    views, found = views_of(net)[0], {}
    kwargs = {"fisher": "exact", **kwargs} if kind else {"reduction": "sum", **kwargs}
    tap = Tap(net, views, found.__setitem__, likelihood=kind and LIKELIHOODS[kind], **kwargs)
    net.zero_grad()
    f = net(x)
    (f * normal(*f.shape, seed=9)).sum().backward()
    tap.remove()
    return [(view, found[index]) for index, view in enumerate(views)]


def score_covariance(kind: str, f: Tensor) -> Tensor:
    """``R`` of one example's outputs, positions independent."""
    if kind == "gaussian":
        return torch.eye(f.numel(), dtype=f.dtype)
    p = f.softmax(-1).reshape(-1, f.shape[-1])
    return torch.block_diag(*(each.diag() - torch.outer(each, each) for each in p))


def jacobians(
    net: nn.Module, x: Any, n: int, select: Select = first
) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
    """For each example alone: the outputs, and ``df / dp [outputs, *p.shape]`` by id of ``p``."""
    named = dict(net.named_parameters())
    values = {name: p.detach() for name, p in named.items()}
    outputs, found = [], []
    for k in range(n):

        def f(params: dict[str, Tensor], k: int = k) -> Tensor:
            return functional_call(net, params, (select(x, k),))

        z, pull = vjp(f, values)  # one output at a time: not every operation can be batched
        outputs.append(z)
        units = torch.eye(z.numel(), dtype=z.dtype)
        rows = [pull(unit.view(z.shape))[0] for unit in units]
        found.append({id(p): torch.stack([J[name] for J in rows]) for name, p in named.items()})
    return outputs, found


def exact_block(
    view: LayerView, kind: str, outputs: list[Tensor], found: list[dict[int, Tensor]]
) -> Tensor:
    """``1/n sum_n J_n^T R_n J_n [(q,) o i, o i]``."""
    total: Any = 0
    for f, J in zip(outputs, found, strict=True):
        slots = view.slots().items()
        rows = [
            view.to_matrix({name: slot.of(J[id(slot.parameter)][c]) for name, slot in slots})
            for c in range(f.numel())
        ]
        M = torch.stack(rows, -3).flatten(-2)
        total = total + M.mT @ score_covariance(kind, f[0]) @ M
    return total / len(outputs)


def block_of(Block_: type[Block], view: LayerView, sample: Sample, **kwargs: Any) -> Block:
    """A block that has seen the sample, in its own eigenbasis."""
    block = Block_(
        view.shape, groups=view.groups, diagonal_input=view.diagonal_input, damping=1e-2,
        dtype=sample.g.dtype, **kwargs,
    )  # fmt: skip
    block.observe(sample)
    _commit(block)
    wanted = block.factors()
    block.load(dict(zip(wanted, decompose(list(wanted.values())), strict=True)))
    block.rescale(sample)
    _commit(block)
    return block


def _commit(block: Block) -> None:
    for moment in block.moments():
        moment.commit()


def check_gradient(net: nn.Module, x: Any) -> None:
    """Rows add up to the parameters' own gradient, and the matrix can be written back."""
    for view, sample in tapped(net, x, None):
        M, columns = view.grad().clone(), sample.g.shape[-4]
        assert tuple(M.shape) == view.matrix_shape, view
        assert columns == 1, view
        assert torch.allclose(sample.gradient_sum(), M, rtol=1e-10, atol=1e-10), view
        view.set_grad(2 * M)
        assert torch.equal(view.grad(), 2 * M), view


def check_fisher(net: nn.Module, x: Any, n: int, select: Select = first) -> None:
    """The exact block is that of the examples' own Jacobians."""
    outputs, found = jacobians(net, x, n, select)
    for kind in ("categorical", "gaussian"):
        for view, sample in tapped(net, x, kind):
            assert sample.examples == n, view
            expected = exact_block(view, kind, outputs, found)
            dense = block_of(blocks.Exact, view, sample).dense()
            error = float((dense - expected).norm())
            assert error <= 1e-10 * float(expected.norm()), (view, kind)  # both zero if dead


def check_structures(net: nn.Module, x: Any) -> None:
    """Every approximation can be taken, is positive semi-definite, and keeps what it promises."""
    for view, sample in tapped(net, x, "gaussian"):
        exact = block_of(blocks.Exact, view, sample).dense()
        trace = exact.diagonal(0, -2, -1).sum(-1)
        for Structure in STRUCTURES:
            for shared in ("expand", "reduce") if Structure is blocks.KFAC else ("expand",):
                block = block_of(Structure, view, sample, shared=shared)
                dense = block.dense()
                assert dense.shape == exact.shape, (view, Structure)
                assert torch.allclose(dense, dense.mT, atol=1e-12), (view, Structure)
                smallest = torch.linalg.eigvalsh(dense).min()
                assert smallest >= -1e-10 * trace.max(), (view, Structure)
                assert block.solve(view.grad()).isfinite().all(), (view, Structure)
            if block.needs_rescale or Structure is blocks.Diagonal:
                kept = dense.diagonal(0, -2, -1).sum(-1)
                assert torch.allclose(kept, trace, rtol=1e-10), (view, Structure)


def check(net: nn.Module, x: Any, n: int | None = None, select: Select = first) -> None:
    """All laws; every parameter of the network must be covered."""
    assert views_of(net)[1] == []
    check_gradient(net, x)
    check_fisher(net, x, len(x) if n is None else n, select)
    check_structures(net, x)


def with_head(body: nn.Module, x: Any, classes: int = 3) -> nn.Sequential:
    """``body`` with a linear output layer, in float64."""
    body = body.double()
    width = body(x).flatten(1).shape[1]
    return nn.Sequential(body, nn.Tanh(), nn.Flatten(), nn.Linear(width, classes)).double()
