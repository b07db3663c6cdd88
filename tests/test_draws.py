"""Random numbers that can be taken back."""

from __future__ import annotations

import torch

from natgrad.draws import Draws

CPU = torch.device("cpu")


def drawn(draws: Draws) -> list[float]:
    return torch.rand(4, generator=draws.generator(CPU)).tolist()


def test_the_same_seed_draws_the_same() -> None:
    assert drawn(Draws(3)) == drawn(Draws(3))
    assert drawn(Draws(3)) != drawn(Draws(4))


def test_what_a_skipped_step_drew_is_drawn_again() -> None:
    draws = Draws(0)
    drawn(draws)
    draws.keep()
    first = drawn(draws), drawn(draws)
    draws.rewind()
    assert (drawn(draws), drawn(draws)) == first


def test_what_was_kept_is_not_drawn_again() -> None:
    draws = Draws(0)
    first = drawn(draws)
    draws.keep()
    draws.rewind()
    assert drawn(draws) != first


def test_the_state_goes_on_and_can_still_be_rewound() -> None:
    draws, other = Draws(0), Draws(1)
    drawn(draws)
    draws.keep()
    waiting = drawn(draws)
    other.load_state_dict(draws.state_dict())
    assert drawn(other) == drawn(draws)
    other.rewind()
    assert drawn(other) == waiting


def test_nothing_drawn_is_an_empty_state() -> None:
    draws = Draws(0)
    assert draws.state_dict() == {}
    drawn(draws)
    draws.load_state_dict({})
    assert drawn(draws) == drawn(Draws(0))
