"""Figures of a comparison: what they show, and that nothing global is touched."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

import natgrad
from natgrad import Categorical, Comparison
from natgrad.compare import COMPARED
from tests.networks import mlp, normal

KINDS = ("errors", "spectra", "matrices")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return natgrad.compare(mlp(3, 4, 2), normal(12, 3), Categorical())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_a_figure_that_can_be_saved(kind, comparison, tmp_path):
    figure = comparison.plot(kind)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_bars_are_the_errors_of_the_table(comparison):
    figure = comparison.plot()
    for axes, field in zip(figure.axes, ("error", "step_error"), strict=True):
        shown = [bar.get_height() for bars in axes.containers for bar in bars]
        expected = [
            getattr(row, field) for s in COMPARED for row in comparison.rows if row.structure == s
        ]
        assert shown == pytest.approx(expected)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0", "2"]


def test_spectra_show_the_eigenvalues_of_every_structure(comparison):
    figure = comparison.plot("spectra")
    for axes, spectra in zip(figure.axes, comparison.spectra.values(), strict=True):
        curves = {line.get_label(): line for line in axes.get_lines()}
        for structure, spectrum in spectra.items():
            kept = spectrum[spectrum > 1e-12 * spectra["exact"][0]]
            assert list(curves[structure.upper()].get_ydata()) == pytest.approx(kept.tolist())


def test_matrices_show_the_smallest_layer_with_the_exact_block_first(comparison):
    figure = comparison.plot("matrices")
    pictures = [axes for axes in figure.axes if axes.images]
    assert [axes.get_xlabel() for axes in pictures][:2] == ["EXACT", "KFAC"]
    for axes, matrix in zip(pictures, comparison.matrices["2"].values(), strict=False):
        image = axes.images[0].get_array()
        assert image.shape == tuple(matrix.shape)
        assert float(image.max()) == pytest.approx(float(matrix.abs().max()) ** 0.5)


def test_many_layers_have_a_picture_each():
    found = natgrad.compare(mlp(2, 2, 2, 2, 2, 2), normal(12, 2), Categorical())
    figure = found.plot("spectra")
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False]


def test_drawing_leaves_the_settings_and_the_figures_of_pyplot_alone(comparison, tmp_path):
    from matplotlib import pyplot

    settings, backend, open_figures = dict(mpl.rcParams), mpl.get_backend(), pyplot.get_fignums()
    for kind in KINDS:
        comparison.plot(kind).savefig(tmp_path / f"{kind}.png")
    assert dict(mpl.rcParams) == settings
    assert mpl.get_backend() == backend
    assert pyplot.get_fignums() == open_figures


def test_drawing_does_not_import_pyplot_and_importing_natgrad_does_not_import_matplotlib():
    script = """
import sys, torch, natgrad
assert "matplotlib" not in sys.modules
found = natgrad.compare(torch.nn.Linear(2, 2), torch.randn(6, 2), natgrad.Categorical())
assert "matplotlib" not in sys.modules
for kind in ("errors", "spectra", "matrices"):
    found.plot(kind)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


def test_an_unknown_kind_and_a_comparison_without_matrices_are_refused(comparison):
    with pytest.raises(ValueError, match=r"kind must be one of \['errors', .*got 'pie'"):
        comparison.plot("pie")
    large = natgrad.compare(mlp(3, 4, 2), normal(12, 3), Categorical(), write_out=0)
    with pytest.raises(ValueError, match="raise write_out="):
        large.plot("matrices")


def test_a_missing_matplotlib_is_named_with_what_to_install(comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "natgrad\[lab\]"'):
        comparison.plot()
