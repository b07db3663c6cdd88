"""SNGD: layers whitened by their local Fisher matrix (Liu & Liu 2021, arXiv 2109.10100)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from natgrad.arguments import check_choice, check_range
from natgrad.layers import Whitenable
from natgrad.layers.activations import Given, Reading
from natgrad.likelihood import Likelihood
from natgrad.roots import Method
from natgrad.whiten.coordinates import Constants
from natgrad.whiten.following import following
from natgrad.whiten.local_fisher import LocalFisher
from natgrad.whiten.module import Whitened
from natgrad.whiten.rule import Rule
from natgrad.whiten.statistics import Statistics

__all__ = ["SNGD"]


@dataclass(frozen=True)
class SNGD(Rule):
    """``y = nu^(-1/2) o (V (A + e I)^(-1/2) x) + b``, the local Fisher layer.

    Liu & Liu 2021, Algorithm 1; MATH 6. ``A = E[x x^T]`` and ``nu = E[nu(y)]`` are of the current
    training batch, ``e = eps tr A / k``. For fixed constants one SGD step is
    ``W <- W - lr nu^-1 grad W (A + e I)^-1`` (V:E1, V:E8): K-FAC with ``nu`` in place of ``G``. The
    bias has its plain gradient. ``nu`` depends on the activation behind the layer
    (:class:`natgrad.layers.activations.Activation`), which is found by tracing the model.

    **As printed** (``compensate=False``) constants are replaced and ``V`` stays, so the function of
    the network jumps with every batch (V:E2), as with BatchNorm; evaluation and :func:`fold` use
    constants of averaged statistics. With ``compensate=True`` ``V`` is adapted (V:E3): the function
    stays, an attached optimizer's state is carried over, and evaluation uses the same constants.

    Args:
        eps: ridge, relative to the mean eigenvalue ``tr A / k``. The paper has none; without, a
            batch with fewer rows than features has no inverse root.
        compensate: whether the function is kept.
        every: optimizer steps between new constants. The paper renews them in every step.
        method: of the root: ``"newton-schulz"``, ``"denman-beavers"`` or ``"eigh"``.
        iterations: exactly so many of them, as the paper has it (a few for Newton-Schulz, 20 for
            Denman-Beavers), in place of iterating to the tolerance.
        tolerance: of the iteration, see :func:`natgrad.roots.newton_schulz`.
        decay: weight of the old statistics in the averages for evaluation.
        average: whether training uses the averages too.
        nu: ``"bernoulli"`` is ``f'``, ``"gaussian"`` ``f'^2`` (the paper has both, equation 5 and
            Algorithm 1). None: ``f'`` for sigmoid, tanh and softmax, ``f'^2`` for all others.
        nu_min: ``E[nu]`` is at least this: dead or saturated units.
        per_unit: one ``nu`` for each unit, not their mean for the layer.
        lag: take ``nu`` from the step before, without a pass under the old constants.
        spatial: whether ``A`` of a layer at many positions (pixels, tokens) is their ``"mean"``, or
            their ``"sum"``, which is the Fisher matrix of a shared unit.
        activations: what follows layers, by name or pattern of names: the name of an activation, a
            module, or a function of each entry. The rest is found by ``torch.fx``.
        likelihood: of the model's output, for the last layer; None reads it as the identity.
        samples: examples of ``data`` that are used, if it is given to :func:`whiten`; None is all.

    Raises:
        ValueError: an argument out of range.
    """

    eps: float = 1e-3
    compensate: bool = False
    every: int = 1
    method: Method = "newton-schulz"
    iterations: int | None = None
    tolerance: float | None = None
    decay: float = 0.9
    average: bool = False
    nu: Reading | None = None
    nu_min: float = 1e-3
    per_unit: bool = False
    lag: bool = False
    spatial: Literal["mean", "sum"] = "mean"
    activations: Mapping[str, Given] | None = None
    likelihood: Likelihood | None = None
    samples: int | None = None

    by_layers = True

    def __post_init__(self) -> None:
        check_range("eps", self.eps, self.eps > 0, "> 0")
        check_range("every", self.every, self.every >= 1, ">= 1")
        check_range("decay", self.decay, 0 <= self.decay < 1, "in [0, 1)")
        check_range("nu_min", self.nu_min, self.nu_min > 0, "> 0")
        check_choice("method", self.method, ("newton-schulz", "denman-beavers", "eigh"))
        check_choice("spatial", self.spatial, ("mean", "sum"))
        if self.nu is not None:
            check_choice("nu", self.nu, ("bernoulli", "gaussian"))
        for name in ("iterations", "samples"):
            given = getattr(self, name)
            check_range(name, given, given is None or given >= 1, "None or >= 1")
        given = self.tolerance
        check_range("tolerance", given, given is None or given >= 0, "None or >= 0")
        if self.method == "eigh" and not (self.iterations is None and self.tolerance is None):
            raise ValueError("method='eigh' takes neither iterations nor tolerance")

    def layers(self, model: nn.Module, views: Sequence[Whitenable]) -> dict[str, Whitened]:
        """The modules for a model's layers, each with the activation behind it."""
        plain = {view.name: view.module for view in views}
        found = following(model, plain, self.activations, self.likelihood)
        return {view.name: LocalFisher(view, self, found[view.name]) for view in views}

    def constants(self, layer: Whitened, seen: Statistics) -> Constants:
        """Those of data that was given; in training the layers renew theirs themselves."""
        assert isinstance(layer, LocalFisher)
        return layer.measured(seen.inputs.second_moment())
