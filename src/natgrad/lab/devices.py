"""What a run computes on and in: a device, and float32 or bfloat16 by autocast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from natgrad.lab.data import Pair, Splits
from natgrad.lab.decoded import FileImages
from natgrad.lab.errors import UsageError, unknown

__all__ = ["PLAIN", "PRECISIONS", "Compute", "Precision", "compute_on"]

Precision: TypeAlias = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
RESIDENT = 0.25  #: of the device's free memory that data may take
STATISTICS = 10_000  #: inputs that statistics are taken from where not all are held


@dataclass(frozen=True)
class Compute:
    """A device and a precision.

    Attributes:
        device: as torch names it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        precision: ``"bf16"`` computes the loss of a batch under autocast, with weights, gradients,
            statistics and evaluation as they are.
    """

    device: str = "cpu"
    precision: Precision = "float32"

    def described(self) -> dict[str, str]:
        """For a manifest: the kind of device, not which of several alike."""
        return {"device": torch.device(self.device).type, "precision": self.precision}

    def take(self, model: nn.Module) -> nn.Module:
        """The network on the device. It is made on the CPU: a seed means the same everywhere.

        Raises:
            UsageError: its parameters are not float32, so that autocast would leave it alone.
        """
        kinds = {p.dtype for p in model.parameters()}
        if self.precision == "bf16" and kinds != {torch.float32}:
            named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise UsageError(f"--precision bf16 is for networks in float32, this one is in {named}")
        return model.to(self.device)

    def hold(self, splits: Splits) -> Splits:
        """The data on the device once and for all where they fit, else as they are."""
        if self.device == "cpu":
            return splits
        free, _ = torch.cuda.mem_get_info(self.device)
        pairs = (splits.train, splits.validation, splits.test)
        tensors = {id(t): t for pair in pairs for t in (pair.inputs, pair.targets)}
        if sum(t.numel() * t.element_size() for t in tensors.values()) > RESIDENT * free:
            return splits
        there = {key: t.to(self.device, non_blocking=True) for key, t in tensors.items()}
        moved = (Pair(there[id(pair.inputs)], there[id(pair.targets)]) for pair in pairs)
        return replace(splits, train=next(moved), validation=next(moved), test=next(moved))

    def moved(self, pair: Pair) -> Pair:
        """A pair on the device; the same one if it is there.

        Images in files stay there: what goes through them decodes and moves a part at a time.
        """
        files = isinstance(pair.inputs, FileImages)
        x = pair.inputs if files else pair.inputs.to(self.device, non_blocking=True)
        same = pair.targets is pair.inputs
        return Pair(x, x if same else pair.targets.to(self.device, non_blocking=True))

    def first(self, inputs: Tensor) -> Tensor:
        """Inputs that statistics are taken from: all where they are held, else the first ones."""
        return inputs if self._has(inputs) else inputs[:STATISTICS].to(self.device)

    def gather(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """Rows of a tensor, on the device; from the CPU through pinned memory, without waiting.

        ``rows`` are where the tensor is.
        """
        if self._has(tensor):
            return tensor.index_select(0, rows)
        return tensor.index_select(0, rows).pin_memory().to(self.device, non_blocking=True)

    def autocast(self) -> AbstractContextManager[Any]:
        """What the loss of a batch is computed under."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def rng_state(self) -> dict[str, Tensor]:
        """The states of torch's generators that a run draws from."""
        states = {"cpu": torch.get_rng_state()}
        if self.device != "cpu":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def set_rng_state(self, states: Mapping[str, Tensor]) -> None:
        """The inverse."""
        torch.set_rng_state(states["cpu"])
        if self.device != "cpu":
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def _has(self, tensor: Tensor) -> bool:
        return tensor.device.type == torch.device(self.device).type


PLAIN = Compute()


def compute_on(device: str | None, precision: str | None) -> Compute:
    """What the command line asks for; by default the CPU and float32.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for a GPU if there is one.
        precision: ``float32`` or ``bf16``.

    Raises:
        UsageError: no such device here, or no such precision.
    """
    if precision is not None and precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    chosen = Compute(precision=precision or "float32")
    if device is None or device == "cpu":
        return chosen
    if device == "auto":
        return replace(chosen, device="cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise UsageError(f'--device takes cpu, cuda, cuda:N or auto, got "{device}"')
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise UsageError(f"--device {device}: torch finds no GPU here{built}; take cpu or auto")
    if found[1] is not None and int(found[1]) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, from 0")
    return replace(chosen, device=device)
