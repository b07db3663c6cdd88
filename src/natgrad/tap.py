"""From modules to samples: the only place with hooks.

A tap listens to the forward passes of a model and pairs each layer's input rows with its
output-gradient rows. The true Fisher needs gradients that the user's loss does not give: when the
user's backward pass reaches the logits, the tap runs its own backward passes from there to the
layers' outputs, before the user's goes on. They compute no weight gradients, touch no ``.grad``,
draw from the tap's own generator only, and happen on statistics steps alone.

Most layers are modules, whose forward hooks see input and output. The projections of attention are
not: while an attention's forward runs, calls of ``torch.nn.functional.linear`` are listened to, and
told apart by the weight they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from natgrad.calls import Heard, listen, unlisten, whole
from natgrad.draws import Draws
from natgrad.layers import LayerView
from natgrad.layers.attention import ProjectionView
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey, logits_of
from natgrad.sample import InputRows, OneHot, Sample, concatenated, statistics_dtype

__all__ = ["Tap"]

Deliver: TypeAlias = Callable[[int, Sample], None]
Arranged: TypeAlias = Callable[[Tensor], Tensor]
Inside: TypeAlias = list[tuple[int, ProjectionView]]
Rows = TypeVar("Rows", Tensor, OneHot, InputRows)


@dataclass
class _Use:
    """One call of one layer within a forward pass."""

    view: LayerView
    h: Tensor  #: the input, arranged
    shape: torch.Size  #: of the output
    edge: GradientEdge | None  #: place in the graph; None where the output is the logits
    arranged: Arranged  #: puts the batch first, and picks the layer's part of the output
    grads: list[Tensor] = field(default_factory=list)

    def reached(self, grad: Tensor) -> None:
        """A gradient with respect to the output has arrived."""
        self.grads.append(self.arranged(grad.detach().reshape(self.shape)))


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
        self.logits, self.reduction, self.draws = logits, reduction, Draws(seed)
        self.active = True
        self.running = False  # whether the backward pass now under way is our own
        self._pass: _Pass | None = None
        self._alone: list[tuple[_Pass, Tensor]] | None = None
        self._heard: list[Heard] = []
        self._handles = list(self._attach())

    def _attach(self) -> Iterator[RemovableHandle]:
        yield self.model.register_forward_pre_hook(self._begin)
        functional: dict[nn.Module, Inside] = {}
        for index, view in enumerate(self.views):
            for each in (view, *view.twins):
                if isinstance(each, ProjectionView):
                    functional.setdefault(each.module, []).append((index, each))
                    continue
                hook = partial(self._record, index, each)
                yield each.module.register_forward_hook(hook, with_kwargs=True)
        for module, inside in functional.items():
            opening = partial(self._open, inside)
            yield module.register_forward_pre_hook(opening, with_kwargs=True)
            yield module.register_forward_hook(self._close, always_call=True)
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
        self, index: int, view: LayerView, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        h = args[0] if args else next(iter(kwargs.values()))
        arranged = _batch_first if view.sequence_first else _as_it_is
        self._note(index, view, h, output, arranged, arranged)

    def _open(self, inside: Inside, module: nn.Module, args: Any, kwargs: Any) -> None:
        """An attention's forward begins."""
        if self._pass is not None:
            n = inside[0][1].examples(args, kwargs)
            self._heard.append(partial(self._record_linear, inside, n))
            listen(self._heard[-1])

    def _close(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._heard:
            unlisten(self._heard.pop())

    def _record_linear(
        self, inside: Inside, n: int, h: Tensor, weight: Tensor, output: Tensor
    ) -> None:
        for index, view in inside:
            columns = view.columns(weight)
            if columns is not None:
                before, after = (partial(view.by_example, n, part) for part in (..., columns))
                self._note(index, view, h, output, before, after)

    def _note(
        self, index: int, view: LayerView, h: Tensor, output: Tensor, before: Arranged,
        after: Arranged,
    ) -> None:  # fmt: skip
        """A layer was called: keep its input and the place of its output."""
        if self._pass is None or not output.requires_grad:
            return
        place = whole(output)
        edge = None if self.likelihood is None else get_gradient_edge(place)
        use = _Use(view, before(h.detach()), output.shape, edge, after)
        self._pass.uses.setdefault(index, []).append(use)
        if self.likelihood is None:
            place.register_hook(partial(self._arrived, self._pass, index, use))  # type: ignore[no-untyped-call]

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
        use.reached(grad)
        if all(other.grads for other in uses):
            del current.uses[index]
            self.deliver(index, self._sample(uses, None))

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
                self.deliver(index, self._sample(reached, examples))
        current.uses.clear()

    def _output_gradients(self, f: Tensor, grad: Tensor) -> Iterator[Tensor]:
        assert self.likelihood is not None
        counted = self.likelihood.counted(f, grad)
        if counted is not None and not bool(counted.any()):
            return iter(())
        if self.fisher == "exact":
            return self.likelihood.columns(f, counted)
        generator = self.draws.generator(f.device)
        return self.likelihood.draws(f, generator, self.samples, counted)

    def _sample(self, uses: list[_Use], examples: int | None) -> Sample:
        """Pair the rows of all uses; several uses are further positions of the same examples."""
        inputs = [_by_example(use.view.input_rows(use.h), examples) for use in uses]
        columns = [torch.stack([use.view.output_rows(x) for x in use.grads], -4) for use in uses]
        outputs = [_by_example(rows, examples) for rows in columns]
        if len({rows.shape[-3] for rows in inputs}) > 1:
            inputs, outputs = _as_one(inputs), _as_one(outputs)
        weight = next(iter(uses[0].view.parameters().values()))
        dtype = statistics_dtype(weight.dtype)
        sample = Sample(concatenated(inputs), torch.cat(outputs, dim=-2)).to(dtype)
        scale = self._scale(sample.examples, examples)
        return sample if scale == 1 else Sample(sample.a, sample.g * scale)

    def _scale(self, count: int, examples: int | None) -> float:
        """What turns the gradients that arrived into those of one example's nll.

        Rows without a batch dimension (an embedding of positions) count as one example with the
        sum of all gradients: targets drawn from the model are independent, so the square of the
        sum is ``examples`` times the mean square, in expectation (V:A10).
        """
        if examples is not None:
            return float((count / examples) ** 0.5)
        return count if self.reduction == "mean" else 1

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
            use.reached(column)  # this layer's output is the logits
        else:
            inner.append(use)
    if not inner:
        return
    edges = [use.edge for use in inner if use.edge is not None]
    found = torch.autograd.grad([root], edges, [column], retain_graph=True, allow_unused=True)
    for use, grad in zip(inner, found, strict=True):
        if grad is not None:
            use.reached(grad)


def _as_it_is(z: Tensor) -> Tensor:
    return z


def _batch_first(z: Tensor) -> Tensor:
    """``[t, n, k]`` as ``[n, t, k]``."""
    return z.transpose(0, 1) if z.ndim == 3 else z


def _by_example(rows: Rows, examples: int | None) -> Rows:
    """Rows of a layer that saw ``[n t, ...]`` back by example, as ``[n, t, k]``.

    A count that is no multiple of ``examples`` has no batch dimension: it is one example.
    """
    count, positions = rows.shape[-3:-1]
    if examples is None or count == examples:
        return rows
    n = examples if count % examples == 0 else 1
    t = count * positions // n
    if isinstance(rows, OneHot):
        return OneHot(rows.indices.reshape(n, t), rows.size)
    return rows.reshape(*rows.shape[:-3], n, t, rows.shape[-1])


def _as_one(uses: list[Rows]) -> list[Rows]:
    """All rows of all uses as positions of one example: their batches differ."""
    return [_by_example(rows, 1) for rows in uses]
