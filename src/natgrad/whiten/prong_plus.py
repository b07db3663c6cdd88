"""PRONG+: PRONG with a diagonal that follows every batch (Desjardins et al. 2015, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from natgrad.arguments import check_choice
from natgrad.layers import Whitenable
from natgrad.whiten.module import Whitened
from natgrad.whiten.normalized import Normalized
from natgrad.whiten.prong import PRONG
from natgrad.whiten.scaled import Scaled

__all__ = ["PRONGPlus"]

READINGS = ("diagonal", "batchnorm")


@dataclass(frozen=True)
class PRONGPlus(PRONG):
    """PRONG every ``every`` steps, and between refits a diagonal on each mini-batch; MATH 5.6.

    The paper describes two things under one name, which are not the same:

    - ``"diagonal"``: ``W = V D U`` with ``Var[D U (x - c)] = 1`` on the batch, an exact
      reparametrization like PRONG itself (:class:`natgrad.whiten.scaled.Scaled`). ``D`` changes as
      soon as the constants were fitted once, and once the whitener is attached to the optimizer.
    - ``"batchnorm"``: ``y = BN(V U (x - c))``, the implementation that the paper calls simpler and
      uses for ImageNet (:class:`natgrad.whiten.normalized.Normalized`). It has new parameters
      ``gamma``, so the optimizer must be made after ``whiten``. The network's output is not
      normalized, nor are layers without a trained bias, which could not be folded: these are
      whitened as in PRONG.

    Args:
        every: optimizer steps between refits, the paper's T.
        eps: added to the eigenvalues of the covariance; under ``"diagonal"`` to those of each
            batch as well.
        samples: examples each refit uses; None is all of the data given, or 1000.
        basis: as for :class:`PRONG`. ``D`` depends on it.
        gradients: whether to whiten output gradients; under ``"diagonal"`` only.
        from_training: as for :class:`PRONG`.
        spread: likewise.
        reading: which of the two.
        outputs: names of the layers that ``"batchnorm"`` leaves un-normalized; None is the last of
            the whitened layers in the order of ``model.named_modules()``.

    Raises:
        ValueError: an argument out of range.
    """

    reading: Literal["diagonal", "batchnorm"] = "diagonal"
    outputs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reading", self.reading, READINGS)
        if self.reading == "batchnorm" and self.gradients:
            raise ValueError('gradients=True goes with reading="diagonal" only')
        if self.reading == "diagonal" and self.outputs is not None:
            raise ValueError('outputs= goes with reading="batchnorm" only')

    def layer(self, view: Whitenable) -> Whitened:
        """A layer that follows its batches; one without a bias can't be normalized."""
        plain = super().layer(view)
        if self.reading == "batchnorm" and not view.has_bias:
            return plain
        start = self.start(view)
        made = (
            Normalized(view, start)
            if self.reading == "batchnorm"
            else Scaled(view, start, self.eps)
        )
        made.triangular = plain.triangular
        return made

    def layers(self, model: nn.Module, views: Sequence[Whitenable]) -> dict[str, Whitened]:
        """All layers; those that are outputs of the network are whitened and no more.

        Raises:
            ValueError: ``outputs`` names something else.
        """
        if self.reading == "diagonal":
            return super().layers(model, views)
        outputs = (views[-1].name,) if self.outputs is None else self.outputs
        unknown = sorted(set(outputs) - {view.name for view in views})
        if unknown:
            found = ", ".join(view.name for view in views)
            raise ValueError(
                f"outputs names {', '.join(unknown)}, but the whitened layers are {found}"
            )
        plain = super().layer
        return {v.name: plain(v) if v.name in outputs else self.layer(v) for v in views}
