"""What a paper states, and where our counterpart of it is found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "At", "Bound", "Cell", "Claim", "Fewer", "Final", "Number", "Reached", "Reading", "StepTime",
    "record",
]  # fmt: skip

Axis: TypeAlias = Literal["epochs", "updates", "seconds"]


@dataclass(frozen=True)
class Final:
    """The last evaluation of an optimizer, over seeds; one that diverged is behind all others.

    Attributes:
        optimizer: whose.
        quantity: ``"train_loss"``, ``"test_metric"`` and so on.
        complement: 100 minus it: the error of an accuracy in percent.
    """

    optimizer: str
    quantity: str = "test_metric"
    complement: bool = False


@dataclass(frozen=True)
class At:
    """A point of an optimizer's curve, over seeds, linear between the evaluations around it.

    A seed whose run is shorter is not measured; one that diverged before it is behind all others.

    Attributes:
        optimizer: whose.
        quantity: ``"train_loss"``, ``"test_metric"`` and so on.
        axis: ``"epochs"``, ``"updates"`` or ``"seconds"``.
        value: the place on this axis.
        complement: 100 minus it: the error of an accuracy in percent.
    """

    optimizer: str
    quantity: str
    axis: Axis
    value: float
    complement: bool = False


@dataclass(frozen=True)
class StepTime:
    """The time of a pass over the training data, divided by another optimizer's.

    It depends on machine, widths, batch size and how often is refitted: a number of it wants
    ``comparable=False`` and a reason, unless the paper states all of them and ours are the same.

    Attributes:
        optimizer: whose.
        relative_to: divided by whose.
    """

    optimizer: str
    relative_to: str = "sgd"


@dataclass(frozen=True)
class Reached:
    """What it took to the comparison's target: SGD's median final validation loss, if it was run.

    A seed that diverges or ends before it took infinitely long. Where a claim has this on the
    side of the higher figure, a seed that ends before it counts as its whole budget, which it took
    at least: of SGD itself some seed usually misses the median.

    Attributes:
        optimizer: whose.
        axis: ``"epochs"``, ``"updates"`` or ``"seconds"``.
    """

    optimizer: str
    axis: Axis = "updates"


@dataclass(frozen=True)
class Fewer:
    """How many times fewer updates than another optimizer: a ratio of two `Reached`, seed by seed.

    The other one's divided by the optimizer's. Where the other one ends before the target, its
    whole budget is divided, and the ratio is that at least; where the optimizer itself does not
    arrive, the ratio is 0.

    Attributes:
        optimizer: whose are few.
        than: the other one, in the same experiment.
        axis: ``"epochs"``, ``"updates"`` or ``"seconds"``.
    """

    optimizer: str
    than: str = "sgd"
    axis: Axis = "updates"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that the recipe's study writes; see :mod:`natgrad.lab.study`.

    Attributes:
        table: its name.
        row: the entry of the first column.
        column: the heading; the spread is read from the column ``"<heading> sd"``, the number of
            seeds from the table's figures seed by seed or from ``"seeds"``, where these are there.
            Beside a spread, a column ``"reached"`` says from how many seeds the figure is the mean:
            ``"2 of 3"``, the third one taking infinitely long.
    """

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Bound:
    """A number that the paper states as a bound: stands on one side of a claim."""

    value: float


Reading: TypeAlias = Final | At | StepTime | Reached | Fewer | Cell | Bound


@dataclass(frozen=True)
class Number:
    """A number of the paper.

    Attributes:
        what: what was measured, as the paper means it: ``"SGD, test accuracy"``.
        value: as printed.
        where: ``"Table 3, ResNet-20"``.
        data: the data set as the paper names it.
        ours: where our number is.
        spread: as printed, none if the paper gives none.
        unit: of both.
        comparable: false where ours means something else even at full size.
        reason: why not, a phrase; of other data or a smaller profile the report knows by itself.
        explanation: our best one, should it not be reproduced.
    """

    what: str
    value: float
    where: str
    data: str
    ours: Reading
    spread: float | None = None
    unit: str = ""
    comparable: bool = True
    reason: str = ""
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.comparable == bool(self.reason):
            raise ValueError(f"{self.what}: say the reason if, and only if, it is not comparable")


@dataclass(frozen=True)
class Claim:
    """An ordering: it can hold on other data and at a smaller size than the paper's too.

    Attributes:
        what: in the paper's sense: ``"TEKFAC is more accurate than EKFAC"``.
        where: in the paper.
        data: the data set as the paper names it.
        better: where ours of the one claimed to be ahead is.
        worse: of the other one.
        wants: ``"higher"`` or ``"lower"`` is ahead.
        explanation: our best one, should it not hold.
        own: true where the paper does not claim it and we ask; shown apart and not counted among
            what is reproduced.
    """

    what: str
    where: str
    data: str
    better: Reading
    worse: Reading
    wants: Literal["higher", "lower"] = "higher"
    explanation: str = ""
    own: bool = False


def record(stated: Number | Claim) -> dict[str, Any]:
    """Plain values for a manifest; a reading carries its ``kind``."""
    plain = {"kind": type(stated).__name__.lower(), **asdict(stated)}
    for key in ("ours", "better", "worse"):
        reading = getattr(stated, key, None)
        if reading is not None:
            plain[key] = {"kind": type(reading).__name__.lower(), **asdict(reading)}
    return plain
