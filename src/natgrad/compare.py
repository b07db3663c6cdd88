"""How good are the approximations: every structure against the exact block of every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.batches import Batches, Inputs, Targets
from natgrad.blocks import Block
from natgrad.blocks.base import Shared
from natgrad.damping import Constant
from natgrad.fisher import STRUCTURES
from natgrad.gather import Gatherer, Kind
from natgrad.gram import ExactBlock
from natgrad.layers import LayerView, reasons, views_of
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey
from natgrad.operator import commit, load
from natgrad.sample import Sample
from natgrad.table import aligned

__all__ = ["Comparison", "ComparisonRow", "compare"]

COMPARED = ("kfac", "ekfac", "tkfac", "tekfac", "diagonal")


@dataclass(frozen=True)
class ComparisonRow:
    """One layer under one structure, against the layer's exact block ``F``."""

    layer: str
    shape: str  #: of the layer's matrix
    structure: str
    error: float  #: ``|F - F'| / |F|``, Frobenius
    trace_ratio: float  #: ``tr F' / tr F``
    cosine: float  #: between the damped natural gradients of ``F'`` and ``F``
    step_error: float  #: ``|u - u'| / |u|`` of these
    bytes: int  #: memory of the block


@dataclass(frozen=True)
class Comparison:
    """A table of :class:`ComparisonRow`: prints, and turns into records for pandas.

    Args:
        rows: one for each layer and structure.
        examples: how many examples the Fisher matrices are means over.
        damping: what was added to the eigenvalues for the natural gradients.
        spectra: eigenvalues, descending, by layer and structure (``"exact"`` among them); of the
            exact block those that are not zero by rank.
        matrices: blocks written out where small, by layer and structure.
    """

    rows: tuple[ComparisonRow, ...]
    examples: int
    damping: float
    spectra: dict[str, dict[str, Tensor]]
    matrices: dict[str, dict[str, Tensor]]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a row: ``pandas.DataFrame(comparison.records())``."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        header = ("layer", "shape", "structure", "error", "trace", "cosine", "step error", "MiB")
        lines = [header] + [
            (
                row.layer, row.shape, row.structure, f"{row.error:.3f}", f"{row.trace_ratio:.3f}",
                f"{row.cosine:.3f}", f"{row.step_error:.3f}", f"{row.bytes / 2**20:.2f}",
            )
            for row in self.rows
        ]  # fmt: skip
        return "\n".join(aligned(lines, left=3))

    def plot(self, kind: str = "errors", **kwargs: Any) -> Any:
        """A matplotlib figure: ``"errors"``, ``"spectra"`` or ``"matrices"``.

        Raises:
            ModuleNotFoundError: matplotlib is missing: ``pip install "natgrad[lab]"``.
            ValueError: unknown kind, or no matrix small enough to be shown.
        """
        from natgrad import plots

        return plots.plot(self, kind, **kwargs)


def compare(
    model: nn.Module,
    inputs: Inputs,
    likelihood: Likelihood,
    *,
    structures: Sequence[str] = COMPARED,
    kind: Kind = "exact",
    samples: int = 1,
    targets: Targets = None,
    damping: float = 1e-3,
    shared: Shared = "expand",
    logits: LogitsKey = None,
    batch_to_input: Callable[[Any], Any] | None = None,
    write_out: int = 512,
) -> Comparison:
    """Compare approximations of the Fisher matrix, layer by layer, on ``inputs``.

    Errors are against the layer's exact block. The natural gradients are those of the mean loss,
    with the given targets or, without, with targets drawn from the model. Norm layers, whose blocks
    are exact under every structure, are left out.

    Args:
        model: the model; runs in eval mode, and its mode is put back.
        inputs: as for :func:`natgrad.fisher`.
        likelihood: the output distribution.
        structures: names of what to compare.
        kind: which Fisher the blocks are of. The exact one of a sequence model has as many columns
            as positions times classes; a sampled one with many draws stands in for it.
        samples: draws per example of the sampled Fisher.
        targets: true targets, for the gradient.
        damping: added to the eigenvalues for the natural gradients.
        shared: ``"expand"`` or ``"reduce"``, for layers with shared positions.
        logits: which entry of the model's output is the logits.
        batch_to_input: picks the model's input from batches that hold more.
        write_out: blocks up to this dimension are kept as matrices, for pictures.

    Raises:
        ValueError: no layer covered, or per-example gradients beyond 1 GiB: take fewer examples.
    """
    if not damping > 0:
        raise ValueError(f"damping must be > 0, got {damping}")
    unknown = sorted(set(structures) - set(STRUCTURES))
    if unknown:
        raise ValueError(f"unknown structures {unknown}; known: {sorted(STRUCTURES)}")
    views, uncovered = views_of(model)
    if not views:
        raise ValueError(f"no layer of the model is covered: {reasons(uncovered)}")
    batches = Batches(inputs, targets, batch_to_input)
    batches.refuse_one_shot("compare()")
    gatherer = Gatherer(model, views, likelihood, kind=kind, samples=samples, logits=logits)
    exact = _by_layer(gatherer, batches)
    loss: Kind = "sampled" if targets is None else "empirical"
    drawn = _by_layer(Gatherer(model, views, likelihood, kind=loss, logits=logits), batches)
    table = _Table(damping, shared, write_out)
    for k, view in enumerate(views):
        if k in exact and not view.exact:
            table.add(view, exact[k], drawn[k], structures)
    return table.comparison()


