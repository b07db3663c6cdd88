"""What the steps that blocks are made of cost; one function for each, beside what it counts."""

from __future__ import annotations

from natgrad.flops import Rows, Work, committed, gathering, passes, product

__all__ = [
    "gathered",
    "per_example",
    "quotient",
    "rotated_gradients",
    "rotation",
    "second_moment",
    "shifted",
    "squares",
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


def second_moment(rows: int, d: int, diagonal: bool = False) -> tuple[Work, ...]:
    """``sum a a^T`` over so many rows of width ``d``, and its way into the running mean."""
    if diagonal:
        return passes(rows, 3, 3), committed(d)
    return product(d, rows, d), committed(d * d)


def shifted(moment: float, d: int) -> tuple[Work, ...]:
    """The same of patches without unfolding, in so many multiply-adds (:mod:`natgrad.shifts`)."""
    return Work("product", 2 * moment, moment / d, d), committed(d * d)


def rotated_gradients(shape: tuple[int, int], rows: Rows) -> tuple[Work, ...]:
    """``U_G^T J U_A`` of each example and column."""
    o, i = shape
    count = rows.columns * rows.examples
    return product(count * o, i, i), product(o, o, i, count)


def weighted(rows: int, d: int) -> tuple[Work, ...]:
    """Squared lengths of so many rows, and the rows times a weight each."""
    return (passes(rows * d, 5, 3, fresh=2),)


def rotation(rows: int, d: int) -> tuple[Work, ...]:
    """So many rows times a basis ``[d, d]``."""
    return (product(rows, d, d),)


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
