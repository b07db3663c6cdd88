import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from natgrad.lab.luna.froc import OPERATING_POINTS, Curve, Marks, cpm, froc

#: Liu & Liu 2021: sensitivities as printed, and the CPM as printed
TABLE_1 = {
    "SGD": ((0.677, 0.834, 0.927, 0.967, 0.979, 0.980, 0.981), 0.906),
    "SNGD": ((0.701, 0.855, 0.941, 0.976, 0.982, 0.983, 0.983), 0.917),
}
TABLE_2 = {
    "SGD + BN": ((0.738, 0.875, 0.923, 0.955, 0.96, 0.961, 0.961), 0.910),
    "SGD": ((0.725, 0.874, 0.918, 0.949, 0.957, 0.958, 0.959), 0.906),
}


def marks(scores: list[float], nodule: list[int], scan: list[int], scans: int) -> Marks:
    return Marks(np.array(scores, float), np.array(nodule, bool), np.array(scan, int), scans)


@pytest.mark.parametrize(("row", "printed"), [*TABLE_1.values(), *TABLE_2.values()])
def test_the_papers_table_arithmetic(row: tuple[float, ...], printed: float) -> None:
    assert round(cpm(row), 3) == printed


def test_the_paper_cuts_off_where_it_should_round() -> None:
    mean = cpm((0.806, 0.893, 0.927, 0.958, 0.966, 0.971, 0.972))
    assert mean == pytest.approx(0.9276, abs=5e-5)
    assert np.floor(mean * 1000) / 1000 == 0.927
    assert round(mean, 3) == 0.928


# Two scans, four nodules. Falling scores, N a nodule and f a false positive:
#   .9 N   .8 f   .7 N   .6 f   .5 N   .4 f   .3 f   and one nodule that nothing marks.
# Points of the curve (false positives / 2 scans, nodules / 4):
#   (0, 0) (0, .25) (.5, .25) (.5, .5) (1, .5) (1, .75) (1.5, .75) (2, .75)
# Read at 1/8 and 1/4: on the level stretch from (0, .25) to (.5, .25): .25
#      at 1/2: the curve rises there from .25 to .5, the upper end counts: .5
#      at 1: the same, from .5 to .75: .75
#      at 2: the last point, .75; at 4 and 8: beyond it, .75
# CPM = (.25 + .25 + .5 + .75 + .75 + .75 + .75) / 7 = 4 / 7
BY_HAND = marks(
    [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, -np.inf],
    [1, 0, 1, 0, 1, 0, 0, 1],
    [0, 0, 1, 1, 0, 0, 1, 1],
    2,
)


def test_a_case_computed_by_hand() -> None:
    curve = froc(BY_HAND)
    assert curve.rates.tolist() == [0, 0, 0.5, 0.5, 1, 1, 1.5, 2]
    assert curve.sensitivities.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert curve.at().tolist() == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert cpm(curve.at()) == pytest.approx(4 / 7)


def test_equal_scores_enter_together_and_the_line_between_is_straight() -> None:
    # one scan: two nodules and four false positives share one score: a single step from (0, 0)
    # to (4, 1), so at 1 false positive per scan a quarter of the way, at 1/8 an eighth of that
    curve = froc(marks([0.5] * 6, [1, 1, 0, 0, 0, 0], [0] * 6, 1))
    assert curve.at([1, 2, 8]).tolist() == [0.25, 0.5, 1.0]
    assert curve.at([0.125]).tolist() == [1 / 32]


def test_the_order_of_equal_scores_is_of_no_account() -> None:
    first = froc(marks([0.5, 0.5, 0.4], [1, 0, 1], [0, 0, 0], 1))
    second = froc(marks([0.4, 0.5, 0.5], [1, 0, 1], [0, 0, 0], 1))
    assert first.rates.tolist() == second.rates.tolist()
    assert first.sensitivities.tolist() == second.sensitivities.tolist()


def test_no_false_positive_at_all() -> None:
    curve = froc(marks([0.9, -np.inf], [1, 1], [0, 1], 3))
    assert curve.at().tolist() == [0.5] * 7


def test_a_system_that_marks_nothing() -> None:
    assert froc(marks([-np.inf, -np.inf], [1, 1], [0, 0], 1)).at().tolist() == [0.0] * 7


def test_scans_without_marks_count_as_scans() -> None:
    few, many = (froc(marks([0.9, 0.8, 0.7], [0, 1, 0], [0, 0, 0], scans)) for scans in (1, 8))
    assert few.at([0.125]).tolist() == [0.0]  # one false positive in a scan, before any nodule
    assert many.at([0.125]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodule": np.zeros(2, bool)}, "annotated nodules"),
        ({"scans": 0}, "need a scan"),
        ({"scan": np.array([0, 2])}, r"0\.\.1"),
        ({"scan": np.array([0])}, "equally long"),
        ({"scores": np.array([0.5, np.nan])}, "numbers"),
        ({"scores": np.array([0.5, np.inf])}, "finite"),
    ],
)
def test_what_has_no_curve_is_refused(change: dict[str, object], words: str) -> None:
    right = {
        "scores": np.array([0.5, 0.4]),
        "nodule": np.array([True, False]),
        "scan": np.array([0, 1]),
        "scans": 2,
    }
    Marks(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        Marks(**{**right, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[0.5] * 6, [0.5] * 6 + [1.5], [[0.5] * 7]])
def test_a_cpm_of_anything_else_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="sensitivities"):
        cpm(values)


def challenge(system: Marks) -> Curve:
    """The lines of the challenge's evaluation script, on top of scikit-learn's ROC curve."""
    seen = system.scores > -np.inf
    truth = system.nodule[seen].astype(int)
    rate, share, _ = roc_curve(truth, system.scores[seen])
    detected = truth.sum()
    fps = rate * (len(truth) - detected) / system.scans
    return Curve(fps, share * detected / system.nodules)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 40))
def test_the_curve_is_that_of_the_challenges_script(seed: int, scans: int, count: int) -> None:
    random = np.random.default_rng(seed)
    nodule = random.random(count) < 0.4
    nodule[:2] = True, False  # the script's ROC curve needs both
    scores = np.round(random.random(count), 1)  # with ties
    scores[nodule & (random.random(count) < 0.2)] = -np.inf
    scores[0] = 0.5
    system = Marks(scores, nodule, random.integers(0, scans, count), scans)
    rates = [*OPERATING_POINTS, *random.random(5) * 3]
    assert froc(system).at(rates) == pytest.approx(challenge(system).at(rates))
