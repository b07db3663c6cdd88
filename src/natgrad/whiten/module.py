"""The module that takes a layer's place while it is trained in whitened coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.calls import in_backward
from natgrad.layers import Whitenable
from natgrad.modes import without_autocast
from natgrad.whiten.coordinates import Constants, canonical, pulled_back, whitened
from natgrad.whiten.rows import rows_are_cheaper, through_rows

__all__ = ["Change", "Pair", "Whitened"]

Pair: TypeAlias = tuple[Tensor, Tensor | None]
Heard: TypeAlias = Callable[["Whitened", Tensor, Tensor], None]  #: told layer, input and output

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Change:
    """A layer's move to other constants, worked out in float64 and not made yet."""

    layer: Whitened
    old: Constants
    new: Constants
    weight: Tensor  #: what the parameters become, in their own shapes
    bias: Tensor | None
    rescaling: bool = False  #: of ``V`` alone, feature by feature, between two refits

    @property
    def finite(self) -> bool:
        """Whether the move can be made."""
        found = (self.weight, self.bias, self.new.P, self.new.c, self.new.Q)
        return all(bool(x.sum().isfinite()) for x in found if x is not None)


class Whitened(nn.Module):
    """``y = Q (V P (x - c) + d)`` in place of ``y = W x + b`` (MATH 5.1, 5.5).

    Evaluated in weight space: ``W = Q V P`` and ``b = Q d - W c`` are worked out first, then the
    layer's own function runs with them. The cost does not grow with the batch, padding is the
    layer's own, and folding gives what was evaluated. A Linear layer that sees fewer rows than it
    is wide is evaluated on the rows, which is the same function in fewer operations.

    ``weight`` and ``bias`` are the very parameters of the layer, under their names, and hold ``V``
    and ``d``; ``c``, ``P`` and ``Q`` are buffers. Without ``c`` the layer is not centred and
    ``bias`` is ``b`` itself. The layer itself waits, without its parameters, to be put back; its
    other attributes can be read here, and its hooks run here.

    A rule with more to do than renewing constants now and then overrides :meth:`forward` (and calls
    this one's), :meth:`in_use` where training and evaluation differ, :meth:`folding` where there is
    more to fold.

    Args:
        view: how the layer is read.
        start: constants to begin with; they must be those of the identity, ``V = W, d = b``.
    """

    triangular: bool = False  #: whether the rule makes lower triangular ``P``

    weight: nn.Parameter
    bias: nn.Parameter | None
    P: Tensor
    c: Tensor | None
    Q: Tensor | None

    added: ClassVar[tuple[str, ...]] = ()  #: parameters that the plain layer does not have

    def __init__(self, view: Whitenable, start: Constants) -> None:
        super().__init__()
        self.heard: Heard | None = None  #: told of every call
        self.followers: list[Callable[[Change], None]] = []  #: told of every change of constants
        self.held: Pair | None = None  #: plain weight and bias, while they are known to be these
        plain = view.module
        self.training = plain.training
        self.register_parameter("weight", plain._parameters["weight"])
        self.register_parameter("bias", plain._parameters["bias"])
        start = start.to(self.weight.dtype)
        for name in ("P", "c", "Q"):
            self.register_buffer(name, getattr(start, name))
        for name in HOOKS:
            vars(self)[name] = vars(plain)[name]
        self._metric_of: tuple[tuple[int, int], Tensor | None] = ((0, -1), None)
        self.view = view  # last: from here on, what this module lacks is looked up in the layer

    def forward(self, input: Tensor) -> Tensor:
        """The layer's own function with the weight and bias of :meth:`canonical`.

        Linear layers that see fewer rows than they are wide compute on the rows instead.
        """
        view, weight, at = self.view, self.weight, self.in_use()
        if self.held is not None:
            output = view.compute(input, *self.held)
        elif view.kind == "dense" and rows_are_cheaper(
            at, weight.shape[0], input, weight.requires_grad
        ):
            output = through_rows(at, input, weight, self.bias)
        else:
            output = view.compute(input, *self.canonical())
        if self.heard is not None:
            self.heard(self, input, output)
        return output

    def canonical(self) -> tuple[Tensor, Tensor | None]:
        """The plain layer's weight and bias, differentiable in this one's."""
        with without_autocast(self.weight.device.type):
            return self.tensors(*canonical(self.in_use(), *self.matrices(self.weight, self.bias)))

    def norm_gradient(self) -> Tensor:
        """The gradient of ``|W|^2 / 2`` with respect to ``V``, shaped like it: ``Q^T W P^T``.

        Without ``Q`` that is ``V P P^T``, a scaling of features in the bases where ``P P^T`` is
        diagonal (PCA).
        """
        if type(self).canonical is Whitened.canonical and self.Q is None:
            V, _ = self.matrices(self.weight, None)
            S = self._metric()
            return self.tensors(V * S if S.shape[-2] == 1 else V @ S, None)[0]
        W, _ = self.matrices(self.canonical()[0], None)
        return self.tensors(*pulled_back(self.in_use(), W))[0]

    def _metric(self) -> Tensor:
        """``P P^T [(q, 1,) k, k]``, or its diagonal as a row; kept until ``P`` changes."""
        version = (id(self.P), self.P._version)
        if self._metric_of[0] != version:
            P = self.P
            S = P.square() if P.shape[-2] < P.shape[-1] else _row_if_diagonal(P @ P.mT)
            self._metric_of = version, S.unsqueeze(-3) if S.ndim == 3 else S
        found = self._metric_of[1]
        assert found is not None
        return found

    def in_use(self) -> Constants:
        """The constants the layer computes with."""
        return Constants(self.P, self.c, self.Q, lower=self.triangular)

    def exact(self) -> Constants:
        """:meth:`in_use` in float64."""
        return self.in_use().to(torch.float64)

    def stepped(self) -> None:
        """Told after each step of the optimizer: what follows batches begins anew."""

    @property
    def counts(self) -> bool:
        """Whether a call now belongs to training.

        In training mode, with gradients, and not run again by activation checkpointing.
        """
        return self.training and torch.is_grad_enabled() and not in_backward()

    @property
    def centred(self) -> bool:
        """Whether the bias is part of the new coordinates."""
        return self.c is not None

    @property
    def folded(self) -> bool:
        """Whether the plain layer has its parameters back."""
        return self._parameters["weight"] is None

    def matrices(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tensors shaped like the parameters as ``[(q,) o, p, k]`` and ``[(q,) o]``."""
        W = self.view.by_channel(weight)
        return W, bias if bias is None else bias.reshape(W.shape[:-2])

    def tensors(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The inverse of :meth:`matrices`."""
        return self.view.from_channel(W), b if b is None else b.flatten()

    def refit(self, new: Constants) -> None:
        """Change the constants and keep the function: ``V = Q^-1 W P^-1``, ``d = Q^-1 (b + W c)``.

        Worked out in float64: what remains is the rounding of the parameters to their own dtype.

        Raises:
            ValueError: the constants don't fit the layer, or are not finite.
        """
        change = self.planned(new)
        if not change.finite:
            raise ValueError(f"natgrad: {self.view.name}: constants or parameters are not finite")
        self.accept(change)

    @torch.no_grad()
    def planned(self, new: Constants, plain: Pair | None = None) -> Change:
        """What :meth:`refit` would do; nothing is changed.

        Args:
            new: the constants to come.
            plain: what :meth:`plain` gives, if it is known.

        Raises:
            ValueError: the constants don't fit the layer.
        """
        self._check(new)
        new = replace(new.to(torch.float64, copy=False), lower=self.triangular)
        W, b = self.plain() if plain is None else plain
        weight, bias = self.tensors(*whitened(new, W, b))
        return Change(self, self.exact(), new, weight, bias)

    @torch.no_grad()
    def plain(self) -> Pair:
        """The plain layer's weight and bias in float64, as :meth:`matrices`."""
        bias = None if self.bias is None else self.bias.double()
        return canonical(self.exact(), *self.matrices(self.weight.double(), bias))

    @property
    def settled(self) -> bool:
        """Whether training and evaluation compute alike, with the constants of the buffers."""
        kind = type(self)
        return (
            kind.canonical is Whitened.canonical
            and kind.in_use is Whitened.in_use
            and kind.exact is Whitened.exact
        )

    def hold(self, plain: Pair | None) -> None:
        """Compute with this weight and bias of :meth:`plain` until told ``None``."""
        if plain is None:
            self.held = None
            return
        W, b = self.tensors(*plain)
        dtype = self.weight.dtype
        self.held = W.to(dtype), b if b is None else b.to(dtype)

    def _check(self, new: Constants) -> None:
        for name in ("P", "c", "Q"):
            mine, other = getattr(self, name), getattr(new, name)
            expected = None if mine is None else tuple(mine.shape)
            found = None if other is None else tuple(other.shape)
            if expected != found:
                raise ValueError(
                    f"natgrad: {self.view.name}: {name} must have shape {expected}, got {found}"
                )
        if self.triangular and bool(new.P.triu(1).any()):
            raise ValueError(f"natgrad: {self.view.name}: P must be lower triangular")

    @torch.no_grad()
    def accept(self, change: Change) -> None:
        """Make a planned change, in place, and tell the followers."""
        self.weight.copy_(change.weight)
        if self.bias is not None and change.bias is not None:
            self.bias.copy_(change.bias)
        self.use(change.new)
        for follow in self.followers:
            follow(change)

    def use(self, new: Constants) -> None:
        """Compute with these constants from here on."""
        for name in ("P", "c", "Q"):
            mine, other = getattr(self, name), getattr(new, name)
            if mine is not None:
                mine.copy_(other)

    def identity(self) -> Constants:
        """The constants with which this is the plain layer."""
        c = None if self.c is None else torch.zeros_like(self.c)
        P, Q = _unit(self.P), None if self.Q is None else _unit(self.Q)
        return Constants(P, c, Q, P, Q, lower=self.triangular)

    def folding(self) -> Change:
        """The move to the plain layer's coordinates, with the constants that evaluation uses."""
        training, self.training = self.training, False
        try:
            return self.planned(self.identity())
        finally:
            self.training = training

    def take(self) -> None:
        """Take the parameters out of the plain layer, so that this module alone has them."""
        for name in ("weight", "bias"):
            self.view.module.register_parameter(name, None)

    def restored(self) -> nn.Module:
        """Give the parameters back to the plain layer, as they are, and return it."""
        plain: nn.Module = self.view.module
        for name in ("weight", "bias"):
            plain.register_parameter(name, self._parameters[name])
            self.register_parameter(name, None)
        plain.training, plain._is_full_backward_hook = self.training, self._is_full_backward_hook
        self.heard, self.followers = None, []
        return plain

    def extra_repr(self) -> str:
        """Name and shape of the plain layer."""
        o, k = self.view.channels
        groups = "".join(f", groups={q}" for q in self.view.groups)
        return f"{type(self.view.module).__name__}, {k} -> {o}{groups}, centred={self.centred}"

    def __getattr__(self, name: str) -> Any:
        for own in (vars(self).get("_parameters"), vars(self).get("_buffers")):
            if own is not None and name in own:
                return own[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "view" not in vars(self):  # half made, by copy or pickle
                raise
            return getattr(self.view.module, name)

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the module is no part of the training run that listens to this one
        return {
            **vars(self),
            "heard": None,
            "followers": [],
            "held": None,
            "_metric_of": ((0, -1), None),
        }


def _row_if_diagonal(S: Tensor) -> Tensor:
    """A matrix, or the row of its diagonal if the rest is rounding."""
    diagonal = S.diagonal(dim1=-2, dim2=-1)
    scale = (diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2)).sqrt()
    rounding = S.shape[-1] * torch.finfo(S.dtype).eps * scale
    rest = S - diagonal.diag_embed()
    return diagonal.unsqueeze(-2) if bool((rest.abs() <= rounding).all()) else S


def _unit(M: Tensor) -> Tensor:
    """The identity, shaped like ``M``: ones if that is a diagonal."""
    if 1 in M.shape[-2:]:
        return torch.ones_like(M)
    return torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M)
