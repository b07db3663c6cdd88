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
from functools import partial
from math import ceil
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from natgrad.backward import Backward
from natgrad.calls import Heard, in_backward, listen, reentrant, trains, unlisten, whole
from natgrad.draws import Draws
from natgrad.hooks import Hook, Listener, nothing
from natgrad.layers import LayerView
from natgrad.layers.attention import ProjectionView
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey, logits_of
from natgrad.passes import Arranged, Pass, Use, as_it_is, batch_first, sample_of
from natgrad.sample import Sample

__all__ = ["Tap"]

Deliver: TypeAlias = Callable[[int, Sample], None]
Inside: TypeAlias = list[tuple[int, ProjectionView]]


class Tap(Listener):
    """Hooks that turn a model's forward and backward passes into samples.

    Args:
        model: the model as the user calls it.
        views: the layers to listen to.
        deliver: called with a view's index and its sample, once per forward pass.
        likelihood: None listens to the user's own backward pass (empirical Fisher).
        fisher: ``"sampled"`` or ``"exact"``, with a likelihood.
        samples: draws per example of the sampled Fisher.
        fraction: of the examples that samples are made of, the first ones of each batch.
        logits: which entry of the model's output is the logits (:func:`natgrad.logits.logits_of`).
        reduction: how the user's loss is reduced over examples, for the empirical Fisher.
        seed: seed of the tap's own generator.
        before: called before each forward pass in training, whether it is listened to or not; may
            call :meth:`watch`.
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
        fraction: float = 1.0,
        logits: LogitsKey = None,
        reduction: Literal["mean", "sum"] = "mean",
        seed: int = 0,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.deliver, self.before = model, deliver, before
        self.likelihood, self.fisher, self.samples = likelihood, fisher, samples
        self.fraction = fraction
        self.logits, self.reduction, self.draws = logits, reduction, Draws(seed)
        self.active = True
        self.running = False  # whether the backward pass now under way is our own
        self.passes = 0  # forward passes listened to
        self.delivering = 0  # number of the pass whose samples are being delivered
        self._pass: Pass | None = None
        self._alone: list[tuple[Pass, Tensor]] | None = None
        self._heard: list[Heard] = []
        self._silent: set[int] = set()  # layers that ran without gradients in a pass with them
        self._loud: set[int] = set()  # layers that ran with gradients in that pass
        super().__init__(views)

    def watch(self, views: Sequence[LayerView]) -> None:
        """Listen to these layers from now on, and to no others."""
        self._forget()
        super().watch(views)

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"_pass": None, "_heard": [], "_silent": set(), "_loud": set()}
        return {**super().__getstate__(), **fresh}

    def attach(self) -> Iterator[RemovableHandle]:
        """Listen to the model's forward pass and to each layer's."""
        yield self.model.register_forward_pre_hook(Hook(self._begin))
        functional: dict[nn.Module, Inside] = {}
        for index, view in enumerate(self.views):
            for each in (view, *view.twins):
                if isinstance(each, ProjectionView):
                    functional.setdefault(each.module, []).append((index, each))
                    continue
                hook = Hook(partial(self._record, index, each))
                yield each.module.register_forward_hook(hook, with_kwargs=True)
        for module, inside in functional.items():
            opening = Hook(partial(self._open, inside))
            yield module.register_forward_pre_hook(opening, with_kwargs=True)
            yield module.register_forward_hook(Hook(self._close), always_call=True)
        yield self.model.register_forward_hook(Hook(self._end), always_call=True)

    # forward ------------------------------------------------------------------------------------

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._pass = None
        if self._alone is None:
            if not self._trains():
                return
            if self.before is not None:
                self.before()
            self._forget()
            if not self.active:
                return
        self.passes += 1
        self._pass = Pass(self.passes)

    def _forget(self) -> None:
        """Which layers ran with and without gradients."""
        self._silent.clear()
        self._loud.clear()

    def _trains(self) -> bool:
        return not self.running and trains(self.model)

    def _record(
        self, index: int, view: LayerView, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        h = args[0] if args else next(iter(kwargs.values()))
        recomputed = index in self._silent and torch.is_grad_enabled() and in_backward()
        if recomputed and (index not in self._loud or reentrant()):
            raise self._reentrant(index)
        arranged = batch_first if view.sequence_first else as_it_is
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
        if self._pass is None:
            return
        if not output.requires_grad:
            if not torch.is_grad_enabled():
                self._silent.add(index)
            return
        self._loud.add(index)
        place = whole(output)
        edge = None if self.likelihood is None else get_gradient_edge(place)
        use = Use(view, before(h.detach()), output.shape, edge, after)
        self._pass.uses.setdefault(index, []).append(use)
        if self.likelihood is None:
            place.register_hook(partial(self._arrived, self._pass, index, use))  # type: ignore[no-untyped-call]

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        current, self._pass = self._pass, None
        if current is None or self.likelihood is None or output is None:
            return
        f = logits_of(output, self.logits)
        current.mark_logits(f)
        if self._alone is not None:
            self._alone.append((current, f))
        elif f.requires_grad:
            hook = partial(self._score, current, f.detach(), f.output_nr, f._version)
            f.register_hook(hook)  # type: ignore[no-untyped-call]

    # backward -----------------------------------------------------------------------------------

    def _arrived(self, current: Pass, index: int, use: Use, grad: Tensor) -> None:
        """Empirical Fisher: the user's gradient has reached one use of a layer."""
        uses = current.uses.get(index)
        if uses is None or use.grads:
            return
        use.reached(grad)
        if all(other.grads for other in uses):
            del current.uses[index]
            self._deliver(current, index, uses, None)
        elif sum(bool(other.grads) for other in uses) == 1:
            over = partial(self._backward_over, current, index)
            torch.autograd.Variable._execution_engine.queue_callback(over)

    def _backward_over(self, current: Pass, index: int) -> None:
        """Empirical Fisher: uses that the backward pass has not reached are not in its loss."""
        uses = current.uses.pop(index, [])
        reached = [use for use in uses if use.grads]
        if reached:
            current.uses[index] = [use for use in uses if not use.grads]
            self._deliver(current, index, reached, None)

    def _score(self, current: Pass, f: Tensor, output_nr: int, version: int, grad: Tensor) -> None:
        """True Fisher: the user's gradient has reached the logits; run our backward passes."""
        if current.done or not current.uses:
            return
        current.done = True  # before anything else: our own backward passes come by here too
        if f._version != version:
            raise RuntimeError(
                "natgrad: the model's logits were changed in place before backward(), so the "
                "Fisher matrix can't be taken at them; use an out-of-place operation"
            )
        root = GradientEdge(torch._C._current_autograd_node(), output_nr, None)
        alone = self.fisher == "sampled" and self.samples == 1
        self._run(current, root, self._output_gradients(f, grad), len(f), alone)

    def _run(
        self, current: Pass, root: GradientEdge, columns: Iterable[Tensor], examples: int,
        alone: bool = False,
    ) -> None:  # fmt: skip
        """Backward passes from the logits for all columns, and one sample for each layer.

        Of a column that comes alone each layer's rows are delivered, and let go of, as soon as
        the backward pass has been through the layer; several are paired when all are there.
        """
        ready = partial(self._deliver_reached, current, examples)
        backward = Backward(root, current.uses, ready if alone else nothing)
        self.running = True
        try:
            with backward.listening():
                for column in columns:
                    backward.send(column)
        except RuntimeError as error:
            if "use_reentrant=True" in str(error):
                raise self._reentrant(*sorted(self._silent)) from error
            raise
        finally:
            self.running = False
        for index in list(current.uses):  # one layer's rows after the other are let go of
            ready(index)

    def _deliver_reached(self, current: Pass, examples: int, index: int) -> None:
        """True Fisher: deliver the rows of those uses that our backward passes have reached."""
        uses = current.uses.pop(index)
        reached = [use for use in uses if use.grads]
        if reached:
            self._deliver(current, index, reached, examples)
        for use in uses:
            use.grads.clear()

    def _output_gradients(self, f: Tensor, grad: Tensor) -> Iterator[Tensor]:
        assert self.likelihood is not None
        counted = self.likelihood.counted(f, grad)
        if counted is not None and not bool(counted.any()):
            return iter(())
        if self.fisher == "exact":
            return self.likelihood.columns(f, counted)
        generator = self.draws.generator(f.device)
        return self.likelihood.draws(f, generator, self.samples, counted)

    def _reentrant(self, *hidden: int) -> RuntimeError:
        names = ", ".join(repr(self.views[index].name) for index in hidden) or "(not covered)"
        return RuntimeError(
            f"natgrad: layer {names} is inside a reentrant activation checkpoint, which hides its "
            "output gradients; use checkpoint(..., use_reentrant=False)"
        )

    def _deliver(self, current: Pass, index: int, uses: list[Use], examples: int | None) -> None:
        sample = sample_of(uses, examples)
        scale = self._scale(sample.examples, examples)
        if self.fraction < 1:
            sample = sample.first(ceil(self.fraction * sample.examples))
        self.delivering = current.number
        self.deliver(index, sample.scaled(scale))

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
