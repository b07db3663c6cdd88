"""Taps, blocks and a schedule: ``step()`` turns gradients into natural gradients, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natgrad import distributed
from natgrad.arguments import check_choice, check_coverage, check_range
from natgrad.blocks import Block, Exact
from natgrad.blocks.base import Shared
from natgrad.damping import Damping, checked, on_eigenvalues
from natgrad.decompose import decompose_each
from natgrad.fused import FusedGradients
from natgrad.layers import LayerView, views_of
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey
from natgrad.report import Report, report_on
from natgrad.sample import Sample, statistics_dtype
from natgrad.tap import Tap

__all__ = ["Preconditioner"]

FAILURES_ALLOWED = 3  #: failed decompositions of a layer in a row, before it is an error
HELD_BYTES = 2**30  #: rows held for the next basis; what comes beyond is measured in the old one


@dataclass
class Layer:
    """One covered layer: how it is read, its curvature block, and where the step stands."""

    view: LayerView
    block: Block
    failures: int = 0
    natural: bool = False  #: whether ``.grad`` is the natural gradient already (fused)
    plain: Tensor | None = None  #: the plain gradient of a fused layer, where kl_clip needs it
    held: list[Sample] = field(default_factory=list)  #: to measure the scale in the next basis


class Preconditioner:
    """Replace every gradient by its natural gradient, in front of any torch optimizer.

    ``M <- (F_l + damping)^-1 M`` for the gradient matrix ``M [o, i]`` of every layer that a view
    covers, with ``F_l`` approximated by ``block``. Other parameters keep their plain gradient and
    stand in :meth:`report`. The training loop stays as it is::

        pre = natgrad.Preconditioner(model, damping=1e-3, likelihood=Categorical())
        loss.backward(); pre.step(); adam.step(); adam.zero_grad()

    Steps count from 0: statistics when ``k % stats_every == 0``, decompositions when
    ``k % refresh_every == 0``.

    Args:
        model: the model as the training loop calls it; its ``forward`` must be what is called.
        block: class of the curvature blocks, from :mod:`natgrad.blocks`.
        damping: a number, whose meaning the block says (K-FAC: factored Tikhonov with pi), or an
            object from :mod:`natgrad.damping`.
        likelihood: the model's output distribution, for the true Fisher; None takes the empirical
            Fisher from the user's own backward pass.
        fisher: ``"sampled"`` or ``"exact"``, with a likelihood.
        stats_every: steps between statistics.
        refresh_every: steps between decompositions, a multiple of which needs new statistics.
        decay: weight of the old statistics in the bias-corrected average.
        reduction: how the user's loss is reduced over examples; used by the empirical Fisher only.
        kl_clip: bound ``kappa`` on ``lr^2 sum_l <U_l, M_l>``: the whole step is scaled by
            ``min(1, sqrt(kappa / that))`` (MATH 7). None switches it off.
        shared: ``"expand"`` or ``"reduce"``, for layers with shared positions.
        strict: raise if a parameter is not covered, instead of leaving its gradient plain.
        fused: let each layer's backward pass put the natural gradient into ``.grad`` straight from
            the rows, except on steps that change what is solved with. Cheaper where a batch has
            fewer rows than the layer is wide; gradient clipping and accumulation then see natural
            gradients, and every backward pass through the model must be one of the loss.
        logits: which entry of the model's output is the logits: an index, a key or attribute name,
            or a function of the output. Needed only where the output holds several tensors and
            none is named ``logits``.
        seed: seed of the generator that draws the sampled Fisher's targets.

    Raises:
        ValueError: an argument out of range, nothing to precondition, or ``strict`` and a
            parameter that no view covers.
    """

    def __init__(
        self,
        model: nn.Module,
        block: type[Block],
        *,
        damping: float | Damping = 1e-3,
        likelihood: Likelihood | None = None,
        fisher: Literal["sampled", "exact"] = "sampled",
        stats_every: int = 1,
        refresh_every: int = 1,
        decay: float = 0.95,
        reduction: Literal["mean", "sum"] = "mean",
        kl_clip: float | None = None,
        shared: Shared = "expand",
        strict: bool = False,
        fused: bool = False,
        logits: LogitsKey = None,
        seed: int = 0,
    ) -> None:
        check_choice("fisher", fisher, ("sampled", "exact"))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("shared", shared, ("expand", "reduce"))
        check_range("stats_every", stats_every, stats_every >= 1, "at least 1")
        check_range("refresh_every", refresh_every, refresh_every >= 1, "at least 1")
        check_range("decay", decay, 0 <= decay <= 1, "in [0, 1]")
        check_range("kl_clip", kl_clip, kl_clip is None or kl_clip > 0, "positive or None")
        self.model, self.damping = model, checked(damping)
        self.stats_every, self.refresh_every, self.kl_clip = stats_every, refresh_every, kl_clip
        self.steps = self.skipped = 0
        views, self.uncovered = views_of(model)
        check_coverage(views, self.uncovered, strict)
        self.layers = [
            Layer(view, _new_block(block, view, damping=self.damping, decay=decay, shared=shared))
            for view in views
        ]
        self.blocks = nn.ModuleDict(
            {
                f"{k}:{layer.view.name}".replace(".", "/"): layer.block
                for k, layer in enumerate(self.layers)
            }
        )
        self._moments = [moment for layer in self.layers for moment in layer.block.moments()]
        self._parameters = list(model.parameters())
        if fused:  # before the tap, which must see the outputs that fusing leaves
            FusedGradients(
                views, wanted=self._fuses, ignored=lambda: self.tap.running, solve=self._solve_rows
            )
        self.tap = Tap(
            model, views, self._observe, likelihood=likelihood, fisher=fisher, logits=logits,
            reduction=reduction, seed=seed,
        )  # fmt: skip

    def _observe(self, index: int, sample: Sample) -> None:
        layer = self.layers[index]
        layer.block.observe(sample)
        if not layer.block.needs_rescale:
            return
        if self.steps % self.refresh_every == 0 and self._held_bytes() < HELD_BYTES:
            layer.held.append(sample)  # the basis changes in this step: measure in the new one
        else:
            layer.block.rescale(sample)

    def _held_bytes(self) -> int:
        return sum(sample.nbytes for layer in self.layers for sample in layer.held)

    def _fuses(self, index: int) -> bool:
        block = self.layers[index].block
        changes = self.stats_every if block.solves_with_moments else self.refresh_every
        return block.is_ready and self.steps % changes != 0 and self.steps % self.refresh_every != 0

    def _solve_rows(self, index: int, rows: Sample) -> Tensor:
        layer = self.layers[index]
        layer.natural = True
        if self.kl_clip is not None:
            M = rows.gradient_sum()
            layer.plain = M if layer.plain is None else layer.plain + M
        return layer.block.solve_rows(rows)

    # one step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, lr: float | Callable[[nn.Parameter], float] = 1.0) -> bool:
        """Precondition every covered gradient in place.

        A step whose gradients or statistics are not finite is skipped whole: nothing enters the
        statistics, the step does not count, and the caller must leave the parameters alone.

        Args:
            lr: learning rate, or a function of the parameter, used by ``kl_clip`` only.

        Returns:
            False if the step was skipped.

        Raises:
            RuntimeError: no statistics have ever been seen, or a decomposition failed three times
                in a row.
        """
        if not self._finite():
            self.discard()
            self.skipped += 1
            return False
        if self.steps % self.stats_every == 0:
            self._commit()
        if self.steps % self.refresh_every == 0:
            self._refresh()
        self._precondition(lr)
        self.steps += 1
        self.tap.draws.keep()
        self.tap.active = self.steps % self.stats_every == 0
        return True

    def _finite(self) -> bool:
        """Whether every gradient and everything that waits to enter a moment is finite."""
        tensors = [p.grad for p in self._parameters if p.grad is not None]
        tensors += [m.pending for m in self._moments if m.pending is not None]
        if not tensors:
            return True
        # a norm is not finite if any entry is not; half precision would overflow in the sum
        norms = torch._foreach_norm([x.to(statistics_dtype(x.dtype)) for x in tensors])
        return bool(torch.isfinite(torch.stack([norm.to("cpu") for norm in norms])).all())

    def discard(self) -> None:
        """Drop what backward passes since the last step have left, as if they had not been."""
        self.tap.draws.rewind()
        for layer in self.layers:
            layer.natural, layer.plain = False, None
            layer.held.clear()
        for moment in self._moments:
            moment.discard()

    def _commit(self) -> None:
        distributed.sum_pending(self._moments)
        for moment in self._moments:
            moment.commit()

    def _refresh(self) -> None:
        observed = [layer for layer in self.layers if layer.block.observed()]
        if not observed:
            raise RuntimeError(
                "natgrad has no statistics: between steps, call the model itself (not its parts) "
                "in training mode with gradients enabled, and run backward() through its output"
            )
        found = decompose_each([layer.block.factors() for layer in observed])
        for layer, results in zip(observed, found, strict=True):
            good = {name: result for name, result in results.items() if result is not None}
            if len(good) == len(results):
                layer.block.load(good)
                layer.failures = 0
            else:
                self._failed(layer, sorted(set(results) - set(good)))
        self._rescale()

    def _rescale(self) -> None:
        """Measure the scales that depend on the basis, in the new one."""
        for layer in self.layers:
            for sample in layer.held:
                layer.block.rescale(sample)
            layer.held.clear()
        self._commit()

    def _failed(self, layer: Layer, names: list[str]) -> None:
        layer.failures += 1
        kept = "the last good one stays" if layer.block.is_ready else "its gradient stays plain"
        sizes = {name: tuple(layer.block.factors()[name].matrix.shape) for name in names}
        message = (
            f"natgrad: decomposition of {sizes} of layer {layer.view.name!r} failed, in float64 "
            f"too ({layer.failures} in a row); {kept}. Raise the damping, or look for huge or "
            "constant activations in this layer"
        )
        if layer.failures >= FAILURES_ALLOWED:
            raise RuntimeError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)

    def _precondition(self, lr: float | Callable[[nn.Parameter], float]) -> None:
        solved: list[tuple[LayerView, Tensor, Tensor]] = []
        for layer in self.layers:
            M = layer.view.grad()
            if M is None or not layer.block.is_ready:
                continue
            if layer.natural:
                U = M
                M = U if layer.plain is None else layer.plain
            else:
                U = layer.block.solve(M.to(layer.block.dtype))
            solved.append((layer.view, M, U))
            layer.natural, layer.plain = False, None
        if self.kl_clip is not None and solved:
            scale = _kl_scale(solved, lr, self.kl_clip)
            solved = [(view, M, U * scale) for view, M, U in solved]
        for view, _, U in solved:
            view.set_grad(U)

    # state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only: loads with ``torch.load(weights_only=True)``."""
        return {
            "blocks": dict(self.blocks.state_dict()),
            "failures": [layer.failures for layer in self.layers],
            "held": [[sample.state() for sample in layer.held] for layer in self.layers],
            "tap": self.tap.draws.state_dict(),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on bit-exactly where the saved preconditioner stopped.

        Raises:
            RuntimeError: the state belongs to another model; names the layers.
        """
        self.discard()
        self.blocks.load_state_dict(state["blocks"])
        for layer, failures in zip(self.layers, state["failures"], strict=True):
            layer.failures = failures
        for layer, held in zip(self.layers, state["held"], strict=True):
            layer.held = [Sample.from_state(entry) for entry in held]
        self.tap.draws.load_state_dict(state["tap"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.tap.active = self.steps % self.stats_every == 0

    def report(self) -> Report:
        """Every parameter: how it is handled, block sizes, memory, and why."""
        return report_on(self.model, [(x.view, x.block) for x in self.layers], self.uncovered)


def _new_block(block: type[Block], view: LayerView, **kwargs: Any) -> Block:
    weight = next(iter(view.parameters().values()))
    dtype = statistics_dtype(weight.dtype)
    if view.exact:
        block = Exact
        kwargs["damping"] = on_eigenvalues(kwargs["damping"])
    return block(
        view.shape, groups=view.groups, diagonal_input=view.diagonal_input, dtype=dtype,
        device=weight.device, **kwargs,
    )  # fmt: skip


def _kl_scale(
    solved: list[tuple[LayerView, Tensor, Tensor]],
    lr: float | Callable[[nn.Parameter], float],
    kl_clip: float,
) -> Tensor:
    """``min(1, sqrt(kappa / (lr^2 sum_l <U_l, M_l>)))`` (MATH 7)."""
    total = torch.zeros((), dtype=solved[0][2].dtype, device=solved[0][2].device)
    for view, M, U in solved:
        rate = lr(next(iter(view.parameters().values()))) if callable(lr) else lr
        total += rate**2 * (U * M).sum().to(total)
    return (kl_clip / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt().clamp_max(1)
