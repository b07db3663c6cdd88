"""The optimizers an experiment can name, each built from a model and a few settings.

A new one is a function in one of the files here: its keyword arguments, with their defaults, are
what ``--set`` takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from natgrad.lab.errors import UsageError, unknown
from natgrad.lab.optimizers.automatic import (
    ekfac_auto,
    kfac_auto,
    tekfac_auto,
    tkfac_auto,
    tkfac_auto_bf16,
)
from natgrad.lab.optimizers.first_order import Joint, adam, adamw, lbfgs, muon, rmsprop, sgd
from natgrad.lab.optimizers.natural import ekfac, exactngd, kfac, tekfac, tkfac
from natgrad.lab.optimizers.peers import kfac_pytorch, sgd_nesterov, soap
from natgrad.lab.optimizers.task import Setting, Settings, Task
from natgrad.lab.optimizers.untouched import (
    ekfac_defaults,
    kfac_defaults,
    tekfac_defaults,
    tkfac_defaults,
)
from natgrad.lab.optimizers.whitened import prong, prong_diagonal, prongplus, sgd_bn, sngd

__all__ = [
    "BUILDERS",
    "UNTUNED",
    "Joint",
    "Setting",
    "Settings",
    "Task",
    "build",
    "complete",
    "parse",
    "split_name",
]

Builder: TypeAlias = Callable[..., torch.optim.Optimizer]
BUILDERS: dict[str, Builder] = {
    builder.__name__: builder
    for group in (
        (sgd, sgd_bn, rmsprop, adam, adamw, lbfgs, muon),
        (kfac, ekfac, tkfac, tekfac, exactngd),
        (kfac_auto, ekfac_auto, tkfac_auto, tekfac_auto, tkfac_auto_bf16),
        (kfac_defaults, ekfac_defaults, tkfac_defaults, tekfac_defaults),
        (prong, prong_diagonal, prongplus, sngd),
        (sgd_nesterov, soap, kfac_pytorch),
    )
    for builder in group
}

#: those whose point is that nothing is tuned
UNTUNED = frozenset(name for name in BUILDERS if name.endswith("_defaults"))


def split_name(name: str) -> tuple[str, dict[str, Setting]]:
    """An optimizer's name and the settings that are fixed in it.

    One optimizer with several values of a setting is compared under several names:

    >>> split_name("prong[eps=0.1,every=100]")
    ('prong', {'eps': 0.1, 'every': 100})

    Raises:
        UsageError: no such optimizer or setting, or a bracket that is not closed.
    """
    stem, bracket, inside = name.partition("[")
    if not bracket:
        return name, {}
    if not inside.endswith("]"):
        raise UsageError(f'"{name}" lacks its closing bracket: name[setting=value]')
    return stem, parse(stem, inside[:-1].split(","))


def build(name: str, task: Task, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of that name for a model.

    Raises:
        UsageError: no such optimizer or setting, or a value that it refuses.
    """
    completed = complete(name, settings)
    try:
        return _builder(name)(task, **completed)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error


def complete(name: str, settings: Settings) -> dict[str, Setting]:
    """All settings of an optimizer: those given, those of its name, its defaults for the rest.

    Raises:
        UsageError: no such optimizer or setting, or one that contradicts the name.
    """
    stem, fixed = split_name(name)
    defaults = _defaults(stem)
    for key, value in settings.items():
        if key not in defaults:
            raise unknown(f"setting of {stem}", key, list(defaults))
        if fixed.get(key, value) != value:
            raise UsageError(f"{name} is for {key} {fixed[key]}, not {value}")
    return {**defaults, **fixed, **settings}


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
    stem = name.partition("[")[0]
    if stem not in BUILDERS:
        raise unknown("optimizer", stem, list(BUILDERS))
    return BUILDERS[stem]


def _defaults(name: str) -> dict[str, Setting]:
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
