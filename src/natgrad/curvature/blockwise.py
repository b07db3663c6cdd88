"""A block for every layer, decomposed together and solved one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import distributed
from natgrad.blocks import Block
from natgrad.blocks.base import Shared
from natgrad.curvature.base import NO_STATISTICS, RowsOf, Solved
from natgrad.curvature.layer import Layer, key_of, new_block
from natgrad.curvature.renewal import in_parts, renew
from natgrad.curvature.stacks import Stacks
from natgrad.damping import Damping, LayerCurvature, NetworkDamping
from natgrad.flops import Rows
from natgrad.layers import LayerView
from natgrad.moments import Moment
from natgrad.sample import Sample
from natgrad.schedule import EVERY

__all__ = ["HELD_BYTES", "Blockwise"]

HELD_BYTES = 2**30  #: rows held for the next basis; what comes beyond is measured in the old one


class Blockwise:
    """Block-diagonal curvature: ``U_l = (F_l + damping)^-1 M_l`` for each layer by itself.

    Args:
        block: class of the blocks.
        damping: a number or a damping object.
        decay: weight of the old statistics.
        shared: how positions of shared layers are treated.
        scaled_by_batch: whether the samples are of the user's own loss, a mean over examples.
        scaled_by_loss: whether the samples are of the user's own loss at all.
        keeps_plain: whether the plain gradients of fused layers are wanted too.
        options: whatever else the blocks take; those that are None are left out.
    """

    def __init__(
        self,
        block: type[Block],
        *,
        damping: float | Damping,
        decay: float,
        shared: Shared,
        scaled_by_batch: bool,
        scaled_by_loss: bool,
        keeps_plain: bool,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.block = block
        self.damping: object = damping
        given = {name: value for name, value in options.items() if value is not None}
        self.settings = {"damping": damping, "decay": decay, "shared": shared, **given}
        self.scaled_by_batch, self.scaled_by_loss = scaled_by_batch, scaled_by_loss
        self.keeps_plain = keeps_plain
        self.layers: list[Layer] = []
        self._stacks = Stacks([])
        self._has_room = False
        self.blocks = nn.ModuleDict()
        self._known: dict[str, Layer] = {}
        self._unclaimed: dict[str, dict[str, Any]] = {}  # loaded, for layers not trained now

    def choose(self, views: Sequence[LayerView]) -> None:
        """The layers of these views; a layer seen before goes on where it stood."""
        self.layers = [self._layer(view) for view in views]
        self._stacks = Stacks([layer.block for layer in self.layers])

    def _layer(self, view: LayerView) -> Layer:
        key = key_of(view)
        known = self._known.get(key)
        if known is not None and _same(known.view, view):
            known.view = view
        else:
            layer = Layer(view, new_block(self.block, view, **self.settings))
            self._known[key] = layer
            self.blocks[key] = layer.block
            if key in self._unclaimed:
                self._load(layer, self._unclaimed.pop(key))
        return self._known[key]

    # statistics ---------------------------------------------------------------------------------

    def observe(self, index: int, sample: Sample, number: int, refreshing: bool) -> None:
        """Let the sample wait in the block's moments; hold it where the basis will change."""
        layer = self.layers[index]
        if self.scaled_by_batch:
            sample = sample.scaled(layer.loss.add(sample.examples))
        view, columns = layer.view, sample.g.shape[-4]
        kept = view.leaves_rows and sample.positions == 1
        layer.rows = Rows(
            sample.examples, sample.positions, columns, view.kernel, sample.input_products(), kept
        )
        self._make_room()
        layer.block.observe(sample)
        if not layer.block.needs_rescale:
            return
        if refreshing and self._held_bytes() < HELD_BYTES:
            layer.held.append(sample.kept())
        else:
            layer.block.rescale(sample)

    def _make_room(self) -> None:
        """Take the memory of what will wait, with the first sample of a step.

        Scattered among what comes and goes in a backward pass, it would leave holes of no use.
        """
        if not self._has_room:
            self._has_room = True
            for layer in self.layers:
                for moment in layer.block.basis_moments():
                    moment.make_room()

    def _held_bytes(self) -> int:
        return sum(sample.nbytes for layer in self.layers for sample in layer.held)

    def waiting(self) -> Iterable[tuple[str, Tensor]]:
        """What moments are to take in; its norms bound what held samples will add to scales too."""
        for layer in self.layers:
            for moment in layer.block.moments():
                if (witness := moment.witness()) is not None:
                    yield layer.view.name, witness

    def discard(self) -> None:
        """Drop what waits, of all layers ever seen."""
        self._has_room = False
        for layer in self._known.values():
            layer.discard()

    def commit(self, loss_scale: float, due: Collection[int]) -> None:
        """Moments of the basis first; of the scale once the new basis is there, if one comes."""
        self._has_room = False
        moments: list[Moment] = []
        for index, layer in enumerate(self.layers):
            factor = layer.loss.factor() if self.scaled_by_batch else 1.0
            factor = factor / loss_scale if self.scaled_by_loss else factor
            layer.loss.clear()
            for moment in layer.block.moments():
                moment.correct(factor)
            layer.held = [sample.scaled(factor) for sample in layer.held]
            if index in due:
                moments += layer.block.basis_moments()
            else:
                layer.measure()
                moments += layer.block.moments()
        _commit(moments)

    # decompositions -----------------------------------------------------------------------------

    def refresh(self, due: Collection[int] = EVERY) -> None:
        """Decompose the layers due that have statistics, and measure scales in the new bases.

        Raises:
            RuntimeError: no layer has statistics, or one failed too often in a row.
        """
        observed = [index for index, layer in enumerate(self.layers) if layer.block.observed()]
        if not observed:
            raise RuntimeError(NO_STATISTICS)
        self._give_damping(due)
        chosen = [self.layers[index] for index in observed if index in due]
        for part in in_parts(chosen):
            renew(part)
        for layer in self.layers:
            layer.measure()
        _commit([m for layer in self.layers for m in layer.block.moments()])

    def _give_damping(self, due: Collection[int]) -> None:
        """Ask a damping that looks at all layers what each of those due gets."""
        if not isinstance(self.damping, NetworkDamping):
            return
        facts = [
            LayerCurvature(layer.block.trace(), layer.block.dim, layer.view.kind)
            for layer in self.layers
        ]
        found = self.damping.across(facts)
        given = [None] * len(facts) if found is None else list(found)
        if len(given) != len(facts):
            raise ValueError(
                f"natgrad: {type(self.damping).__name__}.across gave {len(given)} dampings for "
                f"{len(facts)} layers; it must give one for each, or None"
            )
        for index, (layer, damping) in enumerate(zip(self.layers, given, strict=True)):
            if index in due:
                layer.give(damping)

    # gradients ----------------------------------------------------------------------------------

    def solves_as_before(self, index: int, statistics: bool) -> bool:
        """Whether a layer's gradient is solved with what is known, if ``statistics`` enter or not.

        False also where nothing is known yet.
        """
        block = self.layers[index].block
        return block.is_ready and not (statistics and block.solves_with_moments)

    def solve_rows(self, index: int, rows: Sample) -> Tensor:
        """The natural gradient of one layer from the rows of the user's backward pass."""
        layer = self.layers[index]
        layer.natural = True
        if self.keeps_plain:
            M = rows.gradient_sum()
            layer.plain = M if layer.plain is None else layer.plain + M
        return layer.block.solve_rows(rows)

    def rows_pay(self, index: int, count: int) -> bool:
        """Whether so many rows of a layer are the cheaper way to its natural gradient."""
        return self.layers[index].block.rows_pay(count)

    def solve(self, rows: RowsOf | None = None) -> list[Solved]:
        """Every layer with a gradient and a decomposition."""
        if any(layer.block.solves_with_moments for layer in self.layers):
            self._give_damping(EVERY)
        found = (_wanted(layer, k, rows) for k, layer in enumerate(self.layers))
        wanted = {each.index: each for each in found if each is not None}
        together = self._stacks.solve({k: each.M for k, each in wanted.items() if each.is_usual})
        solved = [_solved(each, together.get(k)) for k, each in wanted.items()]
        for layer in self.layers:
            layer.natural, layer.plain = False, None
        return solved

    def quadratic(self, directions: Sequence[tuple[LayerView, Tensor]]) -> Tensor:
        """``sum_l <delta_l, F_l delta_l>``, one product with each block."""
        blocks = {id(layer.view): layer.block for layer in self.layers}
        terms = []
        for view, delta in directions:
            block = blocks[id(view)]
            delta = delta.to(block.dtype)
            terms.append((delta * block.product(delta)).sum())
        return torch.stack([term.to(terms[0]) for term in terms]).sum()

    def figures(self) -> dict[str, float]:
        """Damping, effective rank and extreme eigenvalues of each layer's damped block."""
        found: dict[str, float] = {}
        for layer in self.layers:
            if not layer.block.is_ready:
                continue
            smallest, largest = layer.block.extremes()
            found |= {
                f"{layer.view.name}/damping": float(layer.block.ridge()),
                f"{layer.view.name}/effective_rank": float(layer.block.effective_rank()),
                f"{layer.view.name}/eigenvalue_min": float(smallest),
                f"{layer.view.name}/eigenvalue_max": float(largest),
                f"{layer.view.name}/failures": float(layer.failures),
            }
        return found

    # state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of all layers ever seen, by name."""
        layers = {
            key: {"block": dict(layer.block.state_dict()), **layer.state_dict()}
            for key, layer in self._known.items()
        }
        return {"kind": self.block.__name__, "layers": {**self._unclaimed, **layers}}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise unless the state is of the same kind of block, damping, and shapes.

        Raises:
            RuntimeError: names the layer and the factor.
        """
        if state["kind"] != self.block.__name__:
            raise RuntimeError(
                f"natgrad: the checkpoint holds the curvature of {state['kind']}, this is "
                f"{self.block.__name__}"
            )
        for key, layer in self._known.items():
            if key not in state["layers"]:
                name = layer.view.name
                raise RuntimeError(f"natgrad: the checkpoint has no curvature of layer {name!r}")
            _check_block(layer, state["layers"][key]["block"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it; layers that are not trained now wait until they are."""
        self.discard()
        self._unclaimed = dict(state["layers"])
        for key, layer in self._known.items():
            self._load(layer, self._unclaimed.pop(key))

    def _load(self, layer: Layer, state: Mapping[str, Any]) -> None:
        _check_block(layer, state["block"])
        layer.block.load_state_dict(state["block"])
        layer.load_state_dict(state)


