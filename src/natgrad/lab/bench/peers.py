"""Peers that experiments do not name: each is imported when it is started."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.lab.bench.intervals import Rhythm
from natgrad.lab.bench.method import DAMPING, LR, Method, Setup, Step, looped
from natgrad.lab.optimizers import Joint
from natgrad.lab.optimizers.peers import imported
from natgrad.likelihood import Categorical

__all__ = ["PEERS"]

PIP = 'pip install "natgrad[peers]"'


def shampoo(setup: Setup, **options: Any) -> Step:
    """Shampoo (Gupta et al. 2018, arXiv 1802.09568) of the package pytorch_optimizer.

    Statistics at every step, roots at the last step of every period.
    """
    package = imported("pytorch_optimizer", PIP)
    every = setup.interval.statistics
    settings = {
        "lr": LR,
        "momentum": 0.9,
        "matrix_eps": 1e-3,  # of its own 1e-6 a singular value of zero is left of some convolutions
        "preconditioning_compute_steps": every,
        **options,
    }
    return looped(setup, package.Shampoo(setup.model.parameters(), **settings))


def singd(setup: Setup, **options: Any) -> Step:
    """Dense SINGD (Lin et al. 2023, arXiv 2312.05705), with SGD for what it does not cover.

    It updates inverse factors by products, every ``T`` steps, and decomposes nothing.
    """
    package = imported("singd.optim.optimizer", PIP)
    model = setup.model
    covered = [
        p
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        for p in module.parameters(recurse=False)
    ]
    known = {id(p) for p in covered}
    rest = [p for p in model.parameters() if id(p) not in known]
    settings: dict[str, Any] = {
        "lr": LR,
        "damping": DAMPING,
        "T": setup.interval.statistics,
        "loss_average": "batch+sequence" if setup.task.sequences else "batch",
        **options,
    }
    optimizer = package.SINGD(model, params=covered, **settings)
    plain = [torch.optim.SGD(rest, lr=LR, momentum=0.9)] if rest else []
    return looped(setup, Joint(optimizer, *plain))


def asdl(setup: Setup, **options: Any) -> Step:
    """K-FAC of ASDL (Osawa et al. 2023, arXiv 2305.04684; the package asdfghjkl) before SGD.

    It runs forward and backward itself. The sampled Fisher for classes; it knows no Bernoulli
    outputs, for which it takes the empirical one.
    """
    package = imported("asdl", PIP)
    if torch.version.cuda is None:
        _unmarked()
    task, model, interval = setup.task, setup.model, setup.interval
    sampled = isinstance(task.likelihood, Categorical)
    config = package.PreconditioningConfig(
        curvature_upd_interval=interval.statistics, preconditioner_upd_interval=interval.refresh,
        damping=DAMPING, ema_decay=0.05, data_size=task.batch, **options,
    )  # fmt: skip
    kind = package.FISHER_MC if sampled else package.FISHER_EMP
    maker = package.KfacGradientMaker(model, config, fisher_type=kind)
    sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def loss_of(f: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        nll = task.likelihood.nll(f, y)  # it asks for "sum" too
        return nll.mean() if reduction == "mean" else nll.sum()

    def step(x: Tensor, y: Tensor) -> Tensor:
        sgd.zero_grad()
        output = maker.setup_model_call(model, x)
        maker.setup_loss_call(loss_of, output, y)
        _, loss = maker.forward_and_backward()
        sgd.step()
        found: Tensor = loss.detach()
        return found

    return step


def _unmarked() -> None:
    """Take ASDL's marks for NVIDIA's profiler away, which torch without CUDA refuses."""
    for name in ("asdl.operations.operation", "asdl.precondition.natural_gradient"):
        imported(name, PIP).nvtx = SimpleNamespace(range=nullcontext)


PEERS = [
    Method("shampoo", shampoo, Rhythm("first", late=True), package="pytorch_optimizer"),
    Method("asdl", asdl, Rhythm("both"), package="asdfghjkl"),
    Method("singd", singd, Rhythm("first"), package="singd"),
]
