"""Statistics of several processes are those of one that sees all batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from natgrad import Categorical, Preconditioner, distributed
from natgrad.blocks import KFAC
from natgrad.moments import Moment
from tests.networks import mlp, normal, relative

SIZES = (3, 5)  # examples on each process


def whole() -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(sum(SIZES), 4)
    return x, x[:, :3].argmax(1)


def statistics(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    net = mlp(4, 5, 3)
    pre = Preconditioner(net, KFAC, likelihood=Categorical(), fisher="exact")
    F.cross_entropy(net(x), y).backward()
    pre.step()
    return [m.mean() for layer in pre.layers for m in layer.block.moments()]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(SIZES)
    )
    try:
        assert distributed.world_size() == len(SIZES)
        parts = [part.split(SIZES)[rank] for part in whole()]
        torch.save(statistics(*parts), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_two_processes_with_unequal_batches_have_the_statistics_of_one(tmp_path: Path):
    mp.spawn(process, args=(str(tmp_path),), nprocs=len(SIZES))
    expected = statistics(*whole())
    for rank in range(len(SIZES)):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(found, expected, strict=True):
            assert relative(one, other) < 1e-12


def test_without_a_process_group_nothing_is_done():
    assert distributed.world_size() == 1
    moment = Moment(2, decay=0.5)
    moment.add(torch.ones(2), 3)
    distributed.sum_pending([moment])
    assert torch.equal(moment.pending, torch.ones(2))
    assert float(moment.pending_weight) == 3
