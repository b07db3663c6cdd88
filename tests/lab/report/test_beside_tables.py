"""The figure of the paper's numbers: what is not comparable looks so and is said to be."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.colors import same_color

from natgrad.lab.report.beside import Beside, as_table, notes
from natgrad.lab.report.beside_tables import FAR, figure, terminal
from natgrad.lab.report.style import COLOURS

COMPARED = Beside(
    what="SGD, test accuracy",
    where="Fig. 3",
    paper="97.62 %",
    ours="97.50 ± 0.10 %",
    difference="-0.12",
    seeds="3",
    data="MNIST",
    verdict="reproduced",
    why="",
    unit="%",
    drawn=(97.62, None, 97.5, 0.1),
)
ELSEWHERE = replace(
    COMPARED,
    where="Table 3, ResNet-20 on CIFAR-10",
    data="CIFAR-10; ours: CIFAR-10 (JPEG)",
    verdict="not comparable",
    why="other data: CIFAR-10 (JPEG)",
    drawn=(92.79, 0.14, 45.41, 1.19),
)


def labels(*rows: Beside) -> list[str]:
    made = figure(rows, "cpu")
    assert made is not None
    return [text.get_text() for text in made.legends[0].get_texts()]


def test_the_legend_says_the_profile_and_what_is_not_comparable() -> None:
    apart = "ours, cpu profile: not comparable with the paper's"
    assert labels(COMPARED) == ["paper", "ours, cpu profile"]
    assert labels(ELSEWHERE) == ["paper", apart]
    assert labels(COMPARED, ELSEWHERE) == ["paper", "ours, cpu profile", apart]


def test_what_is_not_comparable_is_hollow_and_grey() -> None:
    made = figure([COMPARED, ELSEWHERE])
    assert made is not None
    ours = [line for line in made.axes[0].lines if line.get_marker() == "o"]
    assert same_color(ours[0].get_markerfacecolor(), COLOURS[0])
    assert same_color(ours[1].get_markerfacecolor(), "white")
    assert same_color(ours[1].get_markeredgecolor(), FAR)


def test_the_true_name_of_our_data_stands_beside_the_papers() -> None:
    made = figure([ELSEWHERE, ELSEWHERE])
    assert made is not None
    (ax,) = made.axes
    said = "Table 3, ResNet-20 on CIFAR-10\nours: CIFAR-10 (JPEG)"
    assert ax.get_title(loc="left") == said
    made = figure([COMPARED, ELSEWHERE])
    assert made is not None
    ticks = [tick.get_text() for tick in made.axes[0].get_yticklabels()]
    assert ticks == ["SGD, test accuracy\nFig. 3, MNIST", f"SGD, test accuracy\n{said}"]


def test_data_are_said_once_above_the_rows_that_are_of_them() -> None:
    rows = [COMPARED, COMPARED, ELSEWHERE]
    headings, blocks = as_table(rows)
    assert "data" not in headings
    assert [block.title for block in blocks] == [COMPARED.data, ELSEWHERE.data]
    assert [len(block.cells) for block in blocks] == [2, 1]
    assert all(len(cells) == len(headings) for block in blocks for cells in block.cells)
    assert not any(note.startswith("Data") for note in notes(rows))
    assert terminal(rows).row_count == 3 + 2


def test_data_that_all_rows_are_of_are_said_below() -> None:
    for rows in ([ELSEWHERE], [ELSEWHERE, ELSEWHERE]):
        headings, blocks = as_table(rows)
        assert "data" not in headings
        assert [block.title for block in blocks] == [""]
        assert f"Data: {ELSEWHERE.data}." in notes(rows)
