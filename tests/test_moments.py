"""Running means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.moments import Later, Moment
from tests.networks import normal


def moment(*shape: int, decay: float) -> Moment:
    return Moment(*shape, decay=decay, dtype=torch.float64)


@given(
    decay=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_the_mean_weighs_every_row_by_its_age(decay, counts):
    found = moment(2, decay=decay)
    totals = [normal(2, seed=k) for k in range(len(counts))]
    for total, count in zip(totals, counts, strict=True):
        found.add(total, count)
        found.commit()
    ages = [decay ** (len(counts) - 1 - k) for k in range(len(counts))]
    rows = sum(age * count for age, count in zip(ages, counts, strict=True))
    expected = sum(age * total for age, total in zip(ages, totals, strict=True)) / rows
    assert torch.allclose(found.mean(), expected, rtol=1e-12)


def test_equal_batches_are_the_usual_average_with_bias_correction():
    found, average, decay = moment(3, decay=0.9), torch.zeros(3, dtype=torch.float64), 0.9
    for k in range(1, 6):
        new = normal(3, seed=k)
        found.add(7 * new, 7)
        found.commit()
        average = decay * average + (1 - decay) * new
        assert torch.allclose(found.mean(), average / (1 - decay**k), rtol=1e-12)


def test_micro_batches_of_one_commit_are_one_batch():
    found, whole = moment(2, decay=0.5), moment(2, decay=0.5)
    for k in range(3):
        parts = [normal(2, seed=10 * k + j) for j in range(3)]
        for part in parts:
            found.add(part, 4)
        whole.add(sum(parts), 12)
        found.commit()
        whole.commit()
    assert torch.allclose(found.mean(), whole.mean(), rtol=1e-14)


def test_what_waits_counts_only_after_a_commit():
    found = moment(2, decay=0.5)
    found.add(normal(2), 1)
    assert torch.equal(found.mean(), torch.zeros(2, dtype=torch.float64))
    found.commit()
    assert torch.equal(found.mean(), normal(2))


def test_what_is_discarded_leaves_no_trace():
    found, twin = moment(2, decay=0.5), moment(2, decay=0.5)
    for each in (found, twin):
        each.add(normal(2), 3)
        each.commit()
    found.add(normal(2, seed=1), 5)
    found.discard()
    found.commit()
    assert torch.equal(found.value, twin.value)
    assert torch.equal(found.weight, twin.weight)


def test_a_commit_of_nothing_does_not_age_the_mean():
    found = moment(2, decay=0.5)
    found.add(normal(2), 4)
    found.commit()
    weight = found.weight.clone()
    found.commit()
    assert torch.equal(found.weight, weight)


def test_what_is_added_is_not_changed():
    found, total = moment(2, decay=0.5), normal(2)
    before = total.clone()
    for _ in range(3):
        found.add(total, 2)
    found.commit()
    assert torch.equal(total, before)
    assert torch.allclose(found.mean(), before / 2)


@pytest.mark.parametrize("saved_waits", [False, True])
@pytest.mark.parametrize("loaded_waits", [False, True])
def test_state_is_loaded_with_or_without_something_waiting(saved_waits, loaded_waits):
    saved, loaded = moment(2, decay=0.5), moment(2, decay=0.5)
    saved.add(normal(2), 4)
    saved.commit()
    if saved_waits:
        saved.add(normal(2, seed=1), 3)
    if loaded_waits:
        loaded.add(normal(2, seed=2), 3)
    loaded.load_state_dict(saved.state_dict())
    assert (loaded.pending is not None) == saved_waits
    saved.add(normal(2, seed=3), 2)
    loaded.add(normal(2, seed=3), 2)
    saved.commit()
    loaded.commit()
    assert torch.equal(loaded.mean(), saved.mean())
    assert torch.equal(loaded.weight, saved.weight)


def test_moments_move_and_cast_like_modules():
    found = moment(2, decay=0.5)
    found.add(normal(2), 4)
    found = found.to(torch.float32)
    assert found.value.dtype == found.pending.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (1, 3)])
def test_a_part_tells_whether_all_of_a_sum_of_products_is_finite(bad, place):
    rows = normal(3, 4)
    moment = Moment(4, 4, decay=0.9, of_products=True)
    assert moment.witness() is None
    moment.add(rows.mT @ rows, 3)
    assert moment.witness().shape == (4,)
    assert bool(moment.witness().isfinite().all())
    moment.discard()
    rows[place] = bad
    moment.add(rows.mT @ rows, 3)
    assert not bool(moment.witness().isfinite().all())


def test_of_other_means_all_is_asked():
    moment = Moment(4, 4, decay=0.9)
    moment.add(normal(4, 4), 1)
    assert moment.witness() is moment.pending


def later(total: torch.Tensor, formed: list[int]) -> Later:
    def form() -> torch.Tensor:
        formed.append(1)
        return total

    return Later(form, total.abs().amax())


def test_what_is_formed_later_is_formed_once_at_the_commit():
    found, expected, formed = moment(2, decay=0.5), moment(2, decay=0.5), []
    for k in range(3):
        found.add(later(normal(2, seed=k), formed), 4)
        assert len(formed) == k
        assert torch.equal(found.witness(), normal(2, seed=k).abs().amax())
        assert found.pending is None
        found.commit()
        expected.add(normal(2, seed=k), 4)
        expected.commit()
        assert len(formed) == k + 1
        assert found.witness() is None
    assert torch.equal(found.mean(), expected.mean())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_another_sum_may_come_before_or_after_one_that_is_formed_later(first, second):
    found, expected = moment(2, decay=0.5), moment(2, decay=0.5)
    for k, delayed in enumerate((first, second)):
        total = normal(2, seed=k)
        found.add(later(total, []) if delayed else total, 4 + k)
        expected.add(total, 4 + k)
    assert torch.equal(found.witness(), expected.pending)
    found.commit()
    expected.commit()
    assert torch.equal(found.mean(), expected.mean())


def test_what_is_formed_later_can_be_dropped_unformed():
    found, formed = moment(2, decay=0.5), []
    found.add(later(normal(2), formed), 4)
    found.discard()
    found.commit()
    assert not formed
    assert not found.weight


def test_what_is_formed_later_is_formed_to_be_corrected_or_saved():
    for change in (lambda m: m.correct(2.0), lambda m: m.state_dict()):
        found, expected = moment(2, decay=0.5), moment(2, decay=0.5)
        found.add(later(normal(2), []), 4)
        expected.add(normal(2), 4)
        change(found), change(expected)
        assert torch.equal(found.pending, expected.pending)
        assert found.state_dict().keys() == expected.state_dict().keys()


def test_room_that_was_made_is_used_and_given_up():
    found, expected = moment(2, decay=0.5), moment(2, decay=0.5)
    for k in range(4):
        if k % 2:
            found.make_room()
        room = found._room
        total = normal(2, seed=k)
        found.add(total, 4)
        expected.add(total.clone(), 4)
        assert (found.pending is total) == (room is None)
        assert room is None or found.pending is room
        found.commit()
        expected.commit()
        assert found._room is None
        assert torch.equal(found.mean(), expected.mean())
    found.make_room()
    found.commit()  # nothing came
    assert found._room is None
    assert torch.equal(found.mean(), expected.mean())
