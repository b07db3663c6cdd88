"""Which activation follows each layer of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from natgrad.layers import VIEWS
from natgrad.layers.activations import (
    IDENTITY,
    SIGMOID,
    SOFTMAX,
    Activation,
    Given,
    activation_of_call,
    activation_of_module,
    as_activation,
    lets_through,
)
from natgrad.likelihood import Bernoulli, Categorical, Gaussian, Likelihood

__all__ = ["following"]

QUESTIONS = ("size", "dim", "numel", "getattr")  #: what asks a tensor for its shape or kind


def following(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    given: Mapping[str, Given] | None = None,
    likelihood: Likelihood | None = None,
) -> dict[str, Activation]:
    """The activation behind each layer: given, or the first one found by ``torch.fx``.

    From the layer's call on, reshaping, joining (``torch.cat``, ``torch.stack``), dropout, pooling
    and norms are passed through. A layer that leads to another layer, or to the model's output, has
    the identity; at the output a likelihood
    says otherwise (:class:`Categorical` softmax, :class:`Bernoulli` sigmoid).

    Args:
        model: traced only if an activation is not given.
        layers: by name.
        given: activations by the layer's name or a pattern of names (``"features.*"``).
        likelihood: of the model's output.

    Raises:
        ValueError: a layer's activation can't be found, or what is given fits no layer.
    """
    found = _given(layers, given or {})
    missing = {name: layer for name, layer in layers.items() if name not in found}
    if missing:
        graph = _graph(model, missing)
        end = _end(likelihood)
        for name, layer in missing.items():
            found[name] = _behind(name, layer, graph, end)
    return {name: found[name] for name in layers}


def _given(layers: Mapping[str, nn.Module], given: Mapping[str, Given]) -> dict[str, Activation]:
    found: dict[str, Activation] = {}
    for pattern, value in given.items():
        names = [pattern] if pattern in layers else [n for n in layers if fnmatchcase(n, pattern)]
        if not names:
            raise ValueError(
                f"activations: {pattern!r} is no layer to whiten; these are {', '.join(layers)}"
            )
        try:
            activation = as_activation(value)
        except ValueError as error:
            raise ValueError(f"activations[{pattern!r}]: {error}") from None
        for name in names:
            if pattern in layers or name not in found:  # a name says more than a pattern
                found[name] = activation
    return found


def _end(likelihood: Likelihood | None) -> Activation:
    if likelihood is None or isinstance(likelihood, Gaussian):
        return IDENTITY
    if isinstance(likelihood, Categorical):
        return SOFTMAX
    if isinstance(likelihood, Bernoulli):
        return SIGMOID
    raise ValueError(
        "likelihood must be Categorical, Bernoulli or Gaussian, got "
        f"{type(likelihood).__name__}: give the last layer's activation in activations="
    )


class _Tracer(fx.Tracer):
    """Modules of torch are leaves, and so are the layers; what holds a layer is none."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = set(layers.values())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.layers or activation_of_module(m) is not None:
            return True
        if any(layer in self.layers for layer in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)


class _Graph:
    """The calls of a model, each with what takes its result."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model, self.nodes = model, list(graph.nodes)

    def calls(self, layer: nn.Module) -> list[fx.Node]:
        return [node for node in self.nodes if self.module(node) is layer]

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def first(self, node: fx.Node, end: Activation) -> Iterator[Activation | str]:
        """Activations behind a call; a string is what it is if it is none."""
        for user in node.users:
            module = self.module(user)
            step: nn.Module | str = _name(user) if module is None else module
            if step in QUESTIONS:
                continue
            if user.op == "output":
                yield end
            elif lets_through(step):
                yield from self.first(user, end)
            else:
                yield _activation(user, step) or str(
                    step if isinstance(step, str) else f"{user.target} ({type(step).__name__})"
                )


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


def _activation(node: fx.Node, step: nn.Module | str) -> Activation | None:
    if isinstance(step, str):
        constant = not any(isinstance(x, fx.Node) for x in [*node.args[1:], *node.kwargs.values()])
        rest = {key: x for key, x in node.kwargs.items() if key != "input"}
        return activation_of_call(step, node.args[1:], rest) if constant else None
    if any(View.reads(step) for View in VIEWS):
        return IDENTITY
    return activation_of_module(step)


def _graph(model: nn.Module, missing: Mapping[str, nn.Module]) -> _Graph:
    try:
        return _Graph(model, _Tracer(missing).trace(model))
    except Exception as error:
        raise ValueError(
            f"natgrad: torch.fx can't trace the model ({type(error).__name__}: {error}), so the "
            f"activations behind its layers are not known; {_remedy(missing)}"
        ) from error


def _behind(name: str, layer: nn.Module, graph: _Graph, end: Activation) -> Activation:
    calls = graph.calls(layer)
    steps = [step for call in calls for step in graph.first(call, end)]
    found = {step.name: step for step in steps if isinstance(step, Activation)}
    unknown = sorted({step for step in steps if isinstance(step, str)})
    if len(found) == 1 and not unknown:
        return next(iter(found.values()))
    if unknown:
        why = f"it is followed by {', '.join(unknown)}, which natgrad knows no activation in"
    elif found:
        why = f"it is followed by {' and by '.join(sorted(found))}"
    else:
        why = "nothing uses its output" if calls else "the model's forward does not call it"
    raise ValueError(f"natgrad: {name}: no activation was found: {why}; {_remedy([name])}")


def _remedy(names: Mapping[str, Any] | list[str]) -> str:
    shown = ", ".join(f'"{name}": "relu"' for name in list(names)[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"say what follows, e.g. SNGD(activations={{{shown}{more}}})"
