"""How each kind of module is read as a matrix map: one file per kind of layer."""

from __future__ import annotations

from torch import nn

from natgrad.layers.attention import ProjectionView
from natgrad.layers.base import LayerView, Slot, Uncovered, reasons
from natgrad.layers.conv import ConvView
from natgrad.layers.conv_transpose import ConvTransposeView
from natgrad.layers.embedding import EmbeddingView
from natgrad.layers.hf_conv1d import HFConv1DView
from natgrad.layers.linear import LinearView
from natgrad.layers.norm import NormView
from natgrad.layers.tied import untied
from natgrad.layers.uncovered import reason_against
from natgrad.layers.whitenable import Whitenable

__all__ = [
    "VIEWS", "LayerView", "LinearView", "Slot", "Uncovered", "Whitenable", "reasons", "views_of",
]  # fmt: skip

VIEWS: tuple[type[LayerView], ...] = (
    LinearView, ConvView, ConvTransposeView, EmbeddingView, NormView, ProjectionView, HFConv1DView,
)  # fmt: skip

TRANSFORMERS = (
    nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip


def views_of(model: nn.Module) -> tuple[list[LayerView], list[Uncovered]]:
    """Views of all modules of ``model`` with parameters of their own, and what is left over.

    A module may give several views (attention), and several modules with the very same parameters
    give one, with the others as its ``twins``. Parameters shared in any other way are left to
    their plain gradient: each block alone would take them for its own.
    """
    views: list[LayerView] = []
    uncovered: list[Uncovered] = []
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in inner:
            found, left, below = _read(name, module)
            views += found
            uncovered += left
            inner.update(below)
    backwards = _sequence_first(model)
    for view in views:
        view.sequence_first = view.module in backwards
    covered, tied = untied(views, uncovered)
    return covered, [*uncovered, *tied]


def _read(name: str, module: nn.Module) -> tuple[list[LayerView], list[Uncovered], list[nn.Module]]:
    """A module's views, its parameters that none of them has, and submodules read with it."""
    View = next((View for View in VIEWS if View.reads(module)), None)
    prefix = f"{name}." if name else ""
    below = {prefix + child: module.get_submodule(child) for child in (View.inner if View else ())}
    holders = {name: module, **below}
    trained = [p for each in holders.values() for p in each.parameters(recurse=False)]
    reason = reason_against(module, trained, View) if trained else None
    views = list(View.of(name, module)) if View and trained and not reason else []
    taken = {id(p) for view in views for p in view.parameters().values()}
    left = []
    for holder, each in holders.items():
        names = [
            key
            for key, p in each.named_parameters(recurse=False)
            if id(p) not in taken and (reason or p.requires_grad)
        ]
        if names:
            why = reason or f"{', '.join(names)}: not in a matrix of the layer that is trained"
            left.append(Uncovered(holder, each, why))
    return views, left, list(below.values())


def _sequence_first(model: nn.Module) -> set[nn.Module]:
    """Modules of torch's own transformers that see activations ``[t, n, k]``."""
    found: set[nn.Module] = set()
    for whole in model.modules():
        if isinstance(whole, TRANSFORMERS):
            inside = (m for m in whole.modules() if isinstance(m, nn.MultiheadAttention))
            if not all(attention.batch_first for attention in inside):
                found.update(whole.modules())
    return found
