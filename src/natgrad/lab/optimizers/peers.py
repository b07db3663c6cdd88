"""Optimizers of others, to be compared with; those that need a package import it when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from natgrad.lab.errors import PackageMissingError, UsageError
from natgrad.lab.optimizers.task import Task

__all__ = ["PreconditionedSGD", "imported", "kfac_pytorch", "sgd_nesterov", "soap"]


def sgd_nesterov(task: Task, *, lr: float = 0.03, momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, as Sutskever et al. (2013) trained autoencoders."""
    return torch.optim.SGD(task.model.parameters(), lr=lr, momentum=momentum, nesterov=True)


def soap(
    task: Task, *, lr: float = 1e-3, beta1: float = 0.95, beta2: float = 0.95, every: int = 10
) -> torch.optim.Optimizer:
    """SOAP (Vyas et al. 2024, arXiv 2409.11321) of the package pytorch_optimizer.

    Its eigenbases are renewed every ``every`` steps. No decoupled decay: the recipe's L2 penalty is
    the only one. The first step only collects statistics, as in the original.
    """
    package = imported("pytorch_optimizer", 'pip install "natgrad[peers]"')
    optimizer: torch.optim.Optimizer = package.SOAP(
        task.model.parameters(), lr=lr, betas=(beta1, beta2), weight_decay=0.0,
        precondition_frequency=every,
    )  # fmt: skip
    return optimizer


def kfac_pytorch(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, damping: float = 1e-3,
    kl_clip: float = 1e-3, stats_every: int = 1, refresh_every: int = 10, decay: float = 0.95,
    method: str = "inverse",
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD with momentum behind kfac-pytorch (Pauloski et al. 2021, github.com/gpauloski).

    Its factors are those of the empirical Fisher, with gradients of the batch's mean loss, so that
    a damping means something else than ours; their average begins at the identity, which rare
    statistics (``stats_every``) leave in for long. ``method`` is ``"inverse"`` or ``"eigen"``; a
    ``kl_clip`` of zero turns the clipping off.
    """
    if method not in ("inverse", "eigen"):
        raise UsageError(f'kfac_pytorch: method must be "inverse" or "eigen", got "{method}"')
    package = imported(
        "kfac.preconditioner", "pip install git+https://github.com/gpauloski/kfac-pytorch"
    )
    sgd = PreconditionedSGD(task.model.parameters(), lr=lr, momentum=momentum)
    sgd.preconditioner = package.KFACPreconditioner(
        task.model, factor_update_steps=stats_every, inv_update_steps=refresh_every,
        damping=damping, factor_decay=decay, compute_method=method,
        kl_clip=kl_clip or (lambda _: None),  # None itself is refused, against its documentation
        lr=lambda _: sgd.param_groups[0]["lr"],
    )  # fmt: skip
    return sgd


class PreconditionedSGD(torch.optim.SGD):
    """SGD with kfac-pytorch's preconditioner between the gradient and the step, saved as one.

    The package itself saves the factors and decomposes them anew on loading, which is not where a
    run stood; so the decompositions are saved too.
    """

    preconditioner: Any

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """The closure's gradients, preconditioned, then a step of SGD."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.preconditioner.step()
        super().step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """SGD's and the preconditioner's, decompositions included."""
        decomposed = {
            name: {key: getattr(layer, key) for key in _DECOMPOSED if hasattr(layer, key)}
            for name, layer in self._layers()
        }
        kfac = {"own": self.preconditioner.state_dict(), "decomposed": decomposed}
        return {**super().state_dict(), "kfac": kfac}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        state = dict(state_dict)
        kfac = state.pop("kfac")
        super().load_state_dict(state)
        self.preconditioner.load_state_dict(kfac["own"], compute_inverses=False)
        for name, layer in self._layers():
            for key, value in kfac["decomposed"][name].items():
                setattr(layer, key, value)

    def _layers(self) -> Iterator[tuple[str, Any]]:
        yield from self.preconditioner._layers.values()  # it has no public way to them


#: what the package's layers keep of their factors, by either method
_DECOMPOSED = ("a_inv", "g_inv", "qa", "qg", "da", "dg", "dgda")


def imported(module: str, remedy: str) -> Any:
    """A module of another package.

    Raises:
        PackageMissingError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        name = module.partition(".")[0]
        raise PackageMissingError(f"the package {name} is not installed: {remedy}") from missing
