"""Taps, curvature and a schedule: ``step()`` turns gradients into natural gradients, in place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natgrad import distributed, guard
from natgrad.arguments import check_choice, check_coverage, check_range
from natgrad.blocks import Block
from natgrad.blocks.base import Shared
from natgrad.checkpoints import check_parameters, shapes_of
from natgrad.clip import Bounds, Rate
from natgrad.curvature import Blockwise, Curvature, Joint, Layer, Solved, remark_unheard
from natgrad.damping import Damping, checked
from natgrad.inventory import Inventory
from natgrad.layers import LayerView, Uncovered, views_of
from natgrad.likelihood import Likelihood
from natgrad.listening import Listening
from natgrad.logits import LogitsKey
from natgrad.machine import Machine
from natgrad.pace import remark_on_pace
from natgrad.report import Report, report_on
from natgrad.sample import Sample
from natgrad.schedule import Schedule
from natgrad.tap import Tap

__all__ = ["Preconditioner"]


class Preconditioner:
    """Replace every gradient by its natural gradient, in front of any torch optimizer.

    ``M <- (F_l + damping)^-1 M`` for the gradient matrix ``M [o, i]`` of every layer that a view
    covers, with ``F_l`` approximated by ``block``. Other parameters keep their plain gradient and
    stand in :meth:`report`. The training loop stays as it is::

        pre = natgrad.Preconditioner(model, damping=1e-3, likelihood=Categorical())
        loss.backward(); pre.step(); adam.step(); adam.zero_grad()

    Steps count from 0: statistics when ``k % stats_every == 0``, decompositions when
    ``k % refresh_every == 0`` (:class:`natgrad.schedule.Schedule`).

    Args:
        model: the model as the training loop calls it; its ``forward`` must be what is called.
        block: class of the curvature blocks, from :mod:`natgrad.blocks`; or
            :class:`natgrad.curvature.Joint`, all layers' exact Fisher of the current batch.
        damping: a number, whose meaning the block says (K-FAC: factored Tikhonov with pi), or an
            object from :mod:`natgrad.damping`.
        likelihood: the model's output distribution, for the true Fisher; None takes the empirical
            Fisher from the user's own backward pass.
        fisher: ``"sampled"`` or ``"exact"``, with a likelihood.
        stats_fraction: of every batch whose statistics are taken, its first examples; what they
            cost falls with it, their noise grows. Batches should be shuffled.
        stats_every: steps between statistics.
        refresh_every: steps between decompositions, a multiple of which needs new statistics.
        burn_in: the first so many steps take statistics and decompose, each of them.
        spread: share the layers' decompositions out over the interval, each at the step ``k %
            refresh_every`` that is its own, with about the same work for all such steps; the first
            step, those of ``burn_in`` and one after a step taken back decompose everything.
        decay: weight of the old statistics in the bias-corrected average.
        reduction: how the user's loss is reduced over examples; used by the empirical Fisher only.
        kl_clip: bound ``kappa`` on ``lr^2 sum_l <U_l, M_l>``: the whole step is scaled by
            ``min(1, sqrt(kappa / that))`` (MATH 7; others call it the norm constraint, for it is
            the squared length of the step in the damped Fisher metric). None switches it off.
        max_norm: bound on the Euclidean length ``lr |U|_2`` of the whole step, which reins in
            directions without curvature too. None switches it off.
        shared: ``"expand"`` or ``"reduce"``, for layers with shared positions.
        strict: raise if a parameter is not covered, instead of leaving its gradient plain.
        fused: let each layer's backward pass put the natural gradient into ``.grad`` straight from
            the rows, except in convolutions and on steps that change what is solved with. Cheaper
            where a batch has fewer rows than the layer is wide; gradient clipping and accumulation
            then see natural gradients, and every backward pass through the model must be one of
            the loss. Without effect in several processes, whose gradients must be averaged first.
        product_dtype: of the matrix products that turn gradients into natural ones, such as
            ``torch.bfloat16``; everything else stays as it is. None takes the statistics' dtype.
        widest: replace factors wider than this by blocks of about equal width on their diagonal
            (KFAC, TKFAC, EKFAC, TEKFAC): an approximation, with ``d widest^2`` to decompose in
            place of ``d^3``. None keeps them whole.
        eigen: ``"warm"`` takes a step of orthogonal iteration from the last eigenbasis in place of
            an eigendecomposition, from the second on: an approximate basis, in which EKFAC and
            TEKFAC measure their scale as ever. Inverted factors (KFAC, TKFAC) don't know of it.
        logits: which entry of the model's output is the logits: an index, a key or attribute name,
            or a function of the output. Needed only where the output holds several tensors and
            none is named ``logits``.
        seed: seed of the generator that draws the sampled Fisher's targets.
        nonfinite: what to do with a step whose gradients or statistics are not finite: ``"skip"``
            it whole, or ``"raise"`` an error that names them, after dropping them. ``"zero"`` skips
            steps with statistics too, but does not look at others, which on an accelerator would
            wait for all that comes before: what is not finite gives a natural gradient of zero
            there, and the step counts.

    Raises:
        ValueError: an argument out of range, nothing to precondition, or ``strict`` and a
            parameter that no view covers.
    """

    def __init__(
        self,
        model: nn.Module,
        block: type[Block] | type[Joint],
        *,
        damping: float | Damping = 1e-3,
        likelihood: Likelihood | None = None,
        fisher: Literal["sampled", "exact"] = "sampled",
        stats_fraction: float = 1.0,
        stats_every: int = 1,
        refresh_every: int = 1,
        burn_in: int = 0,
        spread: bool = False,
        decay: float = 0.95,
        reduction: Literal["mean", "sum"] = "mean",
        kl_clip: float | None = None,
        max_norm: float | None = None,
        shared: Shared = "expand",
        strict: bool = False,
        fused: bool = False,
        product_dtype: torch.dtype | None = None,
        widest: int | None = None,
        eigen: Literal["fresh", "warm"] = "fresh",
        logits: LogitsKey = None,
        seed: int = 0,
        nonfinite: Literal["skip", "raise", "zero"] = "skip",
    ) -> None:
        check_choice("fisher", fisher, ("sampled", "exact"))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("shared", shared, ("expand", "reduce"))
        check_choice("eigen", eigen, ("fresh", "warm"))
        check_range("widest", widest, widest is None or widest >= 1, "at least 1, or None")
        check_choice("nonfinite", nonfinite, ("skip", "raise", "zero"))
        check_range("decay", decay, 0 <= decay <= 1, "in [0, 1]")
        check_range("stats_fraction", stats_fraction, 0 < stats_fraction <= 1, "in (0, 1]")
        self.model, self.strict, self.guard = model, strict, guard.Guard(nonfinite)
        self.schedule = Schedule(stats_every, refresh_every, burn_in, spread=spread)
        self.bounds, self.damping = Bounds(kl_clip, max_norm), checked(damping)
        self.steps = 0
        self.keeps_solved = False  #: whether the last step's gradients stay in :attr:`solved`
        self.solved: list[Solved] = []
        self._remarked = self._paced = False
        scaled = {
            "scaled_by_loss": likelihood is None,
            "scaled_by_batch": likelihood is None and reduction == "mean",
        }
        self.curvature: Curvature
        if issubclass(block, Joint):
            check_range("fused", fused, not fused, "False for the exact natural gradient")
            check_range("spread", spread, not spread, "False for the exact natural gradient")
            check_range("widest", widest, widest is None, "None for the exact natural gradient")
            check_choice("eigen", eigen, ("fresh",))  # nothing is started from
            self.curvature = block(damping=self.damping, **scaled)
        else:
            options = {
                "product_dtype": product_dtype, "widest": widest,
                "eigen": None if eigen == "fresh" else eigen,
            }  # fmt: skip
            self.curvature = Blockwise(
                block, damping=self.damping, decay=decay, shared=shared,
                keeps_plain=kl_clip is not None, options=options, **scaled,
            )  # fmt: skip
        views = self._read()
        # residuals need no layers: without, the exact optimizer refuses steps on gradients alone
        check_coverage(views, self.uncovered, strict, some=not issubclass(block, Joint))
        self.listening = Listening(  # before the tap, which must see the outputs that fusing leaves
            views, self.curvature, fused=fused, ignored=self._ignored, coming=self._coming
        )
        self.tap = Tap(
            model, views, self._observe, likelihood=likelihood, fisher=fisher, logits=logits,
            fraction=1.0 if issubclass(block, Joint) else stats_fraction,
            reduction=reduction, seed=seed, before=self._before,
        )  # fmt: skip

    # layers -------------------------------------------------------------------------------------

    @property
    def skipped(self) -> int:
        """Steps that were not taken because something was not finite."""
        return self.guard.skipped

    @property
    def layers(self) -> list[Layer]:
        """The layers trained now, each with its view and block; none for the exact curvature."""
        return self.curvature.layers if isinstance(self.curvature, Blockwise) else []

    def _read(self) -> list[LayerView]:
        """Views of what is trained now."""
        self._inventory = Inventory(self.model)
        self.uncovered: list[Uncovered]
        self.views, self.uncovered = views_of(self.model)
        self.curvature.choose(self.views)
        self.schedule.share_out([layer.cost() for layer in self.layers])
        return self.views

    def _before(self) -> None:
        """A forward pass in training begins."""
        if self._inventory.changed():
            self._read_again()
        elif any(True for _ in self.curvature.waiting()) and guard.no_gradients(
            self._inventory.parameters
        ):
            self.discard()  # of a backward whose gradients were dropped without a step

    def _read_again(self) -> None:
        views = self._read()
        check_coverage(views, self.uncovered, self.strict, some=False)
        self.listening.watch(views)
        self.tap.watch(views)

    def _observe(self, index: int, sample: Sample) -> None:
        refreshing = index in self.schedule.due(self.steps)
        self.curvature.observe(index, sample, self.tap.delivering, refreshing)

    def _ignored(self) -> bool:
        return self.tap.running

    def _coming(self) -> tuple[bool, Collection[int]]:
        return self.schedule.takes_statistics(self.steps), self.schedule.due(self.steps)

    # one step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, lr: Rate = 1.0, *, loss_scale: float = 1.0) -> bool:
        """Precondition every covered gradient in place.

        A step whose gradients or statistics are not finite is skipped whole: nothing enters the
        statistics, the step does not count, and the caller must leave the parameters alone.

        Args:
            lr: learning rate, or a function of the parameter, used by ``kl_clip`` and ``max_norm``
                only.
            loss_scale: what the loss was multiplied by before ``backward()`` (a GradScaler's
                ``get_scale()``), used by the empirical Fisher only. Gradients are taken as they
                are, unscaled or not.

        Returns:
            False if the step was skipped.

        Raises:
            RuntimeError: no statistics have ever been seen, or a decomposition failed three times
                in a row, or the exact natural gradient is wanted in several processes.
            FloatingPointError: not finite, with ``nonfinite="raise"``.
        """
        if isinstance(self.curvature, Joint) and distributed.world_size() > 1:
            raise RuntimeError(
                "natgrad: the exact natural gradient needs the gradients of all examples in one "
                "process, this is one of several; train in one, or take natgrad.TEKFAC"
            )
        if changed := self._inventory.changed():
            self._read_again()
        due, statistics = self.schedule.due(self.steps), self.schedule.takes_statistics(self.steps)
        looks = self.guard.nonfinite != "zero" or bool(due) or any(self.curvature.waiting())
        finite = None if looks else guard.finite_or_not(self._gradients())
        if looks and not self._finite():
            waiting = list(self.curvature.waiting())
            self.guard.skip(lambda: guard.not_finite(self.model, waiting), self.discard)
            return False
        if statistics:
            self.curvature.commit(loss_scale, due)
        if due:
            self._remark_on_pace()
            self.curvature.refresh(due)
            if not changed and statistics and not self._remarked:
                self._remarked = remark_unheard(self.layers)
        solved = self.curvature.solve(self.listening.explained)
        self.solved = [s.apart() for s in solved] if self.keeps_solved else []
        self.bounds.write(solved, lr)
        if finite is not None:
            guard.zero_unless_(finite, self._gradients())
        self.steps += 1
        self.schedule.passed()
        self.guard.passed()
        self.listening.clear()
        self.tap.draws.keep()
        self.tap.active = self.schedule.takes_statistics(self.steps)
        return True

    def _remark_on_pace(self) -> None:
        """Warn once, as soon as a batch has been seen, of decompositions that outweigh training."""
        if not self._paced and any(layer.rows is not None for layer in self.layers):
            self._paced = True
            remark_on_pace(self.layers, self.schedule.refresh_every)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._inventory.parameters if p.grad is not None]

    def _finite(self) -> bool:
        """Whether every gradient and everything that waits is finite; rows kept are settled too."""
        waiting = [waiting for _, waiting in self.curvature.waiting()]
        claims = self.listening.claims()
        finite, held = guard.look(self._gradients() + waiting, list(claims.values()))
        self.listening.settle([index for index, true in zip(claims, held, strict=True) if true])
        return finite

    @contextmanager
    def silently(self) -> Iterator[None]:
        """The model may be run without being listened to."""
        active, running = self.tap.active, self.tap.running
        self.tap.active, self.tap.running = False, True
        try:
            yield
        finally:
            self.tap.active, self.tap.running = active, running

    def keep_plain(self) -> None:
        """Let fused layers keep their plain gradients for the step too."""
        if isinstance(self.curvature, Blockwise):
            self.curvature.keeps_plain = True

    def discard(self) -> None:
        """Drop what backward passes since the last step have left, as if they had not been."""
        self.tap.draws.rewind()
        self.curvature.discard()
        self.listening.clear()

    # state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only: loads with ``torch.load(weights_only=True)``."""
        return {
            "parameters": shapes_of(self.model),
            "curvature": self.curvature.state_dict(),
            "draws": self.tap.draws.state_dict(),
            "steps": self.steps,
            "skipped": self.skipped,
            "forced": self.schedule.forced,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise if :meth:`load_state_dict` would, and change nothing.

        Raises:
            RuntimeError: the state belongs to another model or method; names the parameter, or the
                layer and the factor.
        """
        check_parameters(state["parameters"], self.model)
        if self._inventory.changed():
            self._read_again()
        self.curvature.check(state["curvature"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on bit-exactly where the saved preconditioner stopped.

        Tensors are brought to the model's devices and dtypes. Random draws go on only on the kind
        of device that they were made on; elsewhere they start anew from the seed.

        Raises:
            RuntimeError: see :meth:`check_state`; nothing has changed then.
        """
        self.check_state(state)
        self.discard()
        self.curvature.load_state_dict(state["curvature"])
        self.tap.draws.load_state_dict(state["draws"])
        self.steps, self.guard.skipped = state["steps"], state["skipped"]
        self.schedule.forced = state.get("forced", False)
        self.tap.active = self.schedule.takes_statistics(self.steps)

    # figures ------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Live figures, cheap enough to log at every step.

        ``step`` and ``skipped`` count steps; ``kl`` is ``lr^2/2 sum_l <U_l, M_l>``, the KL
        divergence that a step along the natural gradient causes in the damped quadratic model
        (before clipping and momentum; NaN where fused layers hide it); ``clip`` is the factor of
        ``kl_clip`` and ``max_norm``. For each layer: ``damping``, ``effective_rank`` (``(tr F)^2 /
        |F|^2``), ``eigenvalue_min`` and ``eigenvalue_max`` of the damped block (of factored blocks
        by power iteration, to a few percent), ``failures`` in a row.
        """
        return {
            "step": float(self.steps),
            "skipped": float(self.skipped),
            **self.bounds.figures(),
            **self.curvature.figures(),
        }

    def remove(self) -> None:
        """Take natgrad's hooks off the model; nothing is preconditioned any more."""
        self.tap.remove()
        self.listening.watch([])

    def report(self, machine: Machine | None = None) -> Report:
        """Every parameter: how it is handled, block sizes, memory, share of the work, and why.

        Args:
            machine: its rates, to print predicted seconds too (:meth:`Machine.measure`).
        """
        return report_on(
            self.model, self.curvature, self.views, self.uncovered, self.schedule.stats_every,
            self.schedule.refresh_every, machine,
        )  # fmt: skip
