"""From modules to samples: the only place with hooks.

A tap listens to the forward passes of a model and pairs each layer's input rows with its
output-gradient rows. The true Fisher needs gradients that the user's loss does not give: when the
user's backward pass reaches the logits, the tap runs its own backward passes from there to the
layers' outputs, before the user's goes on. They compute no weight gradients, touch no ``.grad``,
draw from the tap's own generator only, and happen on statistics steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from natgrad.layers import LayerView
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey, logits_of
from natgrad.sample import InputRows, OneHot, Sample, concatenated, statistics_dtype

__all__ = ["Tap"]

Deliver: TypeAlias = Callable[[int, Sample], None]
Rows = TypeVar("Rows", Tensor, OneHot, InputRows)


@dataclass
class _Use:
    """One call of one layer within a forward pass."""

    h: Tensor
    edge: GradientEdge | None  #: place in the graph; None where the output is the logits
    grads: list[Tensor] = field(default_factory=list)


@dataclass
class _Pass:
    """One forward pass of the model: the uses of each layer, by index of its view."""

    uses: dict[int, list[_Use]] = field(default_factory=dict)
    done: bool = False


class Tap:
    """Hooks that turn a model's forward and backward passes into samples.

    Args:
        model: the model as the user calls it.
        views: the layers to listen to.
        deliver: called with a view's index and its sample, once per forward pass.
        likelihood: None listens to the user's own backward pass (empirical Fisher).
        fisher: ``"sampled"`` or ``"exact"``, with a likelihood.
        samples: draws per example of the sampled Fisher.
        logits: which entry of the model's output is the logits (:func:`natgrad.logits.logits_of`).
        reduction: how the user's loss is reduced over examples, for the empirical Fisher.
        seed: seed of the tap's own generator.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Sequence[LayerView],
        deliver: Deliver,
        *,
        likelihood: Likelihood | None,
        fisher: Literal["sampled", "exact"] = "sampled",
        samples: int = 1,
        logits: LogitsKey = None,
        reduction: Literal["mean", "sum"] = "mean",
        seed: int = 0,
    ) -> None:
        self.model, self.views, self.deliver = model, views, deliver
        self.likelihood, self.fisher, self.samples = likelihood, fisher, samples
        self.logits, self.reduction, self.seed = logits, reduction, seed
        self.active = True
        self.running = False  # whether the backward pass now under way is our own
        self._generator: torch.Generator | None = None
        self._pass: _Pass | None = None
        self._alone: list[tuple[_Pass, Tensor]] | None = None
        self._handles = list(self._attach())

    def _attach(self) -> Iterator[RemovableHandle]:
        yield self.model.register_forward_pre_hook(self._begin)
        for index, view in enumerate(self.views):
            hook = partial(self._record, index)
            yield view.module.register_forward_hook(hook, with_kwargs=True)
        yield self.model.register_forward_hook(self._end, always_call=True)

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()

    # forward ------------------------------------------------------------------------------------

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._pass = _Pass() if self._listens() else None

    def _listens(self) -> bool:
        if self._alone is not None:
            return True
        recomputing = torch._C._current_graph_task_id() != -1  # checkpointing runs forward again
        return self.active and self.model.training and torch.is_grad_enabled() and not recomputing

    def _record(
        self, index: int, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        if self._pass is None or not output.requires_grad:
            return
        h = args[0] if args else next(iter(kwargs.values()))
        use = _Use(h.detach(), None if self.likelihood is None else get_gradient_edge(output))
        self._pass.uses.setdefault(index, []).append(use)
        if self.likelihood is None:
            output.register_hook(partial(self._arrived, self._pass, index, use))  # type: ignore[no-untyped-call]

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        current, self._pass = self._pass, None
        if current is None or self.likelihood is None or output is None:
            return
        f = logits_of(output, self.logits)
        _mark_logits(current, f)
        if self._alone is not None:
            self._alone.append((current, f))
        elif f.requires_grad:
            hook = partial(self._score, current, f.detach(), f.output_nr, f._version)
            f.register_hook(hook)  # type: ignore[no-untyped-call]

    # backward -----------------------------------------------------------------------------------

    def _arrived(self, current: _Pass, index: int, use: _Use, grad: Tensor) -> None:
        """Empirical Fisher: the user's gradient has reached one use of a layer."""
        uses = current.uses.get(index)
        if uses is None or use.grads:
            return
        scale = len(use.h) if self.reduction == "mean" and use.h.ndim > 1 else 1
        use.grads = [grad.detach() * scale]
        if all(other.grads for other in uses):
            del current.uses[index]
            self.deliver(index, self._sample(self.views[index], uses, None))

    def _score(self, current: _Pass, f: Tensor, output_nr: int, version: int, grad: Tensor) -> None:
        """True Fisher: the user's gradient has reached the logits; run our backward passes."""
        if current.done:
            return
        current.done = True  # before anything else: our own backward passes come by here too
        if f._version != version:
            raise RuntimeError(
                "natgrad: the model's logits were changed in place before backward(), so the "
                "Fisher matrix can't be taken at them; use an out-of-place operation"
            )
        root = GradientEdge(torch._C._current_autograd_node(), output_nr, None)
        self._run(current, root, self._output_gradients(f, grad), len(f))

    def _run(
        self, current: _Pass, root: GradientEdge, columns: Iterable[Tensor], examples: int
    ) -> None:
        """Backward passes from the logits for all columns, and one sample for each layer."""
        uses = [use for listed in current.uses.values() for use in listed]
        self.running = True
        try:
            for column in columns:
                _backward(root, column, uses)
        finally:
            self.running = False
        for index, listed in current.uses.items():
            reached = [use for use in listed if use.grads]
            if reached:
                self.deliver(index, self._sample(self.views[index], reached, examples))
        current.uses.clear()

    def _output_gradients(self, f: Tensor, grad: Tensor) -> Iterator[Tensor]:
        assert self.likelihood is not None
        counted = self.likelihood.counted(grad)
        if counted is not None and not bool(counted.any()):
            return iter(())
        if self.fisher == "exact":
            return self.likelihood.columns(f, counted)
        return self.likelihood.draws(f, self.generator(f.device), self.samples, counted)

    def _sample(self, view: LayerView, uses: list[_Use], examples: int | None) -> Sample:
        """Pair the rows of all uses; several uses are further positions of the same examples."""
        a = concatenated([_by_example(view.input_rows(use.h), examples) for use in uses])
        rows = [[_by_example(view.output_rows(x), examples) for x in use.grads] for use in uses]
        g = torch.cat([torch.stack(columns, dim=-4) for columns in rows], dim=-2)
        weight = next(iter(view.parameters().values()))
        return Sample(a, g).to(statistics_dtype(weight.dtype))

    # without a training loop --------------------------------------------------------------------

    def run(
        self, forward: Callable[[], Any], columns: Callable[[Tensor], Iterable[Tensor]]
    ) -> Tensor:
        """Run the model and our backward passes, whatever mode it is in.

        Args:
            forward: calls the model.
            columns: the output gradients to send back, given the logits ``f``.

        Returns:
            The logits, with their graph.
        """
        self._alone = []
        try:
            with torch.enable_grad():
                forward()
            [(current, f)] = self._alone
        finally:
            self._alone = None
        self._run(current, get_gradient_edge(f), columns(f), len(f))
        return f

    # the generator ------------------------------------------------------------------------------

    def generator(self, device: torch.device) -> torch.Generator:
        """The tap's own random generator, made where the logits are."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """The generator's state, and the device it belongs to."""
        generator = self._generator
        if generator is None:
            return {}
        return {"generator": generator.get_state(), "device": str(generator.device)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the random numbers where the saved tap stopped."""
        self._generator = None
        if state:
            self.generator(torch.device(state["device"])).set_state(state["generator"].cpu())


def _mark_logits(current: _Pass, f: Tensor) -> None:
    """Let uses whose output is the logits forget the graph.

    The logits' node holds the pass through its hook; the pass must not hold the node in turn, or
    activations would stay until the garbage collector comes by.
    """
    node = get_gradient_edge(f).node if f.requires_grad else None
    for uses in current.uses.values():
        for use in uses:
            if use.edge is not None and (use.edge.node, use.edge.output_nr) == (node, f.output_nr):
                use.edge = None


def _backward(root: GradientEdge, column: Tensor, uses: list[_Use]) -> None:
    """One backward pass from the logits to the layers' outputs; the graph is kept."""
    inner = []
    for use in uses:
        if use.edge is None:
            use.grads.append(column)  # this layer's output is the logits
        else:
            inner.append(use)
    if not inner:
        return
    edges = [use.edge for use in inner if use.edge is not None]
    found = torch.autograd.grad([root], edges, [column], retain_graph=True, allow_unused=True)
    for use, grad in zip(inner, found, strict=True):
        if grad is not None:
            use.grads.append(grad)


def _by_example(rows: Rows, examples: int | None) -> Rows:
    """Rows of a layer that saw ``[n t, k]`` back by example, as ``[n, t, k]``."""
    count, positions = rows.shape[-3:-1]
    if examples is None or count == examples or positions != 1 or count % examples:
        return rows
    if isinstance(rows, OneHot):
        return OneHot(rows.indices.reshape(examples, -1), rows.size)
    return rows.reshape(*rows.shape[:-3], examples, count // examples, rows.shape[-1])
