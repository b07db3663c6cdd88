"""What is timed: natgrad's optimizers and reparametrizations, and those of others.

A new variant of ours is a line in ``OURS``. Settings can also be given with the name:
``kfac:fused=True`` is ``kfac`` with ``fused=True``, a row of its own.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import torch

import natgrad
from natgrad.lab import optimizers
from natgrad.lab.bench.intervals import Rhythm
from natgrad.lab.bench.method import DAMPING, LR, Method, Setup, Start, Step, looped
from natgrad.lab.bench.peers import PEERS
from natgrad.lab.errors import UsageError, unknown
from natgrad.optim import NaturalGradient

__all__ = ["BASELINE", "METHODS", "method"]

BASELINE = "sgd"


def _natural(optimizer: type[NaturalGradient]) -> Start:
    """One of natgrad's optimizers, with the sampled Fisher of the task's likelihood."""

    def start(setup: Setup, **options: Any) -> Step:
        settings = {
            "lr": LR,
            "damping": DAMPING,
            "likelihood": setup.task.likelihood,
            "stats_every": setup.interval.statistics,
            "refresh_every": setup.interval.refresh,
            **options,
        }
        return looped(setup, optimizer(setup.model, **settings))

    return start


def _of_the_lab(name: str, rhythm: Rhythm) -> Start:
    """One that experiments can name too; ``every`` is set to its period."""

    def start(setup: Setup, **options: Any) -> Step:
        settings: dict[str, Any] = {"lr": LR}
        if rhythm.follows == "both":
            settings["stats_every"] = setup.interval.statistics
            settings["refresh_every"] = setup.interval.refresh
        elif every := rhythm.refresh_every(setup.interval):
            settings["every"] = every
        inputs = setup.task.inputs(setup.device) if name in PRONGS else None
        asked = optimizers.Task(setup.model, setup.task.likelihood, inputs=inputs)
        return looped(setup, optimizers.build(name, asked, {**settings, **options}))

    return start


#: each with the class and what it is given beside the schedule
OURS: dict[str, tuple[type[NaturalGradient], dict[str, Any]]] = {
    "kfac": (natgrad.KFAC, {}),
    "kfac_fused": (natgrad.KFAC, {"fused": True}),
    "kfac_quarter": (natgrad.KFAC, {"stats_fraction": 0.25}),
    "kfac_bf16": (natgrad.KFAC, {"product_dtype": torch.bfloat16}),
    "kfac_fused_bf16": (natgrad.KFAC, {"fused": True, "product_dtype": torch.bfloat16}),
    "ekfac": (natgrad.EKFAC, {}),
    "ekfac_bf16": (natgrad.EKFAC, {"product_dtype": torch.bfloat16}),
    "tkfac": (natgrad.TKFAC, {}),
    "tekfac": (natgrad.TEKFAC, {}),
}
#: reparametrizations that the lab builds, refitted after the last step of a period
PRONGS = ("prong", "prongplus")
#: with what they are given
SNGDS: dict[str, dict[str, Any]] = {"sngd": {}, "sngd_compensated": {"compensate": True}}


def _sngd(setup: Setup, **options: Any) -> Step:
    """SGD in SNGD's coordinates, renewed in the first step of every period.

    As printed it needs a large ridge where a batch has fewer examples than there are features.
    What follows a layer and is no activation, such as a sum, is read as the identity.
    """
    settings: dict[str, Any] = {"eps": 1.0, "activations": {"*": "identity"}, **options}
    rule = natgrad.SNGD(every=setup.interval.refresh, likelihood=setup.task.likelihood, **settings)
    whitener = natgrad.whiten(setup.model, rule)
    sgd = torch.optim.SGD(setup.model.parameters(), lr=LR, momentum=0.9)
    whitener.attach(sgd)
    return looped(setup, sgd)


def _methods() -> list[Method]:
    steady = Rhythm()
    both, first, late = Rhythm("both"), Rhythm("first"), Rhythm("second", late=True)
    return [
        *(Method(name, _of_the_lab(name, steady)) for name in ("sgd", "adamw", "muon")),
        Method("soap", _of_the_lab("soap", first), first, package="pytorch_optimizer"),
        *(
            Method(name, _of_the_lab("kfac_pytorch", both), both, package="kfac-pytorch",
                   options={"method": kind})
            for name, kind in (("kfac_pytorch", "inverse"), ("kfac_pytorch_eigen", "eigen"))
        ),
        *PEERS,
        *(
            Method(name, _natural(optimizer), both, ours=True, options=options)
            for name, (optimizer, options) in OURS.items()
        ),
        *(Method(name, _of_the_lab(name, late), late, ours=True) for name in PRONGS),
        *(
            Method(name, _sngd, Rhythm("second"), ours=True, options=options)
            for name, options in SNGDS.items()
        ),
    ]  # fmt: skip


METHODS: dict[str, Method] = {each.name: each for each in _methods()}


def method(name: str) -> Method:
    """The method of that name, with the settings that follow it.

    >>> method("kfac:fused=True").options
    {'fused': True}

    Raises:
        UsageError: there is none of that name, or a setting is not ``key=value``.
    """
    base, *assignments = name.split(":")
    if base not in METHODS:
        raise unknown("optimizer", base, list(METHODS))
    found = METHODS[base]
    given = dict(_setting(name, assignment) for assignment in assignments)
    return replace(found, name=name, options={**found.options, **given})


def _setting(name: str, assignment: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not (key.isidentifier() and equals and text):
        raise UsageError(f'{name}: settings follow a name as :key=value, got "{assignment}"')
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text  # a word
