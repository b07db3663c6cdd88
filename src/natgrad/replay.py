"""The batch of the step under way, to run the model on it again.

The quadratic model of a step needs the Jacobian of the model's output times the directions of the
step, and the loss after it. Both are forward passes on the batch that the gradient was of: a replay
remembers what the model was called with since the last step, and its logits. It leaves no trace:
buffers (running means of BatchNorm), the user's random numbers and the statistics stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from natgrad import distributed
from natgrad.calls import trains
from natgrad.guard import no_gradients
from natgrad.hooks import Hook
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey, logits_of
from natgrad.modes import RandomState, autocasting, autocasts, unchanged, without_autocast
from natgrad.sample import statistics_dtype

__all__ = ["Call", "Replay"]

NO_FORWARD_MODE = ("forward AD", "forward mode AD")  #: what torch says of operations without


@dataclass
class Call:
    """One forward pass of the model in training."""

    args: Any
    kwargs: Any
    random: RandomState  #: before it
    cast: torch.dtype | None  #: of autocast, where it was on
    f: Tensor | None = None  #: the logits, detached
    counted: Tensor | None = None  #: see :meth:`Likelihood.counted`
    reached: bool = False  #: whether a gradient has reached the logits

    def first(self, count: int) -> tuple[Any, Any]:
        """Arguments of the first ``count`` examples."""
        assert self.f is not None
        part = partial(_first, len(self.f), count)
        return part(self.args), part(self.kwargs)


class Replay:
    """Remembers the model's calls since the last step.

    Args:
        model: the model as the user calls it.
        likelihood: of its output.
        logits: which entry of the output is the logits.
        silently: a context in which the model may be called without being listened to.
    """

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, logits: LogitsKey,
        silently: Callable[[], Any],
    ) -> None:  # fmt: skip
        self.model, self.likelihood, self.logits, self.silently = (
            model, likelihood, logits, silently,
        )  # fmt: skip
        self.calls: list[Call] = []
        self._forward_mode = True  # until an operation of the model turns out to have none
        self._listen()

    def _listen(self) -> None:
        self._running = False
        self._handles: list[RemovableHandle] = [
            self.model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True),
            self.model.register_forward_hook(Hook(self._end)),
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "calls": [], "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._listen()

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def clear(self) -> None:
        """Forget the calls: their step is over, or never was."""
        self.calls.clear()

    def drop(self) -> None:
        """Forget the calls whose gradients were dropped; others may have their backward to come."""
        self.calls = [call for call in self.calls if not call.reached]

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self._running or not trains(model):
            return
        if any(call.reached for call in self.calls) and no_gradients(model.parameters()):
            self.drop()  # of a backward whose gradients were dropped without a step
        kind = self._kind()
        cast = torch.get_autocast_dtype(kind) if autocasts(kind) else None
        self.calls.append(Call(args, kwargs, RandomState.of(model), cast))

    def _kind(self) -> str:
        return next(self.model.parameters()).device.type

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._running or not self.calls or self.calls[-1].f is not None:
            return
        f = logits_of(output, self.logits)
        if not f.requires_grad:
            self.calls.pop()
            return
        self.calls[-1].f = f.detach()
        f.register_hook(partial(self._reached, self.calls[-1]))  # type: ignore[no-untyped-call]

    def _reached(self, call: Call, grad: Tensor) -> None:
        if not call.reached and not self._running and call.f is not None:
            call.reached = True
            call.counted = self.likelihood.counted(call.f, grad)

    def seen(self) -> list[Call]:
        """The calls that a gradient came from.

        Raises:
            RuntimeError: there is none.
        """
        found = [call for call in self.calls if call.reached]
        if not found:
            raise RuntimeError(
                "natgrad: the quadratic model of the step needs the batch, but no call of the "
                "model has led to a gradient since the last step; call the model itself in "
                "training mode, then backward() through its output"
            )
        return found

    def examples(self) -> int:
        """Of all calls."""
        return sum(len(call.f) for call in self.seen() if call.f is not None)

    # curvature ----------------------------------------------------------------------------------

    def curved(
        self, parameters: Sequence[nn.Parameter], vectors: Sequence[Sequence[Tensor | None]],
        fraction: float, at: Sequence[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """``v_i^T F v_j [k, k]`` in float64, with the exact Fisher of a part of the batch.

        ``F = 1/n sum J_n^T R_n J_n`` over the first ``ceil(fraction n)`` examples of each call,
        two at least. A vector takes one forward pass with tangents, about two forward passes of
        those examples.

        Args:
            parameters: those that move.
            vectors: directions, a tensor for each parameter; None where it stays.
            fraction: of the examples.
            at: values of the parameters; None takes those they have.
        """
        calls = self.seen()
        total, n = torch.zeros(len(vectors), len(vectors), dtype=torch.float64), self.examples()
        for call in calls:
            assert call.f is not None
            least = min(2, len(call.f))  # BatchNorm takes no single example
            wanted = max(least, ceil(fraction * len(call.f)))
            pushed = [self._pushed(call, wanted, parameters, v, at) for v in vectors]
            f, share = pushed[0][0], len(call.f) / n
            count = len(f)  # all of them, where the inputs have the batch elsewhere
            counted = None if call.counted is None else call.counted[:count]
            for j, (_, v) in enumerate(pushed):
                Rv = self.likelihood.product(f, v, counted)
                for i, (_, u) in enumerate(pushed[: j + 1]):
                    total[i, j] += float((u * Rv).sum(dtype=torch.float64)) / count * share
        return distributed.average(torch.triu(total) + torch.triu(total, 1).mT)

    @torch.no_grad()
    def _pushed(
        self, call: Call, count: int, parameters: Sequence[nn.Parameter],
        vector: Sequence[Tensor | None], at: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``f`` and ``J v`` of the first examples of a call."""
        everything = dict(self._bare.named_parameters())
        names = {id(p): name for name, p in everything.items()}
        values = {name: p.detach() for name, p in everything.items()}

        def of_the_model(tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
            pairs = zip(parameters, tensors, strict=True)
            return {names[id(p)]: x for p, x in pairs if x is not None and id(p) in names}

        values |= of_the_model(at) if at is not None else {}
        tangents = of_the_model(vector)
        run = partial(self._run, *call.first(count))
        plainly = without_autocast(self._kind())
        with self._unseen(call), sdpa_kernel(SDPBackend.MATH), plainly:
            if self._forward_mode:
                try:
                    return _forward_mode(run, values, tangents)
                except (NotImplementedError, RuntimeError) as error:
                    if not any(words in str(error) for words in NO_FORWARD_MODE):
                        raise
                    self._forward_mode = False
            return _double_backward(run, values, tangents)

    def _run(self, args: Any, kwargs: Any, parameters: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self._bare.named_buffers()}
        output = functional_call(self._bare, (dict(parameters), buffers), args, kwargs)
        return logits_of(output, self.logits)

    @property
    def _bare(self) -> nn.Module:
        return distributed.unwrapped(self.model)

    # loss ---------------------------------------------------------------------------------------

    def loss(self, targets: Tensor) -> float:
        """The mean negative log-likelihood of the targets at the time of the call."""
        call = self.only()
        assert call.f is not None
        return self._mean(call.f, targets)

    @torch.no_grad()
    def loss_again(self, targets: Tensor) -> float:
        """The same with the parameters as they are now: one forward pass."""
        call = self.only()
        with self._unseen(call), autocasting(self._kind(), call.cast):
            f = logits_of(self.model(*call.args, **call.kwargs), self.logits)
        return self._mean(f, targets)

    def _mean(self, f: Tensor, targets: Tensor) -> float:
        return float(self.likelihood.nll(f.to(statistics_dtype(f.dtype)), targets).mean())

    def only(self) -> Call:
        """The call that a gradient came from, where it must be one.

        Raises:
            RuntimeError: there are several, or none.
        """
        calls = self.seen()
        if len(calls) != 1:
            raise RuntimeError(
                f"natgrad: step(targets=...) takes one call of the model in a step, there were "
                f"{len(calls)}; use step(closure)"
            )
        return calls[0]

    @contextmanager
    def _unseen(self, call: Call) -> Iterator[None]:
        self._running = True
        try:
            with unchanged(self.model, call.random), self.silently():
                yield
        finally:
            self._running = False


def _first(of: int, count: int, given: Any) -> Any:
    """The first ``count`` of ``of`` examples in whatever holds them."""
    if isinstance(given, Tensor):
        return given[:count] if given.ndim > 0 and len(given) == of else given
    if isinstance(given, Mapping):
        return {key: _first(of, count, value) for key, value in given.items()}
    if isinstance(given, (tuple, list)):
        parts = [_first(of, count, value) for value in given]
        if hasattr(given, "_fields"):  # a named tuple
            return type(given)(*parts)
        return parts if isinstance(given, list) else tuple(parts)
    return given


def _forward_mode(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        duals = dict(parameters)
        for name, tangent in tangents.items():
            value = parameters[name]
            duals[name] = forward_ad.make_dual(value, tangent.to(value.dtype))  # type: ignore[no-untyped-call]
        f, v = forward_ad.unpack_dual(run(duals))  # type: ignore[no-untyped-call]
        return f, torch.zeros_like(f) if v is None else v


def _double_backward(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """``J v`` as the derivative of ``<J^T u, v>`` in ``u``."""
    with torch.enable_grad():
        leaves = {
            name: p.detach().requires_grad_(name in tangents) for name, p in parameters.items()
        }
        f = run(leaves)
        u = torch.zeros_like(f, requires_grad=True)
        moved = [leaves[name] for name in tangents]
        back = torch.autograd.grad(f, moved, u, create_graph=True, allow_unused=True)
        pairs = [(b, v) for b, v in zip(back, tangents.values(), strict=True) if b is not None]
        along = torch.stack([(b * v).sum() for b, v in pairs]).sum()
        (Jv,) = torch.autograd.grad(along, u)
    return f.detach(), Jv.detach()
