import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from natgrad.lab.data import Pair
from natgrad.lab.luna.froc import froc
from natgrad.lab.nodules.candidates import EMPTY, UNSEEN
from natgrad.lab.nodules.contextual import fused
from natgrad.lab.nodules.judging import AUC, CPM, Candidates, area, marks_of, scored
from natgrad.lab.objective import outputs


def test_the_area_is_that_of_scikit_learn_with_ties_too() -> None:
    random = np.random.default_rng(0)
    scores, positive = np.round(random.random(200), 1), random.random(200) < 0.3
    assert area(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert area(np.array([0.1, 0.9]), np.array([False, True])) == 1.0
    with pytest.raises(ValueError, match="both kinds"):
        area(scores, np.ones(200, bool))


# label, nodule, scan, lost, empty, unseen: scan 7 has a nodule with two candidates and one that is
# lost; scan 9 has an ignored candidate and a false one; one more scan has no candidate at all
TARGETS = np.array(
    [
        [1, 0, 7, 1, 1, 0],
        [1, 0, 7, 1, 1, 0],
        [0, -1, 7, 1, 1, 0],
        [0, -2, 9, 0, 1, 0],
        [0, -1, 9, 0, 1, 0],
    ]
)


def test_candidates_become_marks() -> None:
    marks = marks_of(np.array([0.2, 0.8, 0.5, 0.9, 0.1]), TARGETS)
    assert marks.scans == 3
    assert marks.nodules == 2
    assert marks.scores.tolist() == [0.8, -np.inf, 0.5, 0.1]
    assert marks.scan.tolist() == [0, 0, 0, 1]
    assert froc(marks).at([1 / 3, 1]).tolist() == [0.5, 0.5]


def test_nodules_of_scans_without_a_candidate_are_dealt_out_to_them() -> None:
    targets = TARGETS.copy()
    targets[:, [EMPTY, UNSEEN]] = [2, 3]
    marks = marks_of(np.array([0.2, 0.8, 0.5, 0.9, 0.1]), targets)
    assert (marks.scans, marks.nodules) == (4, 5)
    assert marks.scan[marks.nodule].tolist() == [0, 0, 2, 3, 2]
    assert marks.scores[marks.nodule].tolist() == [0.8, *[-np.inf] * 4]


def test_a_nodule_below_a_hundred_other_candidates_of_its_scan_is_missed() -> None:
    rows = [[1, 0, 0, 0, 0, 0], [0, -2, 0, 0, 0, 0], *[[0, -1, 0, 0, 0, 0]] * 99]
    targets = np.array(rows)
    scores = np.arange(101.0)  # the nodule's is the lowest; an ignored one counts among them
    marks = marks_of(scores, targets)
    assert marks.scores.tolist() == [-np.inf, *range(2, 101)]
    assert marks_of(scores[:100], targets[:100]).scores[0] == 0


def test_a_part_of_a_split_can_be_scored_too() -> None:
    marks = marks_of(np.array([0.2, 0.8, 0.5]), TARGETS[:3])
    assert (marks.scans, marks.nodules) == (2, 2)


def test_without_scans_there_is_no_curve() -> None:
    targets = TARGETS.copy()
    targets[:, 2] = -1
    with pytest.raises(ValueError, match="without scans"):
        marks_of(np.zeros(5), targets)


class Fixed(nn.Module):
    """Says the logits it is given as inputs; counts how many at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(len(x))
        return x


def test_loss_and_metric_of_a_split() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 2, generator=random)
    pair = Pair(logits, torch.from_numpy(TARGETS))
    loss, metric = Candidates(CPM).evaluate(Fixed(), pair)
    labels = torch.tensor([1, 1, 0, 0, 0])
    expected = torch.stack(
        [nn.functional.cross_entropy(logits[:, level], labels) for level in range(3)]
    )
    assert loss == pytest.approx(expected.mean().item(), rel=1e-6)
    curve = froc(marks_of(scored(logits), TARGETS))
    assert metric == pytest.approx(curve.at().mean())
    scores = fused(logits.double()).numpy()
    _, auc = Candidates(AUC).evaluate(Fixed(), pair)
    assert auc == pytest.approx(roc_auc_score(labels.numpy(), scores))


def test_the_training_loss_is_that_of_the_evaluation() -> None:
    logits = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1))
    batch = Pair(logits, torch.from_numpy(TARGETS))
    model = Fixed().eval()
    loss = Candidates(AUC).loss(model, batch).item()
    assert loss == pytest.approx(Candidates(AUC).evaluate(model, batch)[0])
    assert Candidates(AUC).residuals(batch) is None


def test_a_network_is_given_a_few_examples_at_a_time_and_its_mode_is_put_back() -> None:
    model = Fixed()
    assert outputs(model, torch.zeros(5, 1), at_once=2).shape == (5, 1)
    assert model.seen == [2, 2, 1]
    assert model.training