class _Table:
    """Collects the rows of a comparison, layer by layer."""

    def __init__(self, damping: float, shared: Shared, write_out: int) -> None:
        self.damping, self.shared, self.write_out = damping, shared, write_out
        self.examples = 0
        self.rows: list[ComparisonRow] = []
        self.spectra: dict[str, dict[str, Tensor]] = {}
        self.matrices: dict[str, dict[str, Tensor]] = {}

    def comparison(self) -> Comparison:
        """What has been collected."""
        rows = tuple(self.rows)
        return Comparison(rows, self.examples, self.damping, self.spectra, self.matrices)

    def add(
        self, view: LayerView, samples: list[Sample], drawn: list[Sample], structures: Sequence[str]
    ) -> None:
        """One layer under all structures."""
        exact = ExactBlock(view.name, samples)
        self.examples = max(self.examples, exact.examples)
        gradient = _mean_gradient(drawn)
        step = exact.solve(gradient, self.damping)
        self.spectra[view.name] = {"exact": exact.eigenvalues()}
        self.matrices[view.name] = {"exact": exact.dense()} if self._small(exact) else {}
        for structure in structures:
            block = self._block(view, structure, samples)
            solved = block.solve(gradient)
            self.rows.append(
                ComparisonRow(
                    layer=view.name,
                    shape="x".join(map(str, view.matrix_shape)),
                    structure=structure,
                    error=exact.error(block),
                    trace_ratio=_ratio(block.trace(), exact.trace(), 1.0),
                    cosine=_ratio((solved * step).sum(), solved.norm() * step.norm(), 1.0),
                    step_error=_ratio((solved - step).norm(), step.norm(), 0.0),
                    bytes=sum(buffer.nbytes for buffer in block.buffers()) // 2,  # kept in float32
                )
            )
            spectrum = block.eigenvalues().sort(descending=True).values
            self.spectra[view.name][structure] = spectrum
            if self._small(exact):
                self.matrices[view.name][structure] = block.dense()

    def _small(self, exact: ExactBlock) -> bool:
        return exact.dim <= self.write_out

    def _block(self, view: LayerView, structure: str, samples: list[Sample]) -> Block:
        """The approximation, from the same samples as the exact block, in float64."""
        block = STRUCTURES[structure](
            view.shape, groups=view.groups, diagonal_input=view.diagonal_input, decay=1.0,
            damping=Constant(self.damping), shared=self.shared, dtype=torch.float64,
            device=samples[0].g.device,
        )  # fmt: skip
        for observe in (block.observe, block.rescale):
            for sample in samples:
                observe(sample.to(torch.float64))
            commit(block)
            if not block.is_ready:
                load([block])
        return block


def _ratio(value: Tensor, over: Tensor, where_both_are_zero: float) -> float:
    """``value / over``; a dead layer has zeros on both sides and nothing to disagree on."""
    if not bool(value) and not bool(over):
        return where_both_are_zero
    return float(value / over)


def _by_layer(gatherer: Gatherer, batches: Batches) -> dict[int, list[Sample]]:
    """All samples of each layer that takes part in every batch."""
    found: dict[int, list[Sample]] = {}
    count = 0
    for samples, _, _ in gatherer.over(batches):
        count += 1
        for k, sample in samples.items():
            found.setdefault(k, []).append(sample)
    for k, listed in found.items():
        if len(listed) < count:
            raise ValueError(
                f"layer {gatherer.views[k].name!r} takes part in {len(listed)} of {count} batches "
                "only: compare on one batch"
            )
    return found


def _mean_gradient(samples: list[Sample]) -> Tensor:
    """The gradient of the mean loss with respect to the layer's matrix, in float64."""
    total = sum(sample.to(torch.float64).gradient_sum() for sample in samples)
    assert isinstance(total, Tensor)
    return total / sum(sample.examples for sample in samples)
