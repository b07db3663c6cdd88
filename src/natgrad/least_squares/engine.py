"""One step on a user's own residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from natgrad import distributed
from natgrad.damping import Constant, Damping, EigenvalueDamping, checked, on_eigenvalues
from natgrad.guard import Guard
from natgrad.least_squares.auto import Automatic
from natgrad.least_squares.jacobian import flat
from natgrad.least_squares.path import Model, Move
from natgrad.least_squares.residuals import Given, Reduction, Residuals, listed
from natgrad.least_squares.search import LineSearch
from natgrad.least_squares.solvers import ConjugateGradient, Solution, Solver, solve
from natgrad.least_squares.spring import Spring
from natgrad.least_squares.system import LIMIT_BYTES, Linearizer, System
from natgrad.span import DELTA

__all__ = ["Figures", "LeastSquares"]

SOLVERS = ("auto", "dense", "woodbury", "cg")
DIFFERENCE = 0.1  #: of the last length, between the residuals that give the second derivative
PHI, HEAVY, LAST = "spring", "momentum_buffer", "solution"  #: of a parameter, between steps


@dataclass(frozen=True)
class Figures:
    """What the last step was."""

    loss: float = nan  #: before it
    loss_after: float = nan  #: where a line search or the damping asked for it
    damping: float = nan
    lr: float = nan  #: of the first group, times the length that the line search found
    reduction_ratio: float = nan  #: the loss's change over that of the quadratic model
    solver: str = ""
    iterations: int = 0  #: of conjugate gradients
    residuals: int = 0
    parameters: int = 0
    moved: bool = False  #: False where no length lowered the loss, or the step was taken back


class LeastSquares:
    """``w <- w - lr phi`` with ``phi = argmin_x |J x - r|^2 + damping |x|^2``.

    With ``reduction="mean"`` the loss is ``sum_parts 1/2 mean(r_part^2)`` and the Fisher matrix
    ``F = sum_parts J_part^T J_part / R_part``, with ``"sum"`` ``1/2 |r|^2`` and ``J^T J``; then
    ``phi = (F + damping I)^-1 grad``.

    Args:
        model: the function ``u`` of point residuals.
        damping: a number, or an object of :mod:`natgrad.damping`. One that adapts
            (:class:`natgrad.damping.LevenbergMarquardt`) is told the reduction ratio, and a step
            that raised the loss is taken back.
        reduction: of the loss over each part.
        spring: momentum inside of the least-squares problem; None has none.
        line_search: chooses how much of the step is taken; None all of it.
        solver: ``"auto"`` is dense (``P <= R``) or Woodbury (``R < P``) where the Jacobian takes no
            more than 2 GiB and conjugate gradients where it does; ``"dense"``, ``"woodbury"``,
            ``"cg"`` or a :class:`ConjugateGradient` are taken whatever the size.
        dtype: that residuals, Jacobian and the solution are computed in. Parameters and points of
            point residuals are converted to it first; what a function returns is converted after,
            which keeps the accuracy it was computed with. The step is rounded to the parameters'
            own dtype. None leaves the residuals' dtype.
        chunk: rows or columns of the Jacobian at once; None as many as fit 256 MiB.
        geodesic: bend the step ``delta`` to ``t delta + 1/2 t^2 a`` for the length ``t``, with
            ``a = argmin_x |J x + r''(delta, delta)|^2 + damping |x|^2`` and the second derivative
            along the step from differences: geodesic acceleration (Transtrum & Sethna 2012, arXiv
            1201.5885). Costs two evaluations of the residuals and one more solution. Where damping
            is small and the length of straight steps falls with every step, it takes longer ones.
        automatic: chooses learning rate and momentum; None takes those of the groups.
        nonfinite: what to do with a step that is not finite: ``"skip"`` or ``"raise"``.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module,
        damping: float | Damping,
        *,
        reduction: Reduction = "mean",
        spring: Spring | None = None,
        line_search: LineSearch | None = None,
        solver: Solver = "auto",
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
        geodesic: bool = False,
        automatic: Automatic | None = None,
        nonfinite: Literal["skip", "raise"] = "skip",
    ) -> None:
        if not isinstance(solver, ConjugateGradient) and solver not in SOLVERS:
            raise ValueError(
                f"solver must be one of {SOLVERS} or a ConjugateGradient, got {solver!r}"
            )
        if line_search is not None and not isinstance(line_search, LineSearch):
            raise TypeError(
                "line_search must be None or an object with length(loss, before, slope), as "
                f"natgrad.GridSearch(); got {line_search!r}"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype or None, got {dtype}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 or None, got {chunk}")
        found = on_eigenvalues(checked(damping))
        plain = isinstance(found, (int, float))
        self.damping = Constant(cast(float, found)) if plain else cast(EigenvalueDamping, found)
        self.linearizer = Linearizer(model, reduction, dtype, chunk)
        self.solver: Solver = ConjugateGradient() if solver == "cg" else solver
        self.spring, self.line_search, self.geodesic = spring, line_search, geodesic
        self.guard, self.automatic = Guard(nonfinite), automatic
        self.figures = Figures()
        self.length = 1.0  #: of the last step that was taken
        self.steps = 0  #: taken or refused, but for those that were not finite

    def step(
        self,
        residuals: Residuals,
        groups: Sequence[Mapping[str, Any]],
        state: MutableMapping[Tensor, dict[str, Any]],
    ) -> float:
        """One step; ``.grad`` of every parameter holds its part of ``phi`` afterwards.

        Args:
            residuals: point residuals, functions, or a tuple of such; evaluated again by a line
                search and by a damping that adapts, with the same outcome for the same parameters.
            groups: an optimizer's parameter groups: ``lr``, ``momentum``, ``nesterov`` and
                ``weight_decay``.
            state: an optimizer's state of each parameter; written to.

        Returns:
            The loss before the step.
        """
        if distributed.world_size() > 1:
            raise RuntimeError(
                "natgrad: residuals need one process, this is one of several: the Jacobian of all "
                "residuals must be in one place"
            )
        parts = listed(residuals)
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        if not parameters:
            raise ValueError("natgrad: no parameter requires a gradient")
        system = self._system(parts, parameters)
        loss = float(system.loss)
        steepest = system.transposed(system.r)
        if not isfinite(loss) or not bool(torch.isfinite(steepest).all()):
            self.guard.skip(lambda: "residuals or their Jacobian", lambda: None)
            self.figures = Figures(loss=loss)
            return loss
        ridge = self._ridge(system, steepest)
        with torch.no_grad():
            solution, phi = self._natural(system, ridge, parameters, state)
            if not bool(torch.isfinite(phi).all()):
                self.guard.skip(lambda: "the natural gradient", lambda: None)
                self.figures = Figures(loss=loss, damping=ridge)
                return nan
            memory = self._remember(phi, solution, parameters)
            delta, lr = self._delta(system, ridge, groups, state, memory)
        self.figures = Figures(
            loss, nan, ridge, lr, nan, solution.way, solution.iterations,
            len(system.r), len(phi),
        )  # fmt: skip
        before = [p.detach().clone() for p in parameters]
        move = Move(parameters, before, delta)
        if self.geodesic:
            bend = self._bend(system, parts, move, ridge)
            move = Move(parameters, before, delta, _cut(bend, parameters))
        accepted = self._move(system, parts, move)
        for p in parameters:
            if accepted:
                state[p].update(memory[p])
            elif self.line_search is not None and p in state:  # momentum led nowhere: start anew
                state[p].pop(PHI, None)
                state[p].pop(HEAVY, None)
                state[p].pop(DELTA, None)
        self.steps += 1
        self.guard.passed()
        return loss

    # the solution ---------------------------------------------------------------------------------

    def _system(self, parts: Sequence[Given], parameters: Sequence[nn.Parameter]) -> System:
        if isinstance(self.solver, ConjugateGradient):
            return self.linearizer.matrix_free(parts, parameters)
        limit = LIMIT_BYTES if self.solver == "auto" else None
        found = self.linearizer.written_out(parts, parameters, limit)
        return self.linearizer.matrix_free(parts, parameters) if found is None else found

    def _ridge(self, system: System, steepest: Tensor) -> float:
        trace = steepest.new_tensor(nan) if system.J is None else system.J.square().sum()
        ridge = float(self.damping.ridge(trace, len(steepest)))
        if not isfinite(ridge):
            raise ValueError(
                f"natgrad: {type(self.damping).__name__} needs the trace of the Fisher matrix, "
                "which conjugate gradients do not know; give the damping as a number"
            )
        return ridge

    def _natural(
        self,
        system: System,
        ridge: float,
        parameters: Sequence[nn.Parameter],
        state: Mapping[Tensor, dict[str, Any]],
    ) -> tuple[Solution, Tensor]:
        start = _recalled(LAST, parameters, state, system.r) if self._warm() else None
        kept = _recalled(PHI, parameters, state, system.r) if self.spring is not None else None
        if kept is None or self.spring is None:
            solution = solve(system, system.r, ridge, self.solver, start)
            return solution, solution.x
        kept = self.spring.decay * kept
        solution = solve(system, system.r - system.product(kept), ridge, self.solver, start)
        return solution, kept + solution.x

    def _warm(self) -> bool:
        return isinstance(self.solver, ConjugateGradient) and self.solver.warm_start

    # the step -------------------------------------------------------------------------------------

    def _remember(
        self, phi: Tensor, solution: Solution, parameters: Sequence[nn.Parameter]
    ) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What each parameter keeps, if the step is taken; ``.grad`` becomes its ``phi``."""
        memory: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for p in parameters}
        for p, part in zip(parameters, _cut(phi, parameters), strict=True):
            p.grad = part
            if self.spring is not None:
                memory[p][PHI] = part.clone()
        if self._warm():
            for p, part in zip(parameters, _cut(solution.x, parameters), strict=True):
                memory[p][LAST] = part
        return memory

    def _delta(
        self,
        system: System,
        ridge: float,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        memory: Mapping[nn.Parameter, dict[str, Tensor]],
    ) -> tuple[list[Tensor], float]:
        """The whole step of every parameter: learning rate, momentum, decay; and the rate."""
        if self.automatic is not None:
            delta, lr = self.automatic.delta(system, ridge, groups, state)
            for own, part in zip(memory.values(), delta, strict=True):
                own[DELTA] = part
            return delta, lr
        found = []
        for group in groups:
            momentum, lr = group["momentum"], group["lr"]
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                way = p.grad
                if momentum:
                    last = state[p].get(HEAVY) if p in state else None
                    memory[p][HEAVY] = way.clone() if last is None else momentum * last + way
                    heavy = memory[p][HEAVY]
                    way = way + momentum * heavy if group["nesterov"] else heavy
                found.append(-lr * way - lr * group["weight_decay"] * p.detach())
        return found, float(groups[0]["lr"])

    def _bend(self, system: System, parts: Sequence[Given], move: Move, ridge: float) -> Tensor:
        """``a`` of the path ``t delta + 1/2 t^2 a``; zero where differences are not finite."""
        h = DIFFERENCE * self.length
        around = []
        for t in (h, -h):
            move.to(t)
            around.append(self.linearizer.residuals(parts).to(system.r))
        move.to(0.0)
        second = (around[0] - 2 * system.r + around[1]) / h**2
        if not bool(torch.isfinite(second).all()):
            return torch.zeros_like(flat(move.delta, move.parameters).to(system.r))
        with torch.no_grad():
            return -solve(system, second, ridge, self.solver).x

    def _move(self, system: System, parts: Sequence[Given], move: Move) -> bool:
        """Take the step, or part of it; False where the parameters are as before."""
        model = Model(system, move)
        if self.line_search is not None:
            return self._search(parts, move, model)
        move.to(1.0)
        self.figures = replace(self.figures, moved=True)
        if not (self._adapts("measures") or self._adapts("looks")):
            return True
        after = self.linearizer.value(parts)
        kept = not (self._adapts("looks") and not after <= self.figures.loss)
        self._adapt(after, model.change(1.0))
        if not kept:
            self.damping.reject()  # type: ignore[attr-defined]
            move.to(0.0)
        self.figures = replace(self.figures, loss_after=after, moved=kept)
        return kept

    def _search(self, parts: Sequence[Given], move: Move, model: Model) -> bool:
        assert self.line_search is not None
        seen: dict[float, float] = {}

        def after(t: float) -> float:
            move.to(t)
            seen[t] = self.linearizer.value(parts)
            return seen[t]

        before = self.figures.loss
        t = self.line_search.length(after, before, model.slope)
        lowered = t > 0 and (seen[t] if t in seen else after(t)) < before
        move.to(t if lowered else 0.0)
        length = t if lowered else 0.0
        if lowered:
            # a short enough step is always foretold well: the damping is judged by the whole one
            whole = 1.0 if 1.0 in seen else t
            self._adapt(seen[whole], model.change(whole))
            self.length = t
        elif hasattr(self.damping, "reject"):
            self.damping.reject()
        self.figures = replace(
            self.figures,
            loss_after=seen[t] if lowered else before,
            lr=self.figures.lr * length,
            moved=lowered,
        )
        return lowered

    def _adapts(self, what: Literal["measures", "looks"]) -> bool:
        ask: Callable[[int], bool] | None = getattr(self.damping, what, None)
        return ask is not None and ask(self.steps)

    def _adapt(self, after: float, change: float) -> None:
        """Tell the damping how well the quadratic model foretold the loss."""
        ratio = (after - self.figures.loss) / change if change else nan
        self.figures = replace(self.figures, reduction_ratio=ratio)
        if self._adapts("measures"):
            self.damping.adapt(ratio)  # type: ignore[attr-defined]

    # state ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values; what belongs to parameters is in the optimizer's state."""
        value = getattr(self.damping, "value", None)
        return {
            "steps": self.steps,
            "skipped": self.guard.skipped,
            "length": self.length,
            "damping": value if hasattr(self.damping, "adapt") else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.steps, self.guard.skipped = state["steps"], state["skipped"]
        self.length = state["length"]
        if state["damping"] is not None and hasattr(self.damping, "adapt"):
            self.damping.value = state["damping"]  # type: ignore[attr-defined]

    def stats(self) -> dict[str, float]:
        """The figures of the last step, as numbers."""
        figures = self.figures
        return {
            "step": float(self.steps),
            "skipped": float(self.guard.skipped),
            "loss": figures.loss,
            "loss_after": figures.loss_after,
            "damping": figures.damping,
            "lr": figures.lr,
            "reduction_ratio": figures.reduction_ratio,
            "iterations": float(figures.iterations),
            "residuals": float(figures.residuals),
            "parameters": float(figures.parameters),
            "moved": float(figures.moved),
        }


def _cut(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A vector's parts in the parameters' shapes and dtypes, each with memory of its own."""
    cut = torch.split(vector, [p.numel() for p in parameters])
    return [
        part.reshape(p.shape).to(dtype=p.dtype, copy=True)
        for part, p in zip(cut, parameters, strict=True)
    ]


def _recalled(
    key: str,
    parameters: Sequence[nn.Parameter],
    state: Mapping[Tensor, dict[str, Any]],
    like: Tensor,
) -> Tensor | None:
    """What the parameters keep under ``key``, as one vector; None where none does."""
    kept = [state[p].get(key) if p in state else None for p in parameters]
    if all(each is None for each in kept):
        return None
    return flat(kept, parameters).to(like)
