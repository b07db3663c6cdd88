"""A real run: BatchNorm, dropout, bf16, accumulation, a schedule, clipping; and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad import Categorical
from natgrad.optim import NaturalGradient
from tests.loop.loops import BLOCKWISE, named, weights

STEPS, PARTS = 24, 2
FISHERS = {"sampled": {"likelihood": Categorical()}, "empirical": {"likelihood": None}}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 3),
    )  # fmt: skip


def images(k: int, n: int = 24) -> tuple[Tensor, Tensor]:
    """Noise over one of three patterns."""
    g = torch.Generator().manual_seed(k)
    y = torch.randint(3, (n,), generator=g)
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return patterns[y] + torch.randn(n, 1, 8, 8, generator=g), y


class Run:
    """A training script with everything in it."""

    def __init__(self, method: type[NaturalGradient], fisher: dict) -> None:
        self.net = network()
        norms = {"params": self.net[1].parameters(), "weight_decay": 0.0}
        self.opt = method(
            self.net, lr=0.02, weight_decay=1e-3, damping=0.1, stats_every=2, refresh_every=4,
            kl_clip=1e-2, groups=[norms], **fisher,
        )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.opt, [0.05, 0.03], total_steps=STEPS + 1, pct_start=0.3
        )

    def step(self, k: int) -> float:
        total = 0.0
        self.opt.zero_grad()
        for x, y in zip(*(part.chunk(PARTS) for part in images(k)), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(self.net(x), y) / PARTS
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.opt.step()
        self.schedule.step()
        self.net.eval()
        with torch.no_grad():
            self.net(images(1000)[0])
        self.net.train()
        return total

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("net", "opt", "schedule")}
        torch.save({**parts, "random": torch.get_rng_state()}, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for name in ("net", "opt", "schedule"):
            getattr(self, name).load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])


@pytest.mark.parametrize("method", BLOCKWISE, ids=named)
@pytest.mark.parametrize("fisher", FISHERS.values(), ids=FISHERS)
@pytest.mark.parametrize("interrupted", [5, 8], ids=["between refreshes", "at a refresh"])
def test_the_loss_falls_and_a_resumed_run_is_the_same_bit_for_bit(
    method, fisher, interrupted, tmp_path
):
    torch.manual_seed(1)
    whole = Run(method, fisher)
    losses = [whole.step(k) for k in range(interrupted)]
    whole.save(tmp_path / "run.pt")
    losses += [whole.step(k) for k in range(interrupted, STEPS)]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert whole.opt.stats()["step"] == STEPS
    assert whole.opt.stats()["skipped"] == 0
    assert all(not row.reason for row in whole.opt.report().rows)
    torch.manual_seed(2)
    resumed = Run(method, fisher)
    resumed.step(50)
    resumed.load(tmp_path / "run.pt")
    assert [resumed.step(k) for k in range(interrupted, STEPS)] == losses[interrupted:]
    assert torch.equal(weights(resumed.net), weights(whole.net))
    assert resumed.opt.stats() == whole.opt.stats()
