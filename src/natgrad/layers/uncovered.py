"""Why a module is left to its plain gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from natgrad.layers.base import LayerView

__all__ = ["reason_against"]

REASONS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RNNBase, "recurrent layers apply their weights within one call, out of reach of hooks"),
    (nn.RNNCellBase, "recurrent cells apply their weights within one call, out of reach of hooks"),
    (nn.Bilinear, "a bilinear layer is no matrix map of one input"),
    (nn.PReLU, "the slope of PReLU belongs to no matrix map"),
    (nn.EmbeddingBag, "an embedding bag pools before any output that hooks could see"),
)


def reason_against(
    module: nn.Module, parameters: Sequence[nn.Parameter], View: type[LayerView] | None
) -> str | None:
    """Why ``module`` can't be covered, None if it can; ``View`` is what would read it."""
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        return "not initialised yet: run one forward first"
    if not any(p.requires_grad for p in parameters):
        return "frozen (requires_grad=False)"
    if View is not None:
        return View.refuses(module)
    known = (reason for kind, reason in REASONS if isinstance(module, kind))
    return next(known, f"no view for {type(module).__name__}")
