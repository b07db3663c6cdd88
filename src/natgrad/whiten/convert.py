"""From plain layers to whitened ones and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from natgrad.batches import Batches, Inputs
from natgrad.hooks import Hook
from natgrad.layers import LayerView, Uncovered, Whitenable, reasons, views_of
from natgrad.layers.whitenable import read_directly
from natgrad.whiten.module import Whitened
from natgrad.whiten.rule import Rule
from natgrad.whiten.whitener import Whitener

__all__ = ["fold", "whiten"]

Only: TypeAlias = Callable[[str, nn.Module], bool]


def whiten(
    model: nn.Module,
    rule: Rule,
    data: Inputs | None = None,
    *,
    only: Only | None = None,
    batch_to_input: Callable[[Any], Any] | None = None,
) -> Whitener:
    """Put whitened layers in the place of ``nn.Linear`` and ``nn.Conv1d/2d/3d``, in place.

    The function of the model stays, its parameters stay the same objects under the same names, so
    that an optimizer made before goes on to work; they hold new coordinates (MATH 5.1). Everything
    else is left alone: layers tied to others, attention projections, norms, embeddings.

    Args:
        model: the model, not a layer by itself.
        rule: how constants are made of statistics, e.g. :class:`natgrad.PRONG`.
        data: batches of inputs for the statistics, here and at later refits: a tensor, a tuple or a
            mapping of tensors (one batch), or a list or other iterable of batches. None begins with
            the identity and takes statistics from the training batches.
        only: whether to whiten a layer, told its name and the layer.
        batch_to_input: picks the model's input from batches that hold more.

    Returns:
        The :class:`Whitener`, to be attached to the optimizer.

    Raises:
        ValueError: nothing to whiten, a model that is whitened already, or is a single layer, or
            data that can be gone through only once. The model is then as it was.
    """
    _refuse_whitened(model)
    _refuse_listened(model)
    batches = None if data is None else Batches(data, batch_to_input=batch_to_input)
    if batches is not None:
        batches.refuse_one_shot("whiten, which refits on the same data,")
    views = _chosen(model, only)
    layers = rule.layers(model, views)
    for layer in layers.values():
        layer.take()
    _replace(model, {layer.view.module: layer for layer in layers.values()})
    try:
        whitener = Whitener(model, rule, layers, batches)
        if batches is not None:
            whitener.refit()
    except BaseException:  # parameters are written last: until then they hold what they held
        _replace(model, {layer: layer.restored() for layer in layers.values()})
        raise
    return whitener


def fold(model: nn.Module) -> nn.Module:
    """Put the plain layers back, with the weight and bias the whitened ones stand for.

    The very modules that were there before, with the same parameters; nothing of natgrad is left.
    The state of an attached optimizer is carried to the plain coordinates. A model without whitened
    layers stays as it is.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` is a whitened layer by itself.
    """
    if isinstance(model, Whitened):
        raise ValueError("fold takes the model that holds the whitened layer, not the layer")
    layers = [module for module in model.modules() if isinstance(module, Whitened)]
    changes = [layer.folding() for layer in layers]
    for change in changes:
        change.layer.accept(change)
    _replace(model, {layer: layer.restored() for layer in layers})
    return model


def _refuse_listened(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(isinstance(hook, Hook) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"natgrad: {name or 'the model'} is preconditioned by a natgrad optimizer; take "
                "its hooks off first (opt.remove())"
            )


def _refuse_whitened(model: nn.Module) -> None:
    found = [name for name, module in model.named_modules() if isinstance(module, Whitened)]
    if found:
        raise ValueError(f"the model is whitened already ({', '.join(found)}): fold it first")


def _chosen(model: nn.Module, only: Only | None) -> list[Whitenable]:
    views, uncovered = views_of(model)
    direct = read_directly(model)
    chosen: list[Whitenable] = []
    for view in views:
        reason = _against(view, direct, only)
        if reason is None and isinstance(view, Whitenable):
            chosen.append(view)
        else:
            uncovered.append(Uncovered(view.name, view.module, reason or ""))
    if not chosen:
        raise ValueError(f"natgrad found no layer to whiten in the model; {reasons(uncovered)}")
    if any(view.module is model for view in chosen):
        raise ValueError(
            f"the model is a {type(model).__name__} by itself, which can't be replaced in place: "
            "wrap it in nn.Sequential"
        )
    return chosen


def _against(view: LayerView, direct: Iterable[nn.Module], only: Only | None) -> str | None:
    """Why a layer is left alone; None if it is to be whitened."""
    module = view.module
    if not isinstance(view, Whitenable):
        return f"no whitened form of {type(module).__name__}"
    if view.twins:
        return f"shares its parameters with {', '.join(twin.name for twin in view.twins)}"
    if module in direct:
        return "nn.TransformerEncoderLayer reads its weight without calling it"
    own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    if own - {"weight", "bias"} or any(True for _ in module.children()):
        return "has parameters, buffers or modules of its own beside weight and bias"
    if only is not None and not only(view.name, module):
        return "left out by only="
    return None


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, under all their names."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
