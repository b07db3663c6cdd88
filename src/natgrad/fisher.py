"""The Fisher matrix of a whole model, as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import blocks
from natgrad.batches import Batches, Inputs, Targets
from natgrad.blocks import Block
from natgrad.blocks.base import Shared
from natgrad.damping import Constant
from natgrad.gather import Gathered, Gatherer, Kind
from natgrad.layers import LayerView, reasons, views_of
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey
from natgrad.operator import LIMIT_BYTES, Fisher, Part, check_size, commit, load
from natgrad.sample import Sample, statistics_dtype

__all__ = ["STRUCTURES", "fisher"]

STRUCTURES: dict[str, type[Block]] = {
    "dense": blocks.Exact,
    "block": blocks.Exact,
    "diagonal": blocks.Diagonal,
    "kfac": blocks.KFAC,
    "ekfac": blocks.EKFAC,
    "tkfac": blocks.TKFAC,
    "tekfac": blocks.TEKFAC,
}


def fisher(
    model: nn.Module,
    inputs: Inputs,
    likelihood: Likelihood,
    *,
    kind: Kind = "exact",
    structure: str | type[Block] = "ekfac",
    targets: Targets = None,
    samples: int = 1,
    generator: torch.Generator | None = None,
    shared: Shared = "expand",
    logits: LogitsKey = None,
    batch_to_input: Callable[[Any], Any] | None = None,
    limit: int = LIMIT_BYTES,
) -> Fisher:
    """The Fisher matrix of ``model`` on ``inputs``, the mean over examples.

    ``F = 1/N sum_n J_n^T R(f_n) J_n`` (exact), its unbiased estimate from ``samples`` drawn targets
    per example (sampled), or ``1/N sum_n grad_n grad_n^T`` at the given targets (empirical); MATH
    0.1. The model runs in eval mode, batch by batch, and its mode is put back.

    Args:
        model: the model; parameters' gradients are not touched.
        inputs: a tensor, a tuple or mapping of tensors (one batch), or a re-iterable of batches.
        likelihood: the model's output distribution.
        kind: ``"exact"``, ``"sampled"`` or ``"empirical"``.
        structure: ``"dense"`` (everything, with the parts between layers), ``"block"`` (exact for
            each layer), ``"diagonal"``, ``"kfac"``, ``"ekfac"``, ``"tkfac"``, ``"tekfac"``, or a
            :class:`natgrad.blocks.Block` class. Scale and shift of norm layers get their exact
            2x2 blocks under every structure.
        targets: true targets, needed by the empirical Fisher; like ``inputs``, or a function that
            picks them from a batch. With the other kinds they only say which positions count.
        samples: draws per example.
        generator: draws the targets; by default a new one seeded with 0.
        shared: ``"expand"`` or ``"reduce"``, for layers with shared positions.
        logits: which entry of the model's output is the logits.
        batch_to_input: picks the model's input from batches that hold more.
        limit: bytes that a matrix of the dense and block structures may take.

    Raises:
        ValueError: unknown kind or structure, no layer covered, missing targets, a matrix beyond
            the limit, or a one-shot iterator where two passes are needed.
    """
    block = _block_class(structure)
    if kind not in ("exact", "sampled", "empirical"):
        raise ValueError(f'kind must be "exact", "sampled" or "empirical", got {kind!r}')
    if kind == "empirical" and targets is None:
        raise ValueError('kind="empirical" needs targets=')
    views, uncovered = views_of(model)
    if not views and structure != "dense":
        raise ValueError(f"no layer of the model is covered: {reasons(uncovered)}")
    rest = _rest(model, views) if structure == "dense" else []
    if not views and not rest:
        raise ValueError("every parameter of the model is frozen (requires_grad=False)")
    pairs = Batches(inputs, targets, batch_to_input)
    gatherer = Gatherer(
        model, views, likelihood, kind=kind, samples=samples, generator=generator, logits=logits,
        rest=rest,
    )  # fmt: skip
    size = sum(p.numel() for p in model.parameters())
    if structure == "dense":
        parts = [_dense_part(gatherer, pairs, size, limit)]
    else:
        parts = _layer_parts(gatherer, pairs, block, shared, limit)
    trained = [u for u in uncovered if u.trained]
    return Fisher(size, parts, [] if structure == "dense" else trained)


def _block_class(structure: str | type[Block]) -> type[Block]:
    if isinstance(structure, str):
        if structure not in STRUCTURES:
            known = ", ".join(map(repr, STRUCTURES))
            raise ValueError(f"structure must be one of {known} or a Block class: {structure!r}")
        return STRUCTURES[structure]
    return structure


def _layer_parts(
    gatherer: Gatherer, batches: Batches, block: type[Block], shared: Shared, limit: int
) -> list[Part]:
    """One block for each layer, observed batch by batch; a second pass where scales need it."""
    parts = [
        Part(view.name, index, _new_block(block, view, shared, limit))
        for view, index in _indexed(gatherer.model, gatherer.views)
    ]
    if any(part.block.needs_rescale for part in parts):
        batches.refuse_one_shot(f"structure {block.__name__}")
    seen: set[int] = set()
    for found, _, examples in gatherer.over(batches):
        seen |= found.keys()
        for k, part in enumerate(parts):
            if k in found:
                part.block.observe(found[k])
            else:
                part.block.skip(examples)
            commit(part.block)
    _refuse_unseen([part.name for k, part in enumerate(parts) if k not in seen])
    scaled = {k: part for k, part in enumerate(parts) if part.block.needs_rescale}
    if scaled:
        load([part.block for part in scaled.values()])
        for found, _, examples in gatherer.over(batches):
            for k, part in scaled.items():
                if k in found:
                    part.block.rescale(found[k])
                else:
                    part.block.skip(examples)
                commit(part.block)
    return parts


def _dense_part(gatherer: Gatherer, batches: Batches, size: int, limit: int) -> Part:
    """The whole matrix as one exact block, from the gradients of all layers side by side."""
    indices = [index for _, index in _indexed(gatherer.model, gatherer.views)]
    indices.append(_places(gatherer.model, gatherer.rest))
    first = next(gatherer.model.parameters())
    dtype = statistics_dtype(first.dtype)
    check_size(f"the dense {size} x {size} matrix", size, dtype, limit)
    block = blocks.Exact((size, 1), damping=0.0, decay=1.0, dtype=dtype, device=first.device)
    for found in gatherer.over(batches):
        J = _joint_gradients(found, indices, size)
        block.observe(Sample(J.new_ones(J.shape[1], 1, 1), J.unsqueeze(2)))
        commit(block)
    index = torch.arange(size, device=first.device).unsqueeze(1)
    return Part("", index, block)


def _joint_gradients(found: Gathered, indices: list[Tensor], size: int) -> Tensor:
    """Per-example gradients with respect to all parameters, ``[c, n, P]``."""
    if found.rest is not None:
        some = found.rest
    else:
        g = next(iter(found.samples.values())).g
        some = g.reshape(-1, *g.shape[-4:])[0, ..., 0, 0].unsqueeze(-1)  # [c, n, 1]
    J = some.new_zeros(*some.shape[:2], size)
    if found.rest is not None:
        J[..., indices[-1]] = found.rest.to(J)
    for k, sample in found.samples.items():
        gradients = torch.cat(list(sample.gradients()), dim=-3)  # [(q,) c, n, o, i]
        if len(indices[k].shape) == 3:
            gradients = gradients.movedim(0, -3)
        J[..., indices[k]] = gradients
    return J


def _indexed(model: nn.Module, views: list[LayerView]) -> list[tuple[LayerView, Tensor]]:
    """Each view with the places of its matrix entries in the vector of all parameters."""
    places = _place_of(model)
    return [
        (view, view.to_matrix({k: s.of(places[id(s.parameter)]) for k, s in view.slots().items()}))
        for view in views
    ]


def _place_of(model: nn.Module) -> dict[int, Tensor]:
    """For each parameter the places of its entries in the vector of all."""
    places, start = {}, 0
    for p in model.parameters():
        places[id(p)] = torch.arange(start, start + p.numel(), device=p.device).reshape(p.shape)
        start += p.numel()
    return places


def _places(model: nn.Module, parameters: list[nn.Parameter]) -> Tensor:
    places = _place_of(model)
    found = [places[id(p)].flatten() for p in parameters]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)


def _rest(model: nn.Module, views: list[LayerView]) -> list[nn.Parameter]:
    """The trained parameters in no view."""
    covered = {id(p) for view in views for p in view.parameters().values()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in covered]


def _new_block(block: type[Block], view: LayerView, shared: Shared, limit: int) -> Block:
    weight = next(iter(view.parameters().values()))
    dtype = statistics_dtype(weight.dtype)
    block = blocks.Exact if view.exact else block
    if issubclass(block, blocks.Exact):
        o, i = view.shape
        check_size(f"the exact block of layer {view.name!r}", o * i, dtype, limit)
    return block(
        view.shape, groups=view.groups, diagonal_input=view.diagonal_input, damping=Constant(0.0),
        decay=1.0, shared=shared, dtype=dtype, device=weight.device,
    )  # fmt: skip


def _refuse_unseen(unseen: list[str]) -> None:
    if unseen:
        raise ValueError(
            f"no gradient reached layers {', '.join(unseen)}: they take no part in the logits "
            "(or their forward was bypassed); freeze them, or leave them out of the model"
        )
