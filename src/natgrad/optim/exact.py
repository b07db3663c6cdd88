"""The exact natural gradient of the current batch, or of a user's own residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from natgrad.arguments import check_coverage
from natgrad.curvature import Joint
from natgrad.damping import Damping
from natgrad.least_squares import LeastSquares, LineSearch, Spring
from natgrad.least_squares.auto import Automatic
from natgrad.least_squares.residuals import Residuals
from natgrad.least_squares.solvers import Solver
from natgrad.modes import RandomState
from natgrad.optim.base import NaturalGradient
from natgrad.tuning import Auto

__all__ = ["ExactNGD"]


class ExactNGD(NaturalGradient):
    """The exact natural gradient, for small networks and for least squares (MATH 0.2).

    ``U = (F + damping I)^-1 M`` over all covered parameters at once, with the Fisher matrix of the
    current batch written out or by the Woodbury identity, whichever is smaller; ``damping=0`` is
    the pseudo-inverse, and linear regression is then solved in one step with ``lr=1`` (V:G4). A
    plain number as damping is added to the eigenvalues.

    ``step(residuals)`` takes residuals of one's own in place of a backward pass, with the Gaussian
    likelihood: the loss is ``sum_parts 1/2 mean(r^2)`` and all parameters that require gradients
    take part, whatever modules they are in (:class:`natgrad.least_squares.LeastSquares`). For
    physics-informed networks this is energy natural gradient descent (Müller & Zeinhofer 2023,
    arXiv 2302.13163)::

        opt = natgrad.ExactNGD(model, lr=1.0, momentum=0.0, damping=1e-10,
                               line_search=natgrad.GridSearch(), geodesic=True)
        opt.step((interior, boundary))          # natgrad.PointResiduals
        opt.step(lambda: model(x) - y)          # any function of the model

    Arguments: :class:`NaturalGradient`, but ``fisher="exact"`` is the default, ``decay`` and
    ``shared`` have no meaning (nothing is averaged over batches, nothing approximated), ``fused``
    is refused, and ``momentum`` may be a :class:`natgrad.Spring`. For residuals alone:

    Args:
        model: the model as the training loop calls it, not its parameters.
        lr: learning rate.
        momentum: heavy-ball momentum on the natural gradient, or a :class:`natgrad.Spring`.
        damping: a number, or an object from :mod:`natgrad.damping`.
        fisher: see :class:`natgrad.Preconditioner`.
        line_search: chooses how much of the step is taken, :class:`natgrad.GridSearch` or
            :class:`natgrad.Backtracking`; the loss then never rises, and where no length lowers it
            the parameters stay, ``stats()["least_squares/moved"]`` is 0 and momentum starts anew.
        solver: ``"auto"``, ``"dense"``, ``"woodbury"``, ``"cg"`` or a
            :class:`natgrad.ConjugateGradient`.
        dtype: that residuals, Jacobian and solution are computed in; None leaves the residuals'.
        chunk: rows of the Jacobian at once; None as many as fit 256 MiB.
        geodesic: bend the step along the second derivative of the residuals (arXiv 1201.5885).
        kwargs: everything else :class:`NaturalGradient` takes.

    Raises:
        ValueError: an argument out of range.
    """

    block = Joint

    def __init__(
        self,
        model: nn.Module,
        lr: float | Auto | Literal["auto"],
        momentum: float | Spring | Literal["auto"] = 0.9,
        *,
        damping: float | Damping = 1e-3,
        fisher: str = "exact",
        line_search: LineSearch | None = None,
        solver: Solver = "auto",
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
        geodesic: bool = False,
        **kwargs: Any,
    ) -> None:
        spring = momentum if isinstance(momentum, Spring) else None
        heavy = 0.0 if isinstance(momentum, Spring) else momentum
        super().__init__(model, lr, heavy, damping=damping, fisher=fisher, **kwargs)
        self.least_squares = LeastSquares(
            model, damping, spring=spring, line_search=line_search, solver=solver, dtype=dtype,
            chunk=chunk, geodesic=geodesic, automatic=self._automatic(),
            reduction=kwargs.get("reduction", "mean"),
            nonfinite="raise" if kwargs.get("nonfinite") == "raise" else "skip",  # all steps look
        )  # fmt: skip
        given = (
            spring,
            line_search,
            dtype,
            chunk,
            geodesic or None,
            None if solver == "auto" else solver,
        )
        self._for_residuals_alone = any(each is not None for each in given)
        self._takes_residuals = self._for_residuals_alone

    def __getstate__(self) -> dict[str, Any]:
        own = ("least_squares", "_for_residuals_alone", "_takes_residuals")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @overload
    def step(self, closure: None = None, *, targets: Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Residuals, *, targets: Tensor | None = None) -> float: ...

    def step(
        self, closure: Residuals | None = None, *, targets: Tensor | None = None
    ) -> float | None:
        """One step; ``.grad`` holds the natural gradient afterwards.

        Args:
            closure: evaluates the loss again and returns it, as for any torch optimizer; or
                residuals: a :class:`natgrad.PointResiduals`, a function without arguments that
                returns a tensor of at least one dimension (or a tuple of such), or a tuple of
                these. The model may be called in any way in it, ``torch.autograd.grad`` with
                ``create_graph=True`` included. Where the loss is wanted after the step too (a line
                search, a damping that adapts), residuals are evaluated again.
            targets: see :meth:`NaturalGradient.step`; without residuals.

        Returns:
            The loss before the step; None without an argument.

        Raises:
            ValueError: residuals without elements, or that do not depend on the parameters.
            TypeError: residuals that are no tensors of a floating dtype.
            RuntimeError: see :meth:`natgrad.Preconditioner.step`; or several processes.
            FloatingPointError: residuals that are not finite, with ``nonfinite="raise"``.
        """
        if closure is None:
            return self._on_gradients(None, targets)
        if not callable(closure):
            return self._on_residuals(closure)
        call = _Once(closure, self.preconditioner.model)
        if self._takes_residuals:
            with self._unheard(), torch.enable_grad():
                call.first()
        else:
            with torch.enable_grad():
                call.first()
        if call.gave_residuals():
            self._takes_residuals = True
            return self._on_residuals(call)
        if self._takes_residuals:  # it was not listened to
            call = _Once(closure, self.preconditioner.model)
            self._takes_residuals = self._for_residuals_alone
        return self._on_gradients(call, targets)

    def _on_gradients(self, closure: _Once | None, targets: Tensor | None) -> float | None:
        if self._for_residuals_alone:
            raise ValueError(
                "natgrad: line_search, solver, dtype, chunk, geodesic and Spring are for "
                "residuals: call step(residuals), or leave them out"
            )
        check_coverage(self.preconditioner.views, self.preconditioner.uncovered, False)
        if closure is None:
            super().step(targets=targets)
            return None
        return super().step(closure, targets=targets)

    def _on_residuals(self, residuals: Residuals) -> float:
        self.preconditioner.discard()  # what was heard of the model elsewhere, an evaluation say
        with self._unheard():
            loss = self.least_squares.step(residuals, self.param_groups, self.state)
        if self.average is not None and self.least_squares.figures.moved:
            self.average.update(self.least_squares.steps)
        return loss

    def _automatic(self) -> Automatic | None:
        chooser = self.tuner.chooser
        if chooser is None:
            return None
        return Automatic(chooser.lr, chooser.momentum, chooser.auto.l2)

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """The model is run without hooks: its parameters are replaced at times."""
        tap = self.preconditioner.tap
        with self.preconditioner.silently():
            before, tap.before = tap.before, None
            try:
                yield
            finally:
                tap.before = before

    def state_dict(self) -> dict[str, Any]:
        """Torch's state, the preconditioner's, and that of steps on residuals."""
        return {**super().state_dict(), "least_squares": self.least_squares.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit-exactly; see :meth:`NaturalGradient.load_state_dict`."""
        state = dict(state_dict)
        own = state.pop("least_squares", None)
        super().load_state_dict(state)
        if own is not None:
            self.least_squares.load_state_dict(own)

    def stats(self) -> dict[str, float]:
        """:meth:`NaturalGradient.stats`, and the last step on residuals (``least_squares/...``).

        There: ``loss`` before the step, ``loss_after`` where it was asked for, ``damping``, ``lr``
        times the length found, ``reduction_ratio``, ``iterations`` of conjugate gradients, how many
        ``residuals`` and ``parameters``, and whether the parameters ``moved``.
        """
        found = super().stats()
        if self.least_squares.steps or self.least_squares.guard.skipped:
            own = self.least_squares.stats()
            found |= {f"least_squares/{name}": value for name, value in own.items()}
        return found


class _Once:
    """A closure whose first value is used, not computed again; later ones draw what it drew."""

    def __init__(self, call: Callable[[], Any], model: nn.Module) -> None:
        self.call, self.model = call, model
        self._kept: list[Any] = []
        self._random: RandomState | None = None

    def first(self) -> None:
        self._random = RandomState.of(self.model)
        self._kept = [self.call()]

    def gave_residuals(self) -> bool:
        (found,) = self._kept
        return isinstance(found, (tuple, list)) or (isinstance(found, Tensor) and found.ndim > 0)

    def __call__(self) -> Any:
        if self._kept:
            return self._kept.pop()
        if self._random is not None:
            self._random.put_back()
        return self.call()
