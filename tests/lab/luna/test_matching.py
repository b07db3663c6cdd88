import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.lab.luna.froc import Marks, froc
from natgrad.lab.luna.matching import Findings, match, nearest, reduce_candidates, submitted


def findings(centres: list[list[float]], radii: list[float], scan: list[int]) -> Findings:
    return Findings(np.array(centres, float), np.array(radii, float), np.array(scan))


NODULES = findings([[0, 0, 0], [20, 0, 0], [0, 0, 0]], [5, 5, 5], [0, 0, 1])


def marked(scores: list[float], x: list[float], scan: list[int], **more: Findings) -> Marks:
    centres = np.column_stack([x, np.zeros(len(x)), np.zeros(len(x))])
    return match(np.array(scores), centres, np.array(scan), NODULES, 2, **more)


def test_several_hits_on_one_nodule_count_once_with_the_highest_score() -> None:
    found = marked([0.3, 0.9, 0.5], [1, 2, -3], [0, 0, 0])
    assert found.scores.tolist() == [0.9, -np.inf, -np.inf]
    assert found.nodule.tolist() == [True] * 3


def test_the_radius_itself_is_outside() -> None:
    assert marked([0.9], [4.999], [0]).scores[0] == 0.9
    found = marked([0.9], [5.0], [0])
    assert found.scores.tolist() == [-np.inf] * 3 + [0.9]
    assert found.nodule.tolist() == [True] * 3 + [False]


def test_the_same_place_in_another_scan_is_no_hit() -> None:
    found = marked([0.9, 0.8], [20, 0], [1, 1])
    assert found.scores.tolist() == [-np.inf, -np.inf, 0.8, 0.9]
    assert found.scan.tolist() == [0, 0, 1, 1]


def test_a_mark_may_hit_two_nodules() -> None:
    both = findings([[0, 0, 0], [6, 0, 0]], [5, 5], [0, 0])
    found = match(np.array([0.7]), np.array([[3.0, 0, 0]]), np.array([0]), both, 1)
    assert found.scores.tolist() == [0.7, 0.7]


def test_marks_on_excluded_findings_count_neither_way() -> None:
    excluded = findings([[40, 0, 0], [20, 0, 0]], [5, 5], [0, 0])
    found = marked([0.9, 0.8, 0.7], [40, 20, 60], [0, 0, 0], excluded=excluded)
    # at 40 ignored; at 20 it hits a nodule and the exclusion changes nothing; at 60 it is false
    assert found.scores.tolist() == [-np.inf, 0.8, -np.inf, 0.7]
    assert found.nodule.tolist() == [True, True, True, False]


def test_nothing_marked() -> None:
    assert marked([], [], []).scores.tolist() == [-np.inf] * 3


def test_candidates_of_known_kind_give_the_same_marks_as_matching() -> None:
    scores = np.array([0.3, 0.9, 0.5, 0.6])
    matched = marked(scores.tolist(), [1, 2, 50, 0], [0, 0, 0, 1])
    reduced = reduce_candidates(
        scores, np.array([4, 4, -1, 9]), np.array([0, 0, 0, 1]), 2, missed_in=np.array([0])
    )
    assert froc(matched).at().tolist() == froc(reduced).at().tolist()
    assert reduced.nodules == matched.nodules == 3


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        match(np.zeros(2), np.zeros((1, 3)), np.zeros(2, int), NODULES, 2)
    with pytest.raises(ValueError, match="positive"):
        findings([[0, 0, 0]], [0], [0])
    with pytest.raises(ValueError, match=r"centres \[m, d\]"):
        Findings(np.zeros((2, 3)), np.ones(1), np.zeros(2, int))
    with pytest.raises(ValueError, match="two scans"):
        reduce_candidates(np.ones(2), np.array([1, 1]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="equally long"):
        reduce_candidates(np.ones(2), np.array([1]), np.array([0, 1]), 2)


def test_findings_within_others_are_left_out() -> None:
    rows = [[0, 0, 0], [0, 0, 0], [2, 0, 0], [2.1, 0, 0], [0, 0, 0]]
    found = findings(rows, [5, 5, 3, 3, 5], [0, 0, 0, 0, 1])
    # equal ones once; 2 + 3 <= 5 lies within, 2.1 + 3 reaches out; another scan is another place
    assert found.outermost().centres[:, 0].tolist() == [0, 2.1, 0]
    assert found.outermost().scan.tolist() == [0, 0, 1]
    assert len(Findings.none().outermost()) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_what_excluded_findings_cover_does_not_change(seed: int, count: int) -> None:
    """The marks that the challenge's script ignores are the same, findings repeated or not."""
    random = np.random.default_rng(seed)
    places = random.uniform(0, 30, (8, 3))[random.integers(8, size=count)]
    places += random.choice([0.0, 0.5, 4.0], (count, 1)) * random.normal(size=(count, 3))
    radii = random.choice([1.0, 2.5, 5.0, 5.0], count)
    excluded = Findings(places, radii, random.integers(2, size=count))
    centres, scan = random.uniform(0, 30, (200, 3)), random.integers(2, size=200)
    scores = random.permutation(200) * 1.0
    fewer = excluded.outermost()
    assert len(fewer) <= count
    whole, again = (match(scores, centres, scan, NODULES, 2, e) for e in (excluded, fewer))
    assert again.scores.tolist() == whole.scores.tolist()
    assert again.scan.tolist() == whole.scan.tolist()


def test_the_nearest_finding_counts() -> None:
    found = findings([[0, 0, 0], [4, 0, 0], [0, 0, 0]], [5, 5, 5], [0, 0, 1])
    centres = np.array([[1.0, 0, 0], [3, 0, 0], [9, 0, 0], [1, 0, 0]])
    assert nearest(centres, np.array([0, 0, 0, 1]), found).tolist() == [0, 1, -1, 2]
    assert nearest(np.empty((0, 3)), np.empty(0, int), found).tolist() == []


def script_takes(scores: list[float], most: int) -> list[bool]:
    """The lines of the challenge's script for one scan."""
    if len(scores) <= most:
        return [True] * len(scores)
    threshold = sorted(scores, reverse=True)[most]
    return [each > threshold for each in scores]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=40), st.integers(1, 9))
def test_the_highest_marks_of_a_scan_are_taken(drawn: list[tuple[int, int]], most: int) -> None:
    scores = np.array([score for score, _ in drawn], float)
    scan = np.array([scan for _, scan in drawn], int)
    found = submitted(scores, scan, most)
    for k in range(3):
        here = scan == k
        assert found[here].tolist() == script_takes(scores[here].tolist(), most)


def test_of_more_than_a_hundred_marks_in_a_scan_the_lowest_dont_count() -> None:
    # the nodule at 0 has the lowest of 101 marks in scan 0, that of scan 1 the lowest of 100
    scores = np.concatenate([np.arange(101), np.arange(100)]) * 1.0
    x = [0.0, *[50.0] * 100, 0.0, *[50.0] * 99]
    found = marked(scores.tolist(), x, [0] * 101 + [1] * 100)
    assert found.scores[found.nodule].tolist() == [-np.inf, -np.inf, 0.0]
    assert len(found.scores) == 3 + 100 + 99
