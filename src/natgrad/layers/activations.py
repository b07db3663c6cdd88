"""Activations: the functions that follow a layer's map, and their local Fisher factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = [
    "IDENTITY", "KNOWN", "SIGMOID", "SOFTMAX", "Activation", "Given", "Reading",
    "activation_of_call", "activation_of_module", "as_activation", "lets_through",
]  # fmt: skip

Given: TypeAlias = "str | nn.Module | Callable[[Tensor], Tensor] | Activation"
Reading: TypeAlias = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation ``f``, as far as the Fisher matrix of one unit needs it.

    A unit ``y | x`` with pre-activation ``z = w x`` has the Fisher matrix ``E[nu(z) x x^T]`` (Sun &
    Nielsen 2017; Liu & Liu 2021, equation 5; MATH 6.3). ``nu = f'`` where the output is the mean of
    a two-valued variable (``bernoulli``: V:E4, V:E5), ``nu = f'^2`` where it is that of a normal
    one (``gaussian``, V:E6).

    Args:
        name: for messages; two of the same name are the same.
        function: applied to ``z [r, units]``, each entry by itself. None: the identity or softmax.
        reading: the one that is usual for it.
    """

    name: str
    function: Callable[[Tensor], Tensor] | None
    reading: Reading = "gaussian"

    def slope(self, z: Tensor) -> Tensor:
        """``f'(z)`` of rows ``z [r, units]``.

        Of softmax, whose units depend on each other, the diagonal of ``diag p - p p^T``.
        """
        if self.name == "identity":
            return torch.ones_like(z)
        if self.function is None:
            p = z.detach().softmax(-1)
            return p * (1 - p)
        # what is saved here is no part of the user's graph: activation checkpointing counts that
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            leaf = z.detach().requires_grad_()
            y = self.function(leaf.clone())  # it may work in place
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        return slope

    def nu(self, z: Tensor, reading: Reading | None = None) -> Tensor:
        """``nu(z)`` of rows ``z [r, units]``, in the usual reading or the given one."""
        slope = self.slope(z)
        return slope if (reading or self.reading) == "bernoulli" else slope.square()


def _same(x: Tensor) -> Tensor:
    return x


FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "celu": F.celu, "elu": F.elu, "gelu": F.gelu, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu, "mish": F.mish,
    "relu": F.relu, "relu6": F.relu6, "selu": F.selu, "sigmoid": torch.sigmoid, "silu": F.silu,
    "softplus": F.softplus, "softsign": F.softsign, "tanh": torch.tanh,
}  # fmt: skip

TWO_VALUED = ("sigmoid", "tanh", "hardsigmoid", "softmax")  #: read as ``bernoulli``


def _named(name: str) -> Activation:
    reading: Reading = "bernoulli" if name in TWO_VALUED else "gaussian"
    return Activation(name, FUNCTIONS.get(name), reading)


#: by the name that can be given
KNOWN: Mapping[str, Activation] = {
    name: _named(name) for name in sorted([*FUNCTIONS, "identity", "softmax"])
}
IDENTITY, SIGMOID, SOFTMAX = (KNOWN[name] for name in ("identity", "sigmoid", "softmax"))

MODULES: Mapping[type[nn.Module], str] = {
    nn.CELU: "celu", nn.ELU: "elu", nn.GELU: "gelu", nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish", nn.Hardtanh: "hardtanh", nn.LeakyReLU: "leaky_relu",
    nn.LogSoftmax: "softmax", nn.Mish: "mish", nn.PReLU: "prelu", nn.ReLU: "relu",
    nn.ReLU6: "relu6", nn.SELU: "selu", nn.SiLU: "silu", nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax", nn.Softmax2d: "softmax", nn.Softplus: "softplus",
    nn.Softsign: "softsign", nn.Tanh: "tanh",
}  # fmt: skip

#: other names and forms of the same functions; a method's trailing underscore is dropped first
ALIASES: Mapping[str, str] = {"log_softmax": "softmax", "expit": "sigmoid"}

SHAPES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.Flatten, nn.Unflatten, nn.Identity,
)  # fmt: skip
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
THROUGH = frozenset({
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "squeeze",
    "unsqueeze", "movedim", "clone", "to", "float", "double", "mean", "cat", "concat",
    "concatenate", "stack",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "batch_norm", "layer_norm", "group_norm", "instance_norm",
})  # fmt: skip


def lets_through(step: nn.Module | str) -> bool:
    """Whether an activation behind this module, function or method is that of the layer before.

    Reshaping, joining, dropout, pooling and norms; ``f'`` is then taken at the layer's own output.
    """
    if isinstance(step, str):
        return step.rstrip("_") in THROUGH
    return isinstance(step, (*SHAPES, *POOLS, *NORMS))


def activation_of_module(module: nn.Module) -> Activation | None:
    """The activation that a module computes; None if it is no known one."""
    name = next((name for kind, name in MODULES.items() if isinstance(module, kind)), None)
    if name is None or name == "softmax":
        return KNOWN.get(name or "")
    settings = module.extra_repr().replace("inplace=True", "").strip(", ")
    label = f"{name}({settings})" if settings else name
    return Activation(label, module, "bernoulli" if name in TWO_VALUED else "gaussian")


def activation_of_call(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Activation | None:
    """The activation of a function or method of this name with arguments after the first."""
    name = name.rstrip("_")
    name = ALIASES.get(name, name)
    if name not in KNOWN or name == "identity":
        return None
    kwargs = {key: x for key, x in (kwargs or {}).items() if key != "inplace"}
    if (not args and not kwargs) or name == "softmax":
        return KNOWN[name]
    settings = ", ".join([*map(str, args), *(f"{key}={x}" for key, x in kwargs.items())])
    called = _Called(FUNCTIONS[name], tuple(args), kwargs)
    return Activation(f"{name}({settings})", called, KNOWN[name].reading)


@dataclass(frozen=True)
class _Called:
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z, *self.args, **self.kwargs)


def as_activation(given: Given) -> Activation:
    """What the user names an activation by: a name, a module, or a function of each entry.

    Raises:
        ValueError: an unknown name.
        TypeError: none of these.
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        if given not in KNOWN:
            raise ValueError(f"no activation {given!r}; known are {', '.join(KNOWN)}")
        return KNOWN[given]
    if isinstance(given, nn.Module):
        known = activation_of_module(given)
        return known or Activation(type(given).__name__, given)
    if not callable(given):
        raise TypeError(
            f"an activation is a name, a module or a function, got {type(given).__name__}"
        )
    name = getattr(given, "__name__", type(given).__name__)
    builtin = getattr(torch, name, None) is given or getattr(F, name, None) is given
    return (activation_of_call(name) if builtin else None) or Activation(name, given)
