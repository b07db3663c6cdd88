"""The schedule of a whitened model: when its constants are renewed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from natgrad.arguments import check_choice, check_range
from natgrad.batches import Batches, Inputs
from natgrad.whiten.module import Change, Pair, Whitened
from natgrad.whiten.rule import Rule
from natgrad.whiten.statistics import Statistics, statistics_of, summed
from natgrad.whiten.transport import STATES, carry
from natgrad.whiten.waiting import Waiting
from natgrad.whiten.window import Window

__all__ = ["Whitener"]

SAMPLES = 1000  #: examples of a window where the rule names no number


class Whitener:
    """Renews the constants of a model's whitened layers every ``rule.every`` optimizer steps.

    Desjardins et al. 2015, Algorithm 1; MATH 5.2. Statistics of all layers are complete before any
    constant changes, every layer's new parameters are worked out before any is written.

    With data, each refit takes its statistics from one pass over it in eval mode; with
    ``rule.from_training`` only the first does. Without, from the training loop's own batches: the
    latest that hold ``rule.samples`` examples. The first of these refits comes as soon as so many
    have been seen, or after ``every`` steps: constants of one small batch would have seen few
    directions, and multiply the learning rate by ``1 / eps`` in the rest. With ``rule.spread``
    statistics are taken every ``every`` steps, and layers take turns with their new constants.

    Made by :func:`natgrad.whiten`.

    Args:
        model: the model with its layers replaced.
        rule: how constants are made.
        layers: the whitened layers by name.
        data: what refits use; None is the training batches.
    """

    def __init__(
        self, model: nn.Module, rule: Rule, layers: Mapping[str, Whitened], data: Batches | None
    ) -> None:
        self.model, self.rule, self.data = model, rule, data
        self.layers = dict(layers)
        self.steps = 0  #: optimizer steps since the start
        self.fitted = data is not None
        samples = SAMPLES if rule.samples is None else rule.samples
        every, hears = self._every, data is None or rule.gradients or rule.from_training
        self._window = (
            Window(self.layers, samples, rule.gradients) if every is not None and hears else None
        )
        self._waiting = Waiting(self.layers, every) if every is not None and rule.spread else None
        self._handles: list[RemovableHandle] = []
        self._follow: Any = None

    def __repr__(self) -> str:
        return f"Whitener({self.rule!r}, {len(self.layers)} layers, {self.steps} steps)"

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        state: Literal["transport", "rotate", "reset", "keep"] = "transport",
        canonical_decay: float = 0.0,
    ) -> None:
        """Count the optimizer's steps and refit when it is time.

        State that the optimizer has by now is taken to be in the present coordinates.

        Args:
            optimizer: any ``torch.optim.Optimizer`` that holds the layers' parameters.
            state: what becomes of the optimizer's state at a refit. ``"transport"`` carries
                momentum buffers exactly and lets optimizers with second moments (Adam) start anew;
                ``"rotate"`` carries those too, as the diagonal of a matrix; ``"reset"`` lets all
                start anew; ``"keep"`` is wrong, and here to compare
                (:mod:`natgrad.whiten.transport`).
            canonical_decay: adds the gradient of ``canonical_decay / 2 |W|^2`` before each step,
                which is ``canonical_decay Q^T W P^T`` with respect to ``V`` (MATH 5.4); an
                optimizer's own L2 penalty is on ``|V|^2``. Decoupled weight decay (AdamW) shrinks
                ``W`` just as ``V`` and needs none of this.

        Raises:
            ValueError: already attached, none of the parameters in ``optimizer``, or an argument
                out of range.
        """
        check_choice("state", state, STATES)
        check_range("canonical_decay", canonical_decay, canonical_decay >= 0, ">= 0")
        if self._handles:
            raise ValueError("this whitener is attached to an optimizer; detach() it first")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(layer.weight) in held for layer in self.layers.values()):
            raise ValueError(
                f"{type(optimizer).__name__} holds none of the whitened layers' parameters "
                f"({', '.join(self.layers)}); make it of the parameters of this model"
            )
        for name, layer in self.layers.items():
            for added in layer.added:
                if id(getattr(layer, added)) not in held:
                    raise ValueError(
                        f"{type(optimizer).__name__} does not hold {name}.{added}, a parameter "
                        "that whiten has added: make the optimizer after whiten"
                    )
        self._handles.append(optimizer.register_step_post_hook(self._stepped))
        if canonical_decay:
            decay = partial(self._decay, canonical_decay)
            self._handles.append(optimizer.register_step_pre_hook(decay))
        self._follow = partial(carry, optimizer, state)
        for layer in self.layers.values():
            layer.followers.append(self._follow)
        if self._window is not None:
            self._window.listen()
        self._begin_step()

    def detach(self) -> None:
        """Leave optimizer and layers alone; constants stay as they are."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            if self._follow in layer.followers:
                layer.followers.remove(self._follow)
        if self._window is not None and self._handles:
            self._window.unlisten()
        self._handles, self._follow = [], None

    def refit(self, data: Inputs | None = None) -> None:
        """Renew all constants now; the model's function stays.

        Layers whose statistics are missing or not finite keep their constants, with a warning.

        Args:
            data: batches to take statistics from, in place of those given to ``whiten``; without
                either, the training batches seen since the last refit are taken.

        Raises:
            ValueError: there is no data and no training batch was seen.
        """
        batches = self._source() if data is None else Batches(data)
        plain = {} if batches is None else self._plain()
        self._renew(self._measured(batches, plain), plain)
        if self._waiting is not None:
            self._waiting.put({})
        self.fitted = True
        if self._window is not None:
            self._window.close()
        self._begin_step()
        self._prepare()

    def _source(self) -> Batches | None:
        """Where statistics come from; None are training batches."""
        window = self._window
        if self.rule.from_training and window is not None and self._heard(window):
            return None
        return self.data

    def _plain(self) -> dict[str, Pair]:
        """Step 1 of Algorithm 1, for all layers and before anything else: ``W`` and ``b``.

        They serve the pass over the data and the new parameters.
        """
        return {name: layer.plain() for name, layer in self.layers.items() if layer.settled}

    def _measured(
        self, batches: Batches | None, plain: Mapping[str, Pair]
    ) -> dict[str, Statistics]:
        window = self._window
        if batches is not None:
            seen = statistics_of(self.model, self.layers, batches, self.rule.samples, plain)
            if window is not None:
                seen = {
                    name: Statistics(s.inputs, window.seen[name].gradients)
                    for name, s in seen.items()
                }
        elif window is not None and self._heard(window):
            seen = {name: window.seen[name] for name in self.layers}
        else:
            raise ValueError("refit() needs data: none was given to whiten, no batch was seen")
        return {name: s.pooled(self.layers[name]) for name, s in seen.items()}

    def _begin_interval(self, waiting: Waiting) -> None:
        """Statistics of all layers, which wait for their turns."""
        batches = self._source()
        waiting.put(self._measured(batches, {} if batches is None else self._plain()))
        if self._window is not None:
            self._window.close()

    def _renew(self, seen: Mapping[str, Statistics], plain: Mapping[str, Pair]) -> None:
        """Everything is worked out before anything is written, so that an error changes nothing."""
        changes = {
            name: self._planned(self.layers[name], s, plain.get(name)) for name, s in seen.items()
        }
        left = [name for name, change in changes.items() if change is None]
        if left:
            warnings.warn(
                f"natgrad: {', '.join(left)}: no input seen, or none that was finite; the "
                "constants stay as they are",
                stacklevel=3,
            )
        for change in changes.values():
            if change is not None:
                change.layer.accept(change)

    def _planned(self, layer: Whitened, seen: Statistics, plain: Pair | None) -> Change | None:
        if seen.inputs.empty:
            return None
        change = layer.planned(self.rule.constants(layer, seen), plain)
        return change if change.finite else None

    def _stepped(self, *_: Any) -> None:
        """The optimizer has made a step."""
        self.layers = {name: layer for name, layer in self.layers.items() if not layer.folded}
        if not self.layers:
            self.detach()
            return
        self.steps += 1
        self._begin_step()
        every, window = self._every, self._window
        if every is None:
            return
        if window is not None:
            window.stepped()
        if self._due(every):
            if self._waiting is not None and self.fitted:
                self._begin_interval(self._waiting)
            else:
                self.refit()
        if self._waiting is not None:
            self._renew(self._waiting.take(self.steps % every, self.layers), {})
        self._prepare()

    def _begin_step(self) -> None:
        """Constants that follow single batches do so once those of many are known."""
        if self._handles and (self.fitted or self.rule.by_layers):
            for layer in self.layers.values():
                layer.stepped()

    @property
    def _every(self) -> int | None:
        return None if self.rule.by_layers else self.rule.every

    def _prepare(self) -> None:
        every = self._every
        if self._window is not None and every is not None:
            self._window.prepare(every - self.steps % every, eager=not self.fitted)

    def _due(self, every: int) -> bool:
        on_time = self.steps % every == 0
        if self.data is not None or self._window is None or (self.fitted and not on_time):
            return on_time
        seen = self._heard(self._window)
        return seen > 0 and (on_time or seen >= self._window.samples)

    def _heard(self, window: Window) -> int:
        """Examples that the windows of all processes hold."""
        return summed(window.examples, next(iter(self.layers.values())).weight)

    @torch.no_grad()
    def _decay(self, decay: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer undoes it itself
        for layer in self.layers.values():
            if layer.folded or layer.weight.grad is None:
                continue
            gradient = layer.norm_gradient() * decay
            layer.weight.grad.add_(gradient if scale is None else gradient * scale)

    def state_dict(self) -> dict[str, Any]:
        """The schedule, and what was heard since the last refit; the constants are the model's."""
        window = None if self._window is None else self._window.state_dict()
        waiting = None if self._waiting is None else self._waiting.state_dict()
        return {
            "steps": self.steps, "fitted": self.fitted, "window": window, "waiting": waiting
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: refits come at the same steps with the same statistics, bit by bit.

        Raises:
            ValueError: the checkpoint listened to training batches and this whitener does not, or
                the other way round, or to other layers; or one of the two spreads its refits.
        """
        if (state["waiting"] is None) != (self._waiting is None):
            raise ValueError("the checkpoint is of a whitener with another spread=")
        saved = state["window"]
        mine = None if self._window is None else set(self.layers)
        if (None if saved is None else set(saved["seen"])) != mine:
            raise ValueError("the checkpoint is of a whitener with other layers, data or gradients")
        self.steps, self.fitted = state["steps"], state["fitted"]
        self._begin_step()
        if self._window is not None:
            self._window.load_state_dict(saved)
        if self._waiting is not None:
            self._waiting.load_state_dict(state["waiting"], self.layers)
