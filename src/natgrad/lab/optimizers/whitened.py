"""SGD in whitened coordinates, and BatchNorm beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.lab.augmentation import randomness
from natgrad.lab.errors import UsageError
from natgrad.lab.optimizers.task import Task
from natgrad.layers.activations import NORMS as NORMS_THERE
from natgrad.layers.activations import SOFTMAX
from natgrad.likelihood import Categorical
from natgrad.whiten import PRONG, SNGD, PRONGPlus, Rule, Whitener, whiten
from natgrad.whiten.following import following

__all__ = ["prong", "prong_diagonal", "prongplus", "sgd_bn", "sngd"]

#: BatchNorm for what a layer puts out, and which attribute of the layer says how wide that is
NORMS: Mapping[type[nn.Module], tuple[Callable[[int], nn.Module], str]] = {
    nn.Linear: (nn.BatchNorm1d, "out_features"),
    nn.Conv1d: (nn.BatchNorm1d, "out_channels"),
    nn.Conv2d: (nn.BatchNorm2d, "out_channels"),
    nn.Conv3d: (nn.BatchNorm3d, "out_channels"),
}


class WhitenedSGD(torch.optim.SGD):
    """SGD on a whitened model, with the schedule of refits in its state.

    Args:
        whitener: of the model.
        lr: learning rate.
        momentum: heavy-ball momentum, carried over refits.
        l2: weight of the penalty on the layers' own weights ``W``, not on ``V``.
    """

    def __init__(self, whitener: Whitener, lr: float, momentum: float, l2: float) -> None:
        super().__init__(whitener.model.parameters(), lr=lr, momentum=momentum)
        self.whitener = whitener
        whitener.attach(self, canonical_decay=l2)

    def state_dict(self) -> dict[str, Any]:
        """SGD's and the whitener's."""
        return {**super().state_dict(), "whitener": self.whitener.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse."""
        state = dict(state_dict)
        self.whitener.load_state_dict(state.pop("whitener"))
        super().load_state_dict(state)


def prong(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, every: int = 100, eps: float = 1e-2,
    samples: int = 1000, basis: str = "pca", white_start: int = 0, crops: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD in the coordinates of PRONG (Desjardins et al. 2015).

    ``white_start=1`` takes the initial weights for those of the whitened coordinates, ``V``, in
    place of ``W`` (figure 3b): the function at the start is another one. ``crops`` above zero takes
    statistics of so many augmentations of each of the ``samples`` training images, in the place of
    the image as evaluation sees it.
    """
    seen = samples * max(1, crops)
    rule = PRONG(every=every, eps=eps, samples=seen, basis=basis)  # type: ignore[arg-type]
    whitener = whiten(task.model, rule, data=_statistics(task, samples, crops))
    if white_start and task.inputs is not None:
        _start_white(whitener)
    return WhitenedSGD(whitener, lr, momentum, task.l2)


@torch.no_grad()
def _start_white(whitener: Whitener) -> None:
    """Layer by layer, in order: what a layer takes in must be known before it is whitened."""
    layers = whitener.layers.values()
    drawn = [layer.canonical() for layer in layers]
    for layer, (weight, bias) in zip(layers, drawn, strict=True):
        whitener.refit()
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)


def prong_diagonal(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, every: int = 100, eps: float = 1e-2,
    samples: int = 1000,
) -> torch.optim.Optimizer:  # fmt: skip
    """PRONG that centres and scales each feature and rotates none, as BatchNorm nearly does."""
    return prong(
        task, lr=lr, momentum=momentum, every=every, eps=eps, samples=samples, basis="diagonal"
    )


def prongplus(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, every: int = 100, eps: float = 1e-2,
    samples: int = 1000, reading: str = "diagonal",
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD in the coordinates of PRONG+."""
    rule = PRONGPlus(every=every, eps=eps, samples=samples, reading=reading)  # type: ignore[arg-type]
    return _whitened(task, rule, lr, momentum, task.inputs)


def sngd(
    task: Task, *, lr: float = 0.01, momentum: float = 0.9, every: int = 1, eps: float = 1e-3,
    compensate: int = 0, average: int = 0, decay: float = 0.9, iterations: int = 0,
    per_unit: int = 0, method: str = "newton-schulz",
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD in the coordinates of SNGD (Liu & Liu 2021).

    ``compensate=1`` keeps the function, ``average=1`` trains with averaged statistics,
    ``iterations`` above zero takes exactly so many of Newton and Schulz, as the paper has it ("a
    few") in place of iterating until the root is exact, ``per_unit=1`` one ``nu`` for each unit.
    ``method`` is that of the root: ``"eigh"`` is the faster one on a CPU where it is large.
    """
    rule = SNGD(
        every=every, eps=eps, compensate=bool(compensate), average=bool(average), decay=decay,
        iterations=iterations or None, per_unit=bool(per_unit), likelihood=task.likelihood,
        method=method,  # type: ignore[arg-type]
    )  # fmt: skip
    return _whitened(task, rule, lr, momentum, None)


def sgd_bn(task: Task, *, lr: float = 0.03, momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD with BatchNorm behind every linear layer and convolution but those of the output."""
    _refuse_unfit(task.model)
    layers = {name: m for name, m in task.model.named_modules() if type(m) in NORMS}
    # softmax stands for the output here: no other layer is followed by it
    behind = following(task.model, layers, likelihood=Categorical())
    for name, layer in layers.items():
        if behind[name] is not SOFTMAX:
            Norm, width = NORMS[type(layer)]
            parent, _, child = name.rpartition(".")
            normed = nn.Sequential(layer, Norm(getattr(layer, width)))
            task.model.get_submodule(parent)._modules[child] = normed
    return torch.optim.SGD(task.model.parameters(), lr=lr, momentum=momentum)


def _refuse_unfit(model: nn.Module) -> None:
    """Networks with norms of their own, and those whose features are not in dimension 1."""
    others = (*NORMS_THERE, nn.Embedding, nn.MultiheadAttention)
    found = sorted({type(m).__name__ for m in model.modules() if isinstance(m, others)})
    if found:
        raise UsageError(
            f"sgd_bn puts BatchNorm into networks without; this has {', '.join(found)}"
        )


def _statistics(task: Task, samples: int, crops: int) -> Tensor | list[Tensor] | None:
    """What PRONG's statistics are of: always the same draws, so that refits can be repeated."""
    if crops and task.augmentation is None:
        raise UsageError("crops= needs a recipe that augments its training images")
    if not crops or task.augmentation is None or task.inputs is None:
        return task.inputs
    images = task.inputs[:samples]
    return [task.augmentation(images, randomness(task.seed, 0, k)) for k in range(crops)]


def _whitened(
    task: Task, rule: Rule, lr: float, momentum: float, data: Tensor | list[Tensor] | None
) -> torch.optim.Optimizer:
    return WhitenedSGD(whiten(task.model, rule, data=data), lr, momentum, task.l2)
