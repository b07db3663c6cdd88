"""How well conditioned a network is in the coordinates it is trained in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.batches import Batches, Inputs
from natgrad.gather import Gatherer, Kind
from natgrad.layers import Whitenable, reasons, views_of
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey
from natgrad.sample import Sample
from natgrad.table import aligned
from natgrad.whiten.convert import fold, whiten
from natgrad.whiten.module import Whitened
from natgrad.whiten.prong import PRONG
from natgrad.whiten.spectra import evaluated, spectrum
from natgrad.whiten.statistics import RowMoments, statistics_of

__all__ = ["WhiteningReport", "WhiteningRow", "whitening_report"]


@dataclass(frozen=True)
class WhiteningRow:
    """One layer."""

    layer: str
    shape: str  #: of the layer's matrix, bias column included
    whitened: bool
    condition: float  #: ``(largest + damping) / (smallest + damping)``
    largest: float  #: eigenvalue of the layer's exact Fisher block
    smallest: float  #: above the cutoff; with damping, of all of them
    rank: int  #: eigenvalues above the cutoff
    dim: int  #: rows of the block
    deviation: float  #: ``|Cov(P (x - c)) - I| / sqrt(k)`` (Frobenius)
    mean: float  #: ``|E[P (x - c)]| / sqrt(k)``


@dataclass(frozen=True)
class WhiteningReport:
    """A table of :class:`WhiteningRow`: prints, and turns into records for pandas.

    Args:
        rows: one for each layer.
        examples: how many examples were measured.
        damping: what was added to the eigenvalues.
        cutoff: eigenvalues below this share of the largest count as zero.
        spectra: eigenvalues by layer, descending, those that are zero by rank left out.
    """

    rows: tuple[WhiteningRow, ...]
    examples: int
    damping: float
    cutoff: float
    spectra: dict[str, Tensor]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a row: ``pandas.DataFrame(report.records())``."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        header = (
            "layer", "shape", "whitened", "condition", "largest", "smallest", "rank", "deviation",
            "mean",
        )  # fmt: skip
        lines = [header] + [
            (
                row.layer, row.shape, "yes" if row.whitened else "no", f"{row.condition:.3g}",
                f"{row.largest:.3g}", f"{row.smallest:.3g}", f"{row.rank}/{row.dim}",
                f"{row.deviation:.3f}", f"{row.mean:.3f}",
            )
            for row in self.rows
        ]  # fmt: skip
        return "\n".join(aligned(lines, left=3))


def whitening_report(
    model: nn.Module,
    inputs: Inputs,
    likelihood: Likelihood,
    *,
    damping: float = 0.0,
    cutoff: float = 1e-10,
    kind: Kind = "exact",
    samples: int = 1,
    logits: LogitsKey = None,
    batch_to_input: Callable[[Any], Any] | None = None,
) -> WhiteningReport:
    """Condition numbers of the layers' Fisher blocks in their own coordinates, on ``inputs``.

    For a whitened layer the exact block of ``(V, d)``, ``F_V = 1/N sum_n J_n^T R(f_n) J_n`` with
    per-example gradients ``J = sum_t Q^T g_t [P (x_t - c); 1]^T``; for a plain one that of
    ``(W, b)``. A layer of ``PRONGPlus(reading="batchnorm")`` has ``V``, ``gamma`` and BN's shift,
    under the running statistics. The same for a model before ``whiten``, during training, and after
    ``fold`` (Desjardins et al. 2015, figure 2c).

    A block of fewer examples times outputs than parameters is singular, and so is that of a softmax
    layer: without damping the condition number is over the eigenvalues above ``cutoff``.

    Layers that have no whitened form are left out. The model runs in eval mode and stays as it is,
    to its modes and gradients; a copy of it is made.

    Args:
        model: plain, whitened or folded.
        inputs: as for :func:`natgrad.fisher`; can be gone through twice.
        likelihood: the output distribution.
        damping: added to all eigenvalues, those that are zero included.
        cutoff: eigenvalues below this share of the largest count as zero.
        kind: ``"exact"`` or ``"sampled"``.
        samples: draws per example of the sampled Fisher.
        logits: which entry of the model's output is the logits.
        batch_to_input: picks the model's input from batches that hold more.

    Raises:
        ValueError: no layer has a whitened form, an argument out of range, or too many examples for
            layers of this size; says how many will do.
    """
    if damping < 0 or not 0 < cutoff < 1:
        raise ValueError(f"damping must be >= 0 and cutoff in (0, 1), got {damping} and {cutoff}")
    if kind not in ("exact", "sampled"):
        raise ValueError(f'kind must be "exact" or "sampled", got {kind!r}')
    batches = Batches(inputs, batch_to_input=batch_to_input)
    batches.refuse_one_shot("whitening_report()")
    mine = {name: m for name, m in model.named_modules() if isinstance(m, Whitened)}
    plain = fold(copy.deepcopy(model))
    found, uncovered = views_of(plain)
    views = [view for view in found if isinstance(view, Whitenable)]
    if not views:
        raise ValueError(f"no layer of the model has a whitened form; {reasons(uncovered)}")
    gatherer = Gatherer(plain, list(views), likelihood, kind=kind, samples=samples, logits=logits)
    parts = _by_layer(gatherer, batches)
    moments = _moments(plain, views, batches)
    rows, spectra = [], {}
    for k, view in enumerate(views):
        layer, seen = mine.get(view.name), moments.get(view.name)
        if k in parts and seen is not None:
            values, dim = spectrum(view, layer, parts[k])
            spectra[view.name] = values
            rows.append(_row(view, layer, values, dim, seen, damping, cutoff))
    if not rows:
        raise ValueError("no layer with a whitened form is called once and has its own weight")
    examples = max(sum(s.examples for s in listed) for listed in parts.values())
    return WhiteningReport(tuple(rows), examples, damping, cutoff, spectra)


def _by_layer(gatherer: Gatherer, batches: Batches) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for samples, _, _ in gatherer.over(batches):
        for k, sample in samples.items():
            found.setdefault(k, []).append(sample.to(torch.float64))
    if not found:
        raise ValueError("no gradient reached any layer: none takes part in the logits")
    return found


def _moments(plain: nn.Module, views: list[Whitenable], batches: Batches) -> dict[str, RowMoments]:
    """Moments of what each layer takes in. They are heard as whitened layers, by identity."""
    chosen = {view.module for view in views}
    try:
        # in a module of its own: a model that is a layer by itself can't be replaced in place
        whole = nn.Sequential(plain)
        whitener = whiten(whole, PRONG(), only=lambda _, module: module in chosen)
    except ValueError:  # all are tied, or read without being called
        return {}
    found = statistics_of(whole, whitener.layers, batches, None)
    names = {view.module: view.name for view in views}
    layers = whitener.layers
    fold(whole)
    return {
        names[layers[name].view.module]: s.inputs for name, s in found.items() if not s.inputs.empty
    }


def _row(
    view: Whitenable,
    layer: Whitened | None,
    values: Tensor,
    dim: int,
    seen: RowMoments,
    damping: float,
    cutoff: float,
) -> WhiteningRow:
    largest = float(values[0])
    above = values[values > cutoff * largest]
    rank = len(above)
    smallest = float(above[-1]) if rank else 0.0
    if damping:
        smallest = float(values[-1]) if len(values) >= dim else 0.0
    over = smallest + damping
    deviation, mean = _whiteness(layer, seen)
    return WhiteningRow(
        layer=view.name,
        shape="x".join(map(str, view.matrix_shape)),
        whitened=layer is not None,
        condition=(largest + damping) / over if over > 0 else 1.0,
        largest=largest,
        smallest=smallest,
        rank=rank,
        dim=dim,
        deviation=deviation,
        mean=mean,
    )


@torch.no_grad()
def _whiteness(layer: Whitened | None, seen: RowMoments) -> tuple[float, float]:
    """How far whitened features are from covariance ``I`` and mean 0, per feature."""
    Sigma, mean = seen.covariance(), seen.mean
    if layer is not None:
        at = evaluated(layer)
        P = at.P.squeeze(-2).diag_embed() if at.P.shape[-2] == 1 < at.P.shape[-1] else at.P
        Sigma = P @ Sigma @ P.mT
        shifted = mean if at.c is None else mean - at.c
        mean = (P @ shifted.unsqueeze(-1)).squeeze(-1)
    off = Sigma - torch.eye(Sigma.shape[-1], dtype=Sigma.dtype, device=Sigma.device)
    features = mean.numel()
    return float(off.norm() / features**0.5), float(mean.norm() / features**0.5)
