"""From a model and its data to samples of every layer, outside of a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.batches import Batches, call
from natgrad.layers import LayerView
from natgrad.likelihood import Likelihood
from natgrad.logits import LogitsKey
from natgrad.modes import evaluating
from natgrad.sample import Sample
from natgrad.tap import Tap

__all__ = ["Gathered", "Gatherer", "Kind"]

Kind: TypeAlias = Literal["exact", "sampled", "empirical"]


class Gathered(NamedTuple):
    """What one batch gives: the samples of all layers, by index of the view, and the rest."""

    samples: dict[int, Sample]
    rest: Tensor | None  #: per-example gradients ``[c, n, R]`` of the parameters asked for
    examples: int


class Gatherer:
    """Runs a model in eval mode over batches and hands out the samples of all its layers.

    Going over the same data again draws the same targets again.

    Args:
        model: the model.
        views: its covered layers.
        likelihood: the output distribution.
        kind: which Fisher.
        samples: draws per example of the sampled Fisher.
        generator: draws the targets.
        logits: which entry of the model's output is the logits.
        rest: parameters outside of all views whose per-example gradients are wanted too; they cost
            one backward pass for every example and column.
    """

    def __init__(
        self,
        model: nn.Module,
        views: list[LayerView],
        likelihood: Likelihood,
        *,
        kind: Kind = "exact",
        samples: int = 1,
        generator: torch.Generator | None = None,
        logits: LogitsKey = None,
        rest: Sequence[nn.Parameter] = (),
    ) -> None:
        self.model, self.views, self.likelihood, self.logits = model, views, likelihood, logits
        self.kind, self.samples, self.generator = kind, samples, generator
        self.rest = list(rest)
        self._start = None if generator is None else generator.get_state()

    def over(self, batches: Batches) -> Iterator[Gathered]:
        """What each batch gives.

        Raises:
            ValueError: there is no batch, or a batch and its targets differ in length.
        """
        found: dict[int, Sample] = {}
        tap = Tap(
            self.model, self.views, found.__setitem__, likelihood=self.likelihood,
            logits=self.logits,
        )  # fmt: skip
        tap.active = False
        generator = self._generator()
        empty = True
        try:
            with evaluating(self.model):
                for given, targets in batches:
                    columns: list[Tensor] = []
                    f = tap.run(
                        partial(call, self.model, given),
                        partial(self._columns, targets, generator, columns),
                    )
                    yield Gathered(dict(found), self._rest_gradients(f, columns), len(f))
                    found.clear()
                    empty = False
        finally:
            tap.remove()
        if empty:
            raise ValueError("inputs hold no batch")

    def _generator(self) -> torch.Generator:
        """The generator as it stood at first, so that a second pass draws the same targets."""
        if self.generator is None or self._start is None:
            device = next(self.model.parameters()).device
            return torch.Generator(device).manual_seed(0)
        self.generator.set_state(self._start)
        return self.generator

    def _columns(
        self,
        targets: Tensor | None,
        generator: torch.Generator,
        keep: list[Tensor],
        f: Tensor,
    ) -> Iterable[Tensor]:
        """The output gradients to send back; kept as well if there are other parameters."""
        columns = self._wanted(f, targets, generator)
        if not self.rest:
            return columns
        keep.extend(columns)
        return keep

    def _rest_gradients(self, f: Tensor, columns: list[Tensor]) -> Tensor | None:
        """Gradients of ``rest`` for each column and example, one backward pass each."""
        if not self.rest:
            return None
        rows = []
        for column in columns:
            for n in range(len(f)):
                alone = torch.zeros_like(column)
                alone[n] = column[n]
                found = torch.autograd.grad(
                    f, self.rest, alone, retain_graph=True, materialize_grads=True
                )
                rows.append(torch.cat([grad.flatten() for grad in found]))
        return torch.stack(rows).reshape(len(columns), len(f), -1)

    def _wanted(
        self, f: Tensor, targets: Tensor | None, generator: torch.Generator
    ) -> Iterable[Tensor]:
        likelihood = self.likelihood
        if targets is None:
            if self.kind == "empirical":
                raise ValueError('kind="empirical" needs targets=')
            counted = None
        else:
            if len(targets) != len(f):
                raise ValueError(
                    f"a batch of {len(f)} examples came with {len(targets)} targets: give targets "
                    "batch by batch, as the inputs"
                )
            score = likelihood.score(f.detach(), targets)
            if self.kind == "empirical":
                return [score]
            counted = likelihood.counted(f.detach(), score)
        if self.kind == "exact":
            return likelihood.columns(f.detach(), counted)
        return likelihood.draws(f.detach(), generator, self.samples, counted)
