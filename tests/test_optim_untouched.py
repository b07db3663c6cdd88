"""What an optimizer does when nothing but the learning rate is said."""

from __future__ import annotations

import pytest

import natgrad
from natgrad import Categorical
from tests.networks import mlp

METHODS = [natgrad.KFAC, natgrad.EKFAC, natgrad.TKFAC, natgrad.TEKFAC]


def settings(opt) -> dict:
    pre = opt.preconditioner
    return {
        "damping": pre.damping, "kl_clip": pre.bounds.kl_clip,
        "stats_every": pre.schedule.stats_every, "refresh_every": pre.schedule.refresh_every,
        "burn_in": pre.schedule.burn_in,
    }  # fmt: skip


PLAIN = {"kl_clip": None, "stats_every": 1, "refresh_every": 1, "burn_in": 0}


@pytest.mark.parametrize("method", METHODS)
def test_left_alone_it_takes_its_own_settings(method):
    assert settings(method(mlp(4, 6, 3), lr=0.1)) == dict(method.untouched)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_damping_there_are_no_others(method):
    assert settings(method(mlp(4, 6, 3), lr=0.1, damping=0.2)) == {"damping": 0.2, **PLAIN}


SCHEDULE = {"stats_every": 1, "refresh_every": 1, "burn_in": 0}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"kl_clip": None}, {"kl_clip": None}),
        ({"kl_clip": 0.1}, {"kl_clip": 0.1}),
        ({"max_norm": 1.0}, {"kl_clip": None}),
        ({"stats_every": 3}, {**SCHEDULE, "stats_every": 3}),
        ({"refresh_every": 3}, {**SCHEDULE, "refresh_every": 3}),
        ({"burn_in": 2}, {**SCHEDULE, "burn_in": 2}),
    ],
)
def test_a_bound_or_a_schedule_that_is_given_in_part_is_the_users_own(given, found):
    opt = natgrad.KFAC(mlp(4, 6, 3), lr=0.1, **given)
    assert settings(opt) == {**natgrad.KFAC.untouched, **found}


def test_an_automatic_learning_rate_is_not_bounded_besides():
    opt = natgrad.KFAC(mlp(4, 6, 3), lr="auto", likelihood=Categorical())
    assert settings(opt) == {**natgrad.KFAC.untouched, "kl_clip": None}


def test_the_exact_optimizer_keeps_to_every_batch():
    assert settings(natgrad.ExactNGD(mlp(4, 6, 3), lr=0.1)) == {"damping": 1e-3, **PLAIN}
