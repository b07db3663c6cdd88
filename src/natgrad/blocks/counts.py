"""What the steps that blocks are made of cost; one function for each, beside what it counts."""

from __future__ import annotations

from natgrad.blocks.sides import Side
from natgrad.flops import Rows, Work, committed, gathering, passes, product
from natgrad.split import GRAM_BLOCK

__all__ = [
    "from_left",
    "from_right",
    "gathered",
    "per_example",
    "quotient",
    "rotated_gradients",
    "second_moment",
    "shifted",
    "squares",
    "turned_rows",
    "weighted",
]


def gathered(shape: tuple[int, int], rows: Rows, diagonal_input: bool) -> tuple[Work, ...]:
    """Rows out of activations (:func:`natgrad.passes.sample_of`): patches or a column of ones.

    Each is written, and copied once more where the uses of a layer are put side by side.
    """
    o, i = shape
    n, t, c = rows[:3]
    outputs = passes(c * n * t * o, 4, 2, fresh=2)
    if diagonal_input:
        return (outputs,)
    if rows.kernel > 1:
        return outputs, passes(n * t * i, 3, 2, fresh=2), gathering(n * t * i)
    return outputs, passes(n * t * i, 4, 3, fresh=2)


def second_moment(rows: int, side: Side, mirrored: bool = False) -> tuple[Work, ...]:
    """``sum a a^T`` over so many rows (:func:`natgrad.split.gram`), and its way into the mean.

    Args:
        rows: their number.
        side: how the moment is kept.
        mirrored: whether only blocks on and below the diagonal of a whole one are multiplied.
    """
    if side.diagonal:
        return passes(rows, 3, 3), committed(side.width)
    kept = committed(side.entries)
    if side.split is not None:
        each = (product(w, rows, w).again(b) for b, w in side.runs)
        return *each, passes(side.entries, 2, fresh=1), kept
    if not mirrored:
        return product(side.width, rows, side.width), kept
    whole, left = divmod(side.width, GRAM_BLOCK)
    mean = (whole + 1) * GRAM_BLOCK // 2  # of the widths of the parts
    parts = [product(GRAM_BLOCK, rows, mean).again(whole)]
    parts += [product(left, rows, side.width)] if left else []
    return *parts, passes(side.entries, 1, whole), kept


def shifted(moment: float, side: Side, kernel: int) -> tuple[Work, ...]:
    """The same of patches without unfolding (:mod:`natgrad.shifts`).

    Args:
        moment: multiply-adds, of products that are as narrow as the image has channels.
        side: how the moment is kept.
        kernel: its number of offsets.
    """
    taken = () if side.split is None else (passes(side.entries, 4, fresh=2),)
    channels = max(1, side.width // kernel)
    made = Work("product", 2 * moment, 2 * moment / channels, channels)
    return made, *taken, committed(side.entries)


def turned_rows(shape: tuple[int, int], rows: int, input: Side, output: Side) -> tuple[Work, ...]:
    """``(g X)^T (a Y)`` of so many rows of a backward pass, made homogeneous and copied once."""
    o, i = shape
    around = passes(rows * (o + i), 4, 6, fresh=2)
    return *from_right(rows, input), *from_right(rows, output), product(o, rows, i), around


def from_right(rows: int, side: Side) -> tuple[Work, ...]:
    """So many rows times ``X [d, d]``, such as a basis; nothing where it is diagonal."""
    products = (product(rows, w, w, b) for b, w in side.runs)
    return *products, *_regrouped(rows, side, 4)


def from_left(side: Side, columns: int, stack: int = 1) -> tuple[Work, ...]:
    """``X [d, d]`` times so many columns, ``stack`` of these."""
    products = (product(w, w, columns, b * stack) for b, w in side.runs)
    return *products, *_regrouped(columns * stack, side, 2)


def _regrouped(vectors: int, side: Side, count: int) -> tuple[Work, ...]:
    """What stacks of blocks make of vectors is put side by side again."""
    return () if side.split is None else (passes(vectors * side.width, count, fresh=count / 2),)


def rotated_gradients(
    shape: tuple[int, int], rows: Rows, input: Side, output: Side
) -> tuple[Work, ...]:
    """``U_G^T J U_A`` of each example and column."""
    o, i = shape
    count = rows.columns * rows.examples
    return *from_right(count * o, input), *from_left(output, i, count)


def weighted(rows: int, d: int) -> tuple[Work, ...]:
    """Squared lengths of so many rows, and the rows times a weight each."""
    return (passes(rows * d, 5, 3, fresh=2),)


def per_example(shape: tuple[int, int], rows: Rows) -> tuple[Work, ...]:
    """Gradients ``g^T a`` of each example and column, formed one after another."""
    o, i = shape
    n, t, c = rows[:3]
    return (product(o, t, i, c * n),)


def squares(shape: tuple[int, int], rows: Rows, diagonal_input: bool) -> tuple[Work, ...]:
    """``sum (sum_t g a^T)^2`` (:meth:`natgrad.sample.Sample.squared_gradients`), and its mean."""
    o, i = shape
    n, t, c = rows[:3]
    kept = committed(o * i)
    if diagonal_input:
        return passes(c * n * t * o, 6, 4), kept
    if t == 1:  # the squares factor
        return passes(c * n * o, 3, 2, 1), passes(n * i, 2, 1, 1), product(o, n, i), kept
    return *per_example(shape, rows), passes(c * n * o * i, 3, 2), kept


def quotient(numbers: int) -> tuple[Work, ...]:
    """The elementwise half of :func:`natgrad.linalg.rotated_quotient`, and the scale's own."""
    return (passes(numbers, 14, 8, fresh=5),)
