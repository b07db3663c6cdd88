"""The random numbers of the sampled Fisher, apart from the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """A generator that can take back what it drew for a step that never was.

    Args:
        seed: of the generator, which is made where it is first needed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._mark: Tensor | None = None  # the generator as it stood after the last step

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator on that device, about to be drawn from."""
        generator = self._on(device)
        if self._mark is None:
            self._mark = generator.get_state()
        return generator

    def _on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator, self._mark = torch.Generator(device).manual_seed(self.seed), None
        return self._generator

    def keep(self) -> None:
        """What has been drawn since the last step was used."""
        self._mark = None

    def rewind(self) -> None:
        """What has been drawn since the last step was not used: draw it again."""
        if self._mark is not None and self._generator is not None:
            self._generator.set_state(self._mark)
        self._mark = None

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.load_state_dict(state["state"])

    def state_dict(self) -> dict[str, Any]:
        """The generator's state, the device it belongs to, and where the last step left it."""
        generator = self._generator
        if generator is None:
            return {}
        state = {"generator": generator.get_state(), "device": str(generator.device)}
        return state if self._mark is None else {**state, "mark": self._mark}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the random numbers where the saved ones stopped.

        Numbers of a device that is not here can't be gone on with: they start from the seed.
        """
        self._generator = None
        if state:
            try:
                generator = torch.Generator(state["device"])
            except RuntimeError:
                state = {}
            else:
                self._generator = generator.set_state(state["generator"].cpu())
        mark = state.get("mark")
        self._mark = None if mark is None else mark.cpu()
