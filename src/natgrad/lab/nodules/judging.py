"""How classifiers of candidates are trained and judged: cross-entropy, AUC, FROC and CPM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from natgrad.lab.data import Pair
from natgrad.lab.luna.froc import MISSED, Marks, cpm, froc
from natgrad.lab.luna.matching import reduce_candidates, submitted
from natgrad.lab.metrics import Metric
from natgrad.lab.nodules.candidates import (
    EMPTY,
    IGNORED,
    LABEL,
    LOST,
    NODULE,
    SCAN,
    UNSEEN,
)
from natgrad.lab.nodules.contextual import fused
from natgrad.lab.objective import outputs
from natgrad.least_squares.residuals import Residuals
from natgrad.likelihood import Categorical

__all__ = ["AUC", "CPM", "LIKELIHOOD", "Candidates", "area", "marks_by", "marks_of", "scored"]

EVALUATED_AT_ONCE = 64  #: volumes are large

#: every level is a classifier of its own; their losses are averaged
LIKELIHOOD = Categorical()


def area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted half.

    Raises:
        ValueError: all of one kind.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise ValueError(f"the AUC needs both kinds, got {count} positives of {len(positive)}")
    _, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size - 1) / 2)[place]
    above = ranks[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def marks_of(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> Marks:
    """Scored candidates as marks for the FROC curve.

    Args:
        scores: ``[n]``.
        targets: ``[n, 6]``, see :mod:`natgrad.lab.nodules.candidates`.

    Returns:
        The scans without a candidate are the last. In which of them each of their nodules lies is
        not known: they are dealt out in turn, on which bootstrap intervals alone depend.

    Raises:
        ValueError: it is not known of which scan the candidates are, or there is no nodule.
    """
    names, scan = np.unique(targets[:, SCAN], return_inverse=True)
    if names.min(initial=0) < 0:
        raise ValueError("without scans there are no false positives per scan, and no FROC curve")
    first = np.unique(scan, return_index=True)[1]
    lost = np.repeat(np.arange(len(names)), targets[first, LOST])
    empty, unseen = targets[0, [EMPTY, UNSEEN]].tolist()
    if unseen:
        lost = np.concatenate([lost, len(names) + np.arange(unseen) % empty])
    kept, nodule = submitted(scores, scan), targets[:, NODULE]
    counted = (kept & (nodule != IGNORED)) | (nodule >= 0)
    scores = np.where(kept, scores, MISSED)
    return reduce_candidates(
        scores[counted], nodule[counted], scan[counted], len(names) + empty, missed_in=lost
    )


def scored(logits: Tensor) -> NDArray[np.float64]:
    """Probabilities of a nodule ``[n]``."""
    found: NDArray[np.float64] = fused(logits.double()).numpy(force=True)
    return found


def marks_by(model: nn.Module, pair: Pair) -> Marks:
    """A classifier's marks.

    Args:
        model: gives logits ``[n, 3, 2]``.
        pair: candidates and targets ``[n, 6]``.

    Raises:
        ValueError: what :func:`marks_of` refuses.
    """
    logits = outputs(model, pair.inputs, EVALUATED_AT_ONCE)
    return marks_of(scored(logits), pair.targets.numpy(force=True))


def _auc(logits: Tensor, targets: Tensor) -> float:
    return area(scored(logits), targets[:, LABEL].numpy(force=True) == 1)


def _cpm(logits: Tensor, targets: Tensor) -> float:
    return cpm(froc(marks_of(scored(logits), targets.numpy(force=True))).at())


#: area under the ROC curve over all candidates
AUC = Metric("AUC", "", "higher", _auc)
#: mean sensitivity at 1/8 to 8 false positives per scan
CPM = Metric("CPM", "", "higher", _cpm)


@dataclass(frozen=True)
class Candidates:
    """Mean cross-entropy over candidates and levels; the metric is of the fused probabilities."""

    metric: Metric

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """See :class:`natgrad.lab.objective.Objective`."""
        return _nll(model(batch.inputs), batch.targets).mean()

    def residuals(self, batch: Pair) -> Residuals | None:
        """None: optimizers take the likelihood."""
        return None

    def evaluate(self, model: nn.Module, pair: Pair) -> tuple[float, float]:
        """Mean cross-entropy, and the metric."""
        logits = outputs(model, pair.inputs, EVALUATED_AT_ONCE)
        return _nll(logits, pair.targets).mean().item(), self.metric.of(logits, pair.targets)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    labels = targets[:, LABEL, None].expand(logits.shape[:-1])
    return LIKELIHOOD.nll(logits, labels)
