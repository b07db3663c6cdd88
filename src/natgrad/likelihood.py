"""Output distributions: what the Fisher matrix takes its expectation over.

A likelihood reads the model's output ``f`` (logits, or a mean) as a distribution ``p(y | f)``. The
Fisher matrix is ``F = 1/N sum_n J_n^T R(f_n) J_n`` with ``J = df/dtheta`` and
``R = E_y[score score^T]``, ``score = d(-log p)/df``. Every kind of Fisher is a set of output
gradients whose outer products add up to ``R``, so that backward passes of them are all that is
needed:

* ``exact``: the columns of ``S`` with ``S S^T = R`` (V:A1, V:A2);
* ``sampled``: the score at targets drawn from ``p``, unbiased, error ``~ draws^-1/2`` (V:A4);
* ``empirical``: the score at the true targets. Not an estimate of ``F`` (V:A5).

A likelihood of one's own is a subclass of :class:`Likelihood` with ``nll``, ``sample`` and, for
the exact Fisher, ``columns``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from natgrad.sample import statistics_dtype

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood"]


class Likelihood(ABC):
    """A distribution ``p(y | f)`` over targets given a batch of model outputs ``f [n, ...]``."""

    @abstractmethod
    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each example, ``[n]``, up to a constant without ``f``."""

    @abstractmethod
    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from ``p(y | f)`` with the given generator, never the global one."""

    def score(self, f: Tensor, targets: Tensor) -> Tensor:
        """``d nll / d f`` of each example, shaped like ``f``. By default through autograd."""
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.nll(leaf, targets).sum(), leaf)
        return gradient

    def columns(self, f: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
        """Output gradients shaped like ``f`` whose outer products sum to ``R`` per example.

        Raises:
            NotImplementedError: this likelihood has no exact Fisher; use the sampled one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no columns(); use fisher='sampled'"
        )

    def product(self, f: Tensor, v: Tensor, counted: Tensor | None = None) -> Tensor:
        """``R v`` of each example, for ``v`` shaped like ``f``. By default from the columns.

        Raises:
            NotImplementedError: see :meth:`columns`.
        """
        parts = []
        for column in self.columns(f, counted):
            along = (column * v).flatten(1).sum(1)
            parts.append(column * along.view(-1, *[1] * (f.ndim - 1)))
        return torch.stack(parts).sum(0)

    def draws(
        self,
        f: Tensor,
        generator: torch.Generator | None,
        samples: int = 1,
        counted: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Scores at ``samples`` targets drawn from the model, each scaled by ``samples^-1/2``."""
        for _ in range(samples):
            targets = self.sample(f, generator)
            yield self.score(f, self.restrict(targets, counted)) / samples**0.5

    def counted(self, f: Tensor, grad_f: Tensor) -> Tensor | None:
        """Which targets the user's loss counts, told from its gradient; None means all."""
        return None

    def restrict(self, targets: Tensor, counted: Tensor | None) -> Tensor:
        """``targets`` with those marked as ignored that are not counted."""
        return targets


class Categorical(Likelihood):
    """Softmax over logits: ``nll = -log softmax(f)[y]``, ``R = diag p - p p^T``.

    Dimensions of ``f`` beyond the batch (the first) and ``class_dim`` are positions, each with a
    target of its own. Like the usual cross-entropy, ``positions="mean"`` averages over all counted
    targets of the batch (scores are scaled by ``sqrt(n / counted)``); ``"sum"`` adds them within
    an example. Targets equal to ``ignore_index`` do not count; where the true targets are out of
    sight (in a training loop), those count whose logits received any gradient from the loss.

    Args:
        class_dim: dimension of the classes, ``-1`` for ``[n, ..., classes]``, ``1`` for the
            ``[n, classes, ...]`` of ``torch.nn.CrossEntropyLoss``.
        ignore_index: target that marks a position without a label.
        positions: ``"mean"`` or ``"sum"``.
    """

    def __init__(
        self, class_dim: int = -1, ignore_index: int = -100, positions: str = "mean"
    ) -> None:
        if positions not in ("mean", "sum"):
            raise ValueError(f'positions must be "mean" or "sum", got {positions!r}')
        self.class_dim, self.ignore_index, self.positions = class_dim, ignore_index, positions

    def __repr__(self) -> str:
        return (
            f"Categorical(class_dim={self.class_dim}, ignore_index={self.ignore_index}, "
            f"positions={self.positions!r})"
        )

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        """``[n]``: cross-entropy, over positions averaged or summed as ``positions`` says."""
        logits = self._classes_last(f)
        losses = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=self.ignore_index,
            reduction="none",
        )  # fmt: skip
        counted = targets != self.ignore_index
        scale = self._scale(f, counted).square()
        return losses.view(len(f), -1).sum(1) * scale

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Class indices ``[n, *positions]`` drawn from ``softmax(f)``."""
        p = self._classes_last(self._probabilities(f)).nan_to_num(1.0)  # the score stays NaN
        drawn = torch.multinomial(p.flatten(0, -2), 1, replacement=True, generator=generator)
        return drawn.view(p.shape[:-1])

    def score(self, f: Tensor, targets: Tensor) -> Tensor:
        """``p - onehot(y)``, zero where ignored, scaled for ``positions="mean"``."""
        counted = targets != self.ignore_index
        p = self._classes_last(self._probabilities(f)).clone()
        index = targets.clamp_min(0).masked_fill(~counted, 0).unsqueeze(-1)
        p.scatter_add_(-1, index, torch.full_like(index, -1, dtype=p.dtype))
        p = p * (counted.unsqueeze(-1) * self._scale(f, counted))
        return p.movedim(-1, self.class_dim).to(f.dtype)

    def columns(self, f: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
        """``sqrt(p_k) (e_k - p)`` for each class ``k`` of each position (MATH 0.1, V:A2)."""
        p = self._classes_last(self._probabilities(f))
        n, classes = p.shape[0], p.shape[-1]
        if counted is None:
            counted = torch.ones(p.shape[:-1], dtype=torch.bool, device=f.device)
        rows = p.reshape(n, -1, classes)
        scale = counted.reshape(n, -1, 1) * self._scale(f, counted)
        for t in range(rows.shape[1]):
            for k in range(classes):
                root = rows[:, t, k].sqrt().unsqueeze(-1)
                column = torch.zeros_like(rows)
                column[:, t] = -root * rows[:, t]
                column[:, t, k] += root.squeeze(-1)
                column = (column * scale).view(p.shape)
                yield column.movedim(-1, self.class_dim).to(f.dtype)

    def product(self, f: Tensor, v: Tensor, counted: Tensor | None = None) -> Tensor:
        """``p v - p <p, v>`` at each counted position."""
        p = self._classes_last(self._probabilities(f))
        if counted is None:
            counted = torch.ones(p.shape[:-1], dtype=torch.bool, device=f.device)
        u = self._classes_last(v).to(p.dtype)
        u = p * u - p * (p * u).sum(-1, keepdim=True)
        u = u * (counted.unsqueeze(-1) * self._scale(f, counted).square())
        return u.movedim(-1, self.class_dim).to(v.dtype)

    def counted(self, f: Tensor, grad_f: Tensor) -> Tensor | None:
        """Positions whose logits received a gradient, ``[n, *positions]``.

        A certain prediction that is right receives none either, and counts all the same.
        """
        certain = 1e-2 if torch.finfo(grad_f.dtype).bits < 32 else 1e-6
        p = self._classes_last(self._probabilities(f))
        return (self._classes_last(grad_f) != 0).any(-1) | (p.amax(-1) > 1 - certain)

    def restrict(self, targets: Tensor, counted: Tensor | None) -> Tensor:
        """``targets`` with ``ignore_index`` where not counted."""
        return targets if counted is None else targets.masked_fill(~counted, self.ignore_index)

    def _classes_last(self, f: Tensor) -> Tensor:
        if f.ndim < 2:
            raise ValueError(
                f"Categorical needs logits [n, ..., classes], got shape {tuple(f.shape)}"
            )
        return f.movedim(self.class_dim, -1)

    def _probabilities(self, f: Tensor) -> Tensor:
        return f.detach().to(statistics_dtype(f.dtype)).softmax(self.class_dim)

    def _scale(self, f: Tensor, counted: Tensor) -> Tensor:
        total = counted.sum().clamp_min(1).to(statistics_dtype(f.dtype))
        return (len(f) / total).sqrt() if self.positions == "mean" else torch.ones_like(total)


class Bernoulli(Likelihood):
    """Independent sigmoids over logits, summed over all entries of an example's output.

    ``nll = sum softplus(f) - y f`` (``BCEWithLogitsLoss``), ``R = diag(p (1 - p))``.
    """

    def __repr__(self) -> str:
        return "Bernoulli()"

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        """``[n]``: binary cross-entropy with logits, summed over the entries of an example."""
        return _per_example(F.binary_cross_entropy_with_logits(f, targets, reduction="none"))

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones shaped like ``f``, drawn from ``sigmoid(f)``."""
        p = f.detach().to(statistics_dtype(f.dtype)).sigmoid().nan_to_num(0.5)
        return torch.bernoulli(p, generator=generator)

    def score(self, f: Tensor, targets: Tensor) -> Tensor:
        """``sigmoid(f) - y``."""
        return (f.detach().to(statistics_dtype(f.dtype)).sigmoid() - targets).to(f.dtype)

    def columns(self, f: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
        """``sqrt(p (1 - p)) e_k`` for each entry ``k`` of an example's output."""
        p = f.detach().to(statistics_dtype(f.dtype)).sigmoid()
        yield from _unit_columns((p * (1 - p)).sqrt().to(f.dtype))

    def product(self, f: Tensor, v: Tensor, counted: Tensor | None = None) -> Tensor:
        """``p (1 - p) v``."""
        p = f.detach().to(statistics_dtype(f.dtype)).sigmoid()
        return (p * (1 - p) * v).to(v.dtype)


class Gaussian(Likelihood):
    """Normal with mean ``f`` and unit variance, summed over all entries of an example's output.

    ``nll = 1/2 |f - y|^2``, ``R = I``. Note that ``MSELoss(reduction="mean")`` is ``2 / entries``
    times this: that scales the learning rate, not the curvature.
    """

    def __repr__(self) -> str:
        return "Gaussian()"

    def nll(self, f: Tensor, targets: Tensor) -> Tensor:
        """``[n]``: half the squared distance."""
        return _per_example((f - targets).square() / 2)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``f + standard normal``."""
        mean = f.detach().to(statistics_dtype(f.dtype))
        noise = torch.randn(f.shape, dtype=mean.dtype, device=f.device, generator=generator)
        return mean + noise

    def score(self, f: Tensor, targets: Tensor) -> Tensor:
        """``f - y``."""
        return (f.detach() - targets).to(f.dtype)

    def columns(self, f: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
        """The unit vectors of an example's output."""
        yield from _unit_columns(torch.ones_like(f.detach()))

    def product(self, f: Tensor, v: Tensor, counted: Tensor | None = None) -> Tensor:
        """``v``."""
        return v


def _per_example(losses: Tensor) -> Tensor:
    return losses.reshape(len(losses), -1).sum(1)


def _unit_columns(diagonal: Tensor) -> Iterator[Tensor]:
    """``diagonal[:, k] e_k`` for each entry ``k`` of an example, shaped like ``diagonal``."""
    flat = diagonal.reshape(len(diagonal), -1)
    for k in range(flat.shape[1]):
        column = torch.zeros_like(flat)
        column[:, k] = flat[:, k]
        yield column.view(diagonal.shape)
