"""The layer of SNGD: whitened by the local Fisher matrix of its own batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from natgrad.distributed import world_size
from natgrad.layers import Whitenable
from natgrad.layers.activations import Activation
from natgrad.modes import autocasts, without_autocast
from natgrad.whiten.averages import Averages, Local, over_processes
from natgrad.whiten.coordinates import Constants, canonical
from natgrad.whiten.inverse_root import InverseRoot, inverse_root, inverse_root_of_rows
from natgrad.whiten.module import Heard, Whitened

if TYPE_CHECKING:
    from natgrad.whiten.sngd import SNGD

__all__ = ["LocalFisher"]

FAILURES = 3  #: roots that may fail in a row


@dataclass(frozen=True)
class _Measured(Constants):
    """Constants with the cheaper form of ``P``, and with the statistics they were made of."""

    D: Tensor | None = None
    rows: Tensor | None = None
    core: Tensor | None = None
    A: Tensor | None = None
    nu: Tensor | None = None


@dataclass
class _Clock:
    """Counts optimizer steps by looking at the weight, which each of them writes to."""

    steps: int = 0
    version: int | None = None  #: of the weight when last looked at

    def ticks(self, weight: Tensor) -> bool:
        """Whether the weight was written to since; then counts a step."""
        if weight._version == self.version:
            return False
        self.version = weight._version
        self.steps += 1
        return True


class LocalFisher(Whitened):
    """``y = nu^(-1/2) o (V A^(-1/2) x) + b`` with ``A = E[x x^T]`` and ``nu = E[nu(y)]``.

    Liu & Liu 2021 (arXiv 2109.10100), Algorithm 1; MATH 6. A training pass renews the constants if
    it is the first since ``rule.every`` optimizer steps: the batch's pre-activation under the old
    constants gives ``nu``, its input gives ``A``, then it is run with the new ones. Gradients flow
    through the linear map to the input (V:E9), not into the constants.

    An optimizer step is told by the weight having been written to: micro-batches of one step, a
    second call in the same pass and what activation checkpointing runs again have the constants of
    the first call, and only that enters the statistics. A batch with a number that is not finite
    changes no constant and no average.

    ``P`` is kept as ``D + rows^T core`` where the batch has far fewer rows than features: the same
    matrix, cheaper to multiply by. Linear layers are evaluated on the rows of their input where
    that costs less than in weight space.

    Args:
        view: how the layer is read.
        rule: the settings.
        activation: what follows the layer.
    """

    rows: Tensor | None
    core: Tensor | None
    lagged: Tensor | None

    def __init__(self, view: Whitenable, rule: SNGD, activation: Activation) -> None:
        weight, (o, k), q = view.module.weight, view.channels, view.groups
        Q = weight.new_ones(*q, o, 1) if rule.per_unit else None
        super().__init__(view, Constants(weight.new_ones(*q, 1, k), None, Q))
        self.rule, self.activation = rule, activation
        for name in ("rows", "core", "lagged"):
            self.register_buffer(name, None)
        self.averages = Averages(q, (o, k), rule.decay, weight)
        self.clock = _Clock()
        self.failures = 0
        self._averaged: tuple[tuple[Any, ...], Constants] | None = None
        self._plain: tuple[tuple[Any, ...], Tensor] | None = None
        self._spread: tuple[Tensor, float] | None = None  #: D, and its one number
        self._listener: Heard | None = None
        self._heard: list[tuple[Tensor, int, int]] = []  #: nu, rows and examples of data

    def forward(self, input: Tensor) -> Tensor:
        """The layer with the constants of this batch in training, averaged ones in evaluation."""
        if not self.training:
            output = self.view.compute(input, *self.canonical())
            if self.heard is not None:
                self.heard(self, input, output)
                self._hear(input, output)
            return output
        weight, clock, rule = self.weight, self.clock, self.rule
        own = isinstance(weight, nn.Parameter)  # functional calls put other tensors in its place
        begins = own and self.counts and clock.ticks(weight)
        if begins and (clock.steps - 1) % rule.every == 0:
            self._renew(input.detach())
            clock.version = weight._version
        output = self._evaluated(input)
        if begins and rule.lag and clock.steps % rule.every == 0 and output.numel():
            self.lagged = self._units(output)
        if self.heard is not None:
            self.heard(self, input, output)
        return output

    def canonical(self) -> tuple[Tensor, Tensor | None]:
        """The plain layer's weight and bias, differentiable in this one's.

        In evaluation what :func:`fold` gives, worked out once while neither weight nor constants
        change.
        """
        if not self.training:
            return self._folded(), self.bias
        with without_autocast(self.weight.device.type):
            V, _ = self.matrices(self.weight, None)
            W = self._mapped(V.flatten(-3, -2)).reshape(V.shape)
            W = W if self.Q is None else self.Q.unsqueeze(-1) * W
            return self.tensors(W, None)[0], self.bias

    def in_use(self) -> Constants:
        """This batch's constants in training, averaged ones in evaluation."""
        if not self._current:
            return self._average().to(self.weight.dtype)
        return Constants(InverseRoot(self.P, self.rows, self.core).dense(), None, self.Q)

    def exact(self) -> Constants:
        """:meth:`in_use` in float64, with no rounding of its own."""
        if not self._current:
            return self._average()
        rows, core = (x if x is None else x.double() for x in (self.rows, self.core))
        P = InverseRoot(self.P.double(), rows, core).dense()
        return Constants(P, None, self.Q).to(torch.float64)

    def use(self, new: Constants) -> None:
        """Compute with these constants from here on; data's statistics begin the averages."""
        root = InverseRoot(new.P)
        if isinstance(new, _Measured) and new.rows is not None and new.D is not None:
            root = InverseRoot(new.D, new.rows, new.core)
        self._set(root, new.Q)
        if isinstance(new, _Measured) and new.A is not None and new.nu is not None:
            self.averages.begin(Local(new.A, new.nu))

    def identity(self) -> Constants:
        """The constants with which this is the plain layer."""
        P = torch.ones_like(self.P[..., :1, :])
        Q = None if self.Q is None else torch.ones_like(self.Q)
        return Constants(P, None, Q, P, Q)

    def stepped(self) -> None:
        """An optimizer step that the weight does not show."""
        self.clock.version = None

    # what a pass does ----------------------------------------------------------------------------

    @property
    def _current(self) -> bool:
        return self.training or self.rule.compensate or self.averages.empty

    def _evaluated(self, input: Tensor) -> Tensor:
        """The layer's output under this batch's constants.

        ``P`` is applied to the rows of a Linear layer's input or to those of its weight. Forwards
        and backwards ``V P`` takes ``2 o`` rows through it, ``x P`` as many as there are, twice
        only if the input needs a gradient. Under autocast the input is too coarse for it.
        """
        # nn.Module looks attributes up slowly: a small layer would spend its time there
        weight, bias, Q = self._parameters["weight"], self._parameters["bias"], self._buffers["Q"]
        view = self.view
        assert weight is not None
        if view.kind != "dense" or input.dtype != weight.dtype or autocasts(weight.device.type):
            return view.compute(input, *self.canonical())
        V = weight if Q is None else Q * weight
        rows = input.numel() // max(input.shape[-1], 1) * (2 if input.requires_grad else 1)
        if rows < 2 * weight.shape[0]:
            return view.compute(self._mapped(input), V, bias)
        return view.compute(input, self._mapped(V), bias)

    def _mapped(self, x: Tensor) -> Tensor:
        """``x P`` for rows ``[(q,) .., k]``."""
        P, rows, core = (self._buffers[name] for name in ("P", "rows", "core"))
        assert P is not None
        if rows is None or core is None:
            return x * P if P.shape[-2] == 1 else x @ P
        if P.ndim != 2 or x.ndim != 2:
            return torch.addcmul((x @ rows.mT) @ core, x, P)
        if self._spread is None or self._spread[0] is not P:
            self._spread = P, float(P[0, 0])  # one number, read once per change of constants
        return torch.addmm(x, x @ rows.mT, core, beta=self._spread[1])

    # statistics ----------------------------------------------------------------------------------

    @_disable_dynamo
    @torch.no_grad()
    def _renew(self, input: Tensor) -> None:
        """New constants from this batch."""
        lagged = self.lagged if self.rule.lag else None
        nu = self._units(self._evaluated(input)) if lagged is None else lagged
        with without_autocast(input.device.type):
            Y = self._scaled_rows(input)
            seen = self.averages.take_in(Local(Y.mT @ Y, nu), Y.shape[-2])
            if seen is None:
                return
            seen = self.averages.mean() if self.rule.average else seen
            root, Q = self._with(self._root(Y, seen.A), seen.nu)
        if not bool(root.finite):
            self._failed()
            return
        self.failures = 0
        if self.rule.compensate:
            P = root.dense()
            new = _Measured(P, None, Q, root.inverse, None, root.D, root.rows, root.core)
            change = self.planned(new)
            if change.finite:
                self.accept(change)
        else:
            self._set(root, Q)

    def _scaled_rows(self, input: Tensor) -> Tensor:
        """Rows ``Y [(q,) r, k]`` with ``A = Y^T Y``."""
        X = self.view.features(input)
        X = X.to(self.averages.dtype)
        n = self.view.examples(input) if self.rule.spatial == "sum" else X.shape[-2]
        Y: Tensor = X * max(n, 1) ** -0.5
        return Y

    def _root(self, Y: Tensor, A: Tensor) -> InverseRoot:
        """``A^(-1/2)``, from the rows where they are few and all there is."""
        rule, (r, k) = self.rule, Y.shape[-2:]
        alone = not rule.average and world_size() == 1
        if r < k and alone and rule.iterations is None:
            # the function is kept to rounding only if P^-1 is the inverse to more than that
            Y = Y.double() if rule.compensate else Y
            root = inverse_root_of_rows(Y, rule.eps, rule.method, rule.tolerance, rule.compensate)
            return root if 2 * r < k else InverseRoot(root.dense(), inverse=root.inverse)
        return self._dense_root(A)

    def _dense_root(self, A: Tensor) -> InverseRoot:
        rule = self.rule
        return inverse_root(A, rule.eps, rule.method, rule.tolerance, rule.iterations)

    def _with(self, root: InverseRoot, nu: Tensor) -> tuple[InverseRoot, Tensor | None]:
        """``nu^(-1/2)`` put into ``P`` if it is one number for the layer, else into ``Q``."""
        least = self.rule.nu_min
        if self.Q is None:
            return root.times(nu.mean().clamp_min(least).rsqrt()), None
        return root, nu.clamp_min(least).rsqrt().unsqueeze(-1)

    def _set(self, root: InverseRoot, Q: Tensor | None) -> None:
        # new tensors: graphs of earlier passes go on to see the constants they were made with
        dtype = self.weight.dtype
        for name, x in (("P", root.D), ("rows", root.rows), ("core", root.core), ("Q", Q)):
            setattr(self, name, x if x is None else x.to(dtype))

    def _units(self, output: Tensor) -> Tensor:
        """``E[nu]`` of each unit, ``[(q,) o]``."""
        if not output.numel():
            return torch.zeros_like(self.averages.nu.value)
        with torch.no_grad(), without_autocast(output.device.type):
            z = self.view.output_rows(output.detach()).flatten(-3, -2)
            z = z.to(self.averages.dtype)
            z = z if z.ndim == 2 else z.movedim(0, 1).flatten(1)
            return self.activation.nu(z, self.rule.nu).mean(0).reshape(self.averages.nu.value.shape)

    def _failed(self) -> None:
        self.failures += 1
        if self.failures >= FAILURES:
            raise RuntimeError(
                f"natgrad: {self.view.name}: (A + eps tr A / k I)^-1/2, "
                f"{tuple(self.averages.A.value.shape)}, failed {FAILURES} times in a row; "
                f"choose eps above {self.rule.eps}"
            )

    # evaluation ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _average(self) -> Constants:
        """Constants of the averaged statistics in float64, worked out once per change of them."""
        key = self.averages.version
        if self._averaged is None or not _same(self._averaged[0], key):
            with without_autocast(self.weight.device.type):
                at = self.averages.mean()
                root, Q = self._with(self._dense_root(at.A), at.nu)
            self._averaged = key, Constants(root.D, None, Q).to(torch.float64)
        return self._averaged[1]

    def _folded(self) -> Tensor:
        """``W = Q V P`` in float64, as folding has it, then in the dtype of the weight."""
        weight = self.weight
        at = (self.P, self.rows, self.core, self.Q) if self._current else self.averages.version
        key = (weight, weight._version, *at)
        kept = isinstance(weight, nn.Parameter) and not torch.is_grad_enabled()
        if kept and self._plain is not None and _same(self._plain[0], key):
            return self._plain[1]
        with without_autocast(weight.device.type):
            W, _ = canonical(self.exact(), self.matrices(weight.double(), None)[0], None)
            W = self.tensors(W, None)[0].to(weight.dtype).contiguous()
        if kept and not torch.compiler.is_compiling():
            self._plain = key, W
        return W

    # data ----------------------------------------------------------------------------------------

    def _hear(self, input: Tensor, output: Tensor) -> None:
        """Take in a batch of the pass over data that the listener is for."""
        if self.heard is not self._listener:
            self._listener, self._heard = self.heard, []
        rows = self.view.features(input).shape[-2]
        self._heard.append((self._units(output), rows, self.view.examples(input)))

    def measured(self, A: Tensor) -> Constants:
        """Constants for the data just gone through, whose rows have the second moment ``A``."""
        heard, self._heard = self._heard, []
        good = [(nu.double(), r, n) for nu, r, n in heard if bool(nu.isfinite().all())]
        rows = sum(r for _, r, _ in good)
        total = sum((nu * r for nu, r, _ in good), self.averages.nu.value.double() * 0)
        examples = A.new_tensor(float(sum(n for _, _, n in good)))
        nu, share = over_processes((total, rows), (examples, rows))
        A = A / share if self.rule.spatial == "sum" else A
        root, Q = self._with(self._dense_root(A), nu)
        return _Measured(root.dense(), None, Q, A=A, nu=nu)

    # copies and checkpoints ----------------------------------------------------------------------

    def _check(self, new: Constants) -> None:
        (o, k), q = self.view.channels, self.view.groups
        fits = {"P": ((*q, k, k), (*q, 1, k)), "c": (None,)}
        fits["Q"] = (None,) if self.Q is None else ((*q, o, 1),)
        for name, expected in fits.items():
            found = getattr(new, name)
            if (None if found is None else tuple(found.shape)) not in expected:
                raise ValueError(
                    f"natgrad: {self.view.name}: {name} must have shape {expected[0]}, got "
                    f"{None if found is None else tuple(found.shape)}"
                )

    def get_extra_state(self) -> Tensor:
        """The number of steps."""
        return torch.tensor(self.clock.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting from there."""
        self.clock = _Clock(int(state))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # P is a diagonal or not, other buffers are there or not: make places of the saved shapes
        if prefix + "P" in state_dict:
            for name in ("P", "rows", "core", "lagged"):
                x = state_dict.get(prefix + name)
                dtype = self.averages.dtype if name == "lagged" else self.weight.dtype
                place = None if x is None else self.weight.new_empty(x.shape, dtype=dtype)
                setattr(self, name, place)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "clock": _Clock(self.clock.steps),
            "_averaged": None,
            "_plain": None,
            "_spread": None,
            "_heard": [],
            "_listener": None,
        }
        return {**super().__getstate__(), **fresh}


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(x is y or (not isinstance(x, Tensor) and x == y) for x, y in zip(a, b, strict=True))
