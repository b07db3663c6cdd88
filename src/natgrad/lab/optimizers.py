"""The optimizers an experiment can name, each built from a model and a few settings.

A new one is a function here: its keyword arguments, with their defaults, are what ``--set`` takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import natgrad
from natgrad.lab.errors import UsageError, unknown
from natgrad.likelihood import Likelihood

__all__ = ["BUILDERS", "Joint", "Settings", "Task", "build", "complete", "parse"]

Setting: TypeAlias = float | int | bool | str
Settings: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Task:
    """What an optimizer may need to know beside its settings."""

    model: nn.Module
    likelihood: Likelihood
    seed: int = 0


def sgd(task: Task, *, lr: float = 0.03, momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD with heavy-ball momentum."""
    return torch.optim.SGD(task.model.parameters(), lr=lr, momentum=momentum)


def adam(
    task: Task, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(task.model.parameters(), lr=lr, betas=(beta1, beta2))


def adamw(
    task: Task,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019): decoupled decay on top of the recipe's L2 penalty."""
    betas = (beta1, beta2)
    parameters = task.model.parameters()
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


def muon(task: Task, *, lr: float = 1e-3, momentum: float = 0.95) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for hidden weight matrices, AdamW for everything else.

    The output layer (the last matrix), embeddings, convolutions and biases are AdamW's.

    Updates are scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), so
    that one learning rate serves both. No decoupled decay: the recipe's L2 penalty is the only one.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(f"muon needs torch 2.9 or newer, this is torch {torch.__version__}")
    tables = {id(m.weight) for m in task.model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in task.model.parameters() if p.ndim == 2 and id(p) not in tables]
    hidden = matrices[:-1]
    rest = [p for p in task.model.parameters() if all(p is not q for q in hidden)]
    if not hidden:
        raise UsageError("muon needs a hidden weight matrix; the network has none")
    return Joint(
        torch.optim.Muon(
            hidden, lr=lr, momentum=momentum, weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0),
    )  # fmt: skip


def kfac(
    task: Task,
    *,
    lr: float = 0.03,
    momentum: float = 0.9,
    damping: float = 0.03,
    stats_every: int = 10,
    refresh_every: int = 50,
    decay: float = 0.95,
) -> torch.optim.Optimizer:
    """K-FAC with the sampled Fisher of the recipe's likelihood."""
    return natgrad.KFAC(
        task.model, lr=lr, momentum=momentum, damping=damping, likelihood=task.likelihood,
        stats_every=stats_every, refresh_every=refresh_every, decay=decay, seed=task.seed,
    )  # fmt: skip


Builder: TypeAlias = Callable[..., torch.optim.Optimizer]
BUILDERS: dict[str, Builder] = {
    builder.__name__: builder for builder in (sgd, adam, adamw, muon, kfac)
}


def build(name: str, task: Task, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of that name for a model.

    Raises:
        UsageError: no such optimizer or setting, or a value that it refuses.
    """
    try:
        return _builder(name)(task, **complete(name, settings))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error


def complete(name: str, settings: Settings) -> dict[str, Setting]:
    """All settings of an optimizer: those given, and its defaults for the rest.

    Raises:
        UsageError: no such optimizer or setting.
    """
    defaults = _defaults(name)
    for key in settings:
        if key not in defaults:
            raise unknown(f"setting of {name}", key, list(defaults))
    return {**defaults, **settings}


def parse(name: str, assignments: Iterable[str]) -> dict[str, Setting]:
    """Settings from ``key=value`` strings, each read as the type of its default.

    >>> parse("kfac", ["lr=0.03", "stats_every=2"])
    {'lr': 0.03, 'stats_every': 2}

    Raises:
        UsageError: not ``key=value``, no such setting, or a value of another type.
    """
    defaults, settings = _defaults(name), {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not text:
            raise UsageError(f'--set takes key=value, got "{assignment}"')
        if key not in defaults:
            raise unknown(f"setting of {name}", key, list(defaults))
        kind = type(defaults[key])
        try:
            settings[key] = kind(text)
        except ValueError:
            raise UsageError(f'{name}: {key} takes {_described(kind)}, got "{text}"') from None
    return settings


def _described(kind: type) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, kind.__name__)


def _builder(name: str) -> Builder:
    if name not in BUILDERS:
        raise unknown("optimizer", name, list(BUILDERS))
    return BUILDERS[name]


def _defaults(name: str) -> dict[str, Setting]:
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


class Joint(torch.optim.Optimizer):
    """Several optimizers that share out a model's parameters, stepped and saved as one.

    Its parameter groups are those of the members, so that a schedule reaches them all.
    """

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        super().__init__([group for member in members for group in member.param_groups], {})
        self.members = members

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of every member."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in order."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the members' states; their new parameter groups become this optimizer's."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self.param_groups = [group for member in self.members for group in member.param_groups]
