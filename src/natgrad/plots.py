"""Pictures of a comparison. Needs matplotlib, which the library itself does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from natgrad.compare import Comparison

__all__ = ["plot"]

COLOURS = {  # Okabe & Ito: told apart by the colour-blind
    "exact": "#000000",
    "kfac": "#0072B2",
    "ekfac": "#56B4E9",
    "tkfac": "#D55E00",
    "tekfac": "#E69F00",
    "diagonal": "#009E73",
    "block": "#000000",
    "dense": "#000000",
}
STYLES = {"exact": "-", "kfac": "-", "ekfac": "--", "tkfac": "-", "tekfac": "--", "diagonal": ":"}


def plot(comparison: Comparison, kind: str = "errors") -> Figure:
    """A figure of ``kind`` ``"errors"``, ``"spectra"`` or ``"matrices"``.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: unknown kind, or no matrix small enough to be shown.
    """
    kinds = {"errors": _errors, "spectra": _spectra, "matrices": _matrices}
    if kind not in kinds:
        raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            'plots need matplotlib: pip install "natgrad[lab]"', name="matplotlib"
        ) from missing
    return kinds[kind](comparison)


def _errors(comparison: Comparison) -> Figure:
    """Relative error of the block, and of the damped natural gradient, for each layer."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in comparison.rows))
    structures = list(dict.fromkeys(row.structure for row in comparison.rows))
    figure = Figure(figsize=(max(6, 1.1 * len(layers) + 2), 5.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    width = 0.8 / len(structures)
    for axis, field, label in (
        (axes[0], "error", "error of the block\n|F - F̂| / |F|"),
        (axes[1], "step_error", "error of the natural\ngradient |u - û| / |u|"),
    ):
        for k, structure in enumerate(structures):
            values = [getattr(r, field) for r in comparison.rows if r.structure == structure]
            places = [n - 0.4 + (k + 0.5) * width for n in range(len(layers))]
            axis.bar(
                places, values, width * 0.92, label=structure.upper(),
                color=COLOURS.get(structure, "#999999"),
            )  # fmt: skip
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_xticks(range(len(layers)), layers, rotation=30 if len(layers) > 6 else 0)
    axes[1].set_xlabel("layer")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def _spectra(comparison: Comparison) -> Figure:
    """Eigenvalues of every layer's block, descending, under each structure."""
    from matplotlib.figure import Figure

    names = list(comparison.spectra)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        largest = float(comparison.spectra[name]["exact"][0])
        for structure, spectrum in comparison.spectra[name].items():
            kept = spectrum[spectrum > 1e-12 * largest]
            axis.loglog(
                range(1, len(kept) + 1), kept.tolist(), STYLES.get(structure, "-."), lw=1.6,
                color=COLOURS.get(structure, "#999999"), label=structure.upper(),
            )  # fmt: skip
        axis.axhline(comparison.damping, color="0.6", lw=0.8)
        axis.text(1, comparison.damping, " damping", color="0.4", va="bottom", fontsize=7)
        axis.set_xlabel(f"eigenvalue, layer {name}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def _matrices(comparison: Comparison) -> Figure:
    """Absolute values of the smallest layer's block under each structure, one colour scale."""
    from matplotlib.figure import Figure

    shown = {name: found for name, found in comparison.matrices.items() if found}
    if not shown:
        raise ValueError("no block is small enough to be shown: raise write_out= of compare()")
    name = min(shown, key=lambda each: shown[each]["exact"].shape[-1])
    figure = Figure(figsize=(2.3 * len(shown[name]), 2.9), layout="constrained")
    axes = figure.subplots(1, len(shown[name]), squeeze=False)
    top = float(shown[name]["exact"].abs().max())
    for axis, (structure, matrix) in zip(axes.flat, shown[name].items(), strict=True):
        image = matrix.reshape(-1, *matrix.shape[-2:])[0].abs().sqrt()
        picture = axis.imshow(image.tolist(), vmin=0, vmax=top**0.5, cmap="magma")
        axis.set_xlabel(structure.upper())
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(picture, ax=axes, shrink=0.7, label="square root of |entry|")
    axes.flat[0].set_ylabel(f"layer {name}")
    return figure