def _same(one: LayerView, other: LayerView) -> bool:
    """Whether two views are of the same parameters; a layer may have been replaced by another."""
    pairs = zip(one.slots().values(), other.slots().values(), strict=True)
    return all(mine.parameter is theirs.parameter for mine, theirs in pairs)


def _commit(moments: list[Moment]) -> None:
    distributed.sum_pending(moments)
    for moment in moments:
        moment.commit()


@dataclass(frozen=True)
class _Wanted:
    """A layer whose natural gradient is wanted."""

    index: int
    layer: Layer
    M: Tensor
    rows: Sample | None  #: that ``M`` is made of, if they are known

    @property
    def is_usual(self) -> bool:
        """Whether it is solved from ``M``."""
        return self.rows is None and not self.layer.natural


def _wanted(layer: Layer, index: int, rows: RowsOf | None) -> _Wanted | None:
    """None without a gradient or a decomposition."""
    if not layer.block.is_ready:
        return None
    explained = None if rows is None else rows(index)
    if explained is not None:
        return _Wanted(index, layer, explained.M, explained.rows)
    M = layer.view.grad()
    return None if M is None else _Wanted(index, layer, M, None)


def _solved(wanted: _Wanted, U: Tensor | None) -> Solved:
    """From ``M``, from its rows, or ``U`` where that is known already."""
    layer, M, rows = wanted.layer, wanted.M, wanted.rows
    plain: Tensor | None = M
    if layer.natural:
        U, plain = M, layer.plain
    elif rows is not None:
        U = layer.block.solve_rows(rows)
    elif U is None:
        U = layer.block.solve(M.to(layer.block.dtype))
    return Solved(layer.view, plain, U if layer.scale == 1 else U * layer.scale)


def _check_block(layer: Layer, saved: Mapping[str, Tensor]) -> None:
    waits = ("pending", "pending_weight")
    own = {k: v for k, v in layer.block.state_dict().items() if not k.endswith(waits)}
    found = {k: v for k, v in saved.items() if not k.endswith(waits)}
    for name in sorted(own.keys() | found.keys()):
        here, there = (tuple(x[name].shape) if name in x else "nothing" for x in (own, found))
        if here != there:
            raise RuntimeError(
                f"natgrad: layer {layer.view.name!r} does not fit the checkpoint: {name} is "
                f"{there} there and {here} here (another model, or another kind of damping)"
            )
