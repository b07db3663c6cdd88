import pytest

from natgrad.lab.errors import UsageError
from natgrad.lab.schedules import Constant, Linear, Plateau, Position, Steps, parse


def curve(*figures: float) -> list[dict[str, float]]:
    """A point at the end of each epoch."""
    return [{"epoch": float(k), "validation_metric": y} for k, y in enumerate(figures)]


def test_constant_and_linear() -> None:
    assert [Constant().factor(Position(used, 0)) for used in (0, 0.5, 1)] == [1, 1, 1]
    assert [Linear().factor(Position(used, 0)) for used in (0, 0.25, 1, 1.1)] == [1, 0.75, 0, 0]


def test_steps_fall_at_the_first_update_of_an_epoch() -> None:
    steps = Steps(40)
    found = [steps.factor(Position(0, epoch)) for epoch in (0, 39.99, 40, 79.99, 80, 120)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])


def test_a_plateau_is_a_number_of_epochs_without_a_better_point() -> None:
    plateau = Plateau(2)

    def factor(*figures: float) -> float:
        return plateau.factor(Position(0, 0, curve(*figures)))

    assert factor() == 1
    assert factor(50, 60, 59) == 1  # one epoch without a better one
    assert factor(50, 60, 59, 60) == pytest.approx(0.1)  # as good is not better
    assert factor(50, 60, 59, 61) == 1
    assert factor(50, 60, 59, 58, 57) == pytest.approx(0.1)  # time to see what the drop does
    assert factor(50, 60, 59, 58, 57, 56) == pytest.approx(0.01)
    assert factor(50, 60, 59, 58, 61, 62, 60) == pytest.approx(0.1)


def test_a_plateau_of_a_figure_that_should_be_low() -> None:
    falling, rising = curve(3, 2, 1, 0.5), curve(1, 2, 3, 4)
    plateau = Plateau(3)
    assert plateau.factor(Position(0, 0, falling, "lower")) == 1
    assert plateau.factor(Position(0, 0, rising, "lower")) == pytest.approx(0.1)
    assert plateau.factor(Position(0, 0, rising, "higher")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", Constant()),
        ("linear", Linear()),
        ("steps:40", Steps(40)),
        ("steps:40:0.2", Steps(40, 0.2)),
        ("plateau:5:0.5", Plateau(5, 0.5)),
    ],
)
def test_names(text: str, expected: object) -> None:
    found = parse(text)
    assert found == expected
    assert found.about


@pytest.mark.parametrize("text", ["cosine", "steps", "steps:x", "steps:0", "steps:4:1", "linear:3"])
def test_what_is_no_schedule_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UsageError, match=r"steps:EPOCHS\[:RATIO\]"):
        parse(text)
