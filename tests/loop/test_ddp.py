"""DistributedDataParallel: in one process the model as it is, in two the joint batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import natgrad
from natgrad import Categorical
from tests.loop.loops import BLOCKWISE, data, every_fisher, every_method, moments, train, weights
from tests.networks import mlp, relative

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")

BAD = 2  #: step at which the second process gets a batch that is not finite
STEPS = 4
EXACT = {"lr": 0.1, "likelihood": Categorical(), "fisher": "exact", "damping": 0.1}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@every_method
@every_fisher
@pytest.mark.parametrize("of", ["the model", "the wrapper"])
def test_in_one_process_the_wrapper_changes_nothing(method, fisher, of):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    wrapped = DistributedDataParallel(net)
    opt = method(net if of == "the model" else wrapped, lr=0.1, **fisher)
    train(wrapped, opt, range(4))
    train(twin, method(twin, lr=0.1, **fisher), range(4))
    assert torch.equal(weights(net), weights(twin))
    prefix = "" if of == "the model" else "module."
    assert opt.report().rows[0].parameter == f"{prefix}0.weight"


@pytest.mark.usefixtures("alone")
def test_nor_where_gradients_wait_in_no_sync():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    wrapped = DistributedDataParallel(net)
    opt, other = natgrad.TEKFAC(wrapped, **EXACT), natgrad.TEKFAC(twin, **EXACT)
    for k in range(0, 6, 2):
        with wrapped.no_sync():
            F.cross_entropy(wrapped(data(k)[0]), data(k)[1]).backward()
        F.cross_entropy(wrapped(data(k + 1)[0]), data(k + 1)[1]).backward()
        for each in (k, k + 1):
            F.cross_entropy(twin(data(each)[0]), data(each)[1]).backward()
        for each in (opt, other):
            each.step()
            each.zero_grad()
    assert torch.equal(weights(net), weights(twin))


def process(rank: int, folder: str) -> None:
    """Every method in turn, on every second example."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for method, fused in [*((m, False) for m in BLOCKWISE), (natgrad.KFAC, True)]:
        net = mlp(4, 6, 3)
        wrapped = DistributedDataParallel(net)
        schedule = {"fused": True, "stats_every": 2, "refresh_every": 2} if fused else {}
        opt = method(wrapped, **EXACT, **schedule)
        for k in range(STEPS):
            x, y = (part[rank::2] for part in data(k))
            opt.zero_grad()
            nan = float("nan") if (k, rank) == (BAD, 1) else 1.0
            F.cross_entropy(wrapped(x * nan), y).backward()
            opt.step()
        skipped = torch.tensor(opt.stats()["skipped"])
        found[f"{method.__name__} {fused}"] = [weights(net), skipped, *moments(opt)]
    wrapped = DistributedDataParallel(mlp(4, 3))
    opt = natgrad.ExactNGD(wrapped, **EXACT)
    try:
        train(wrapped, opt, [0])
    except RuntimeError as error:
        found["refused"] = str(error)
    net = mlp(4, 6, 3)  # not wrapped: gradients differ, and so does what is finite
    opt = natgrad.KFAC(net, **EXACT)
    x, y = data(0)
    F.cross_entropy(net(x * (float("nan") if rank else 1.0)), y).backward()
    opt.step()
    found["unwrapped"] = opt.stats()["skipped"]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_that_has_the_joint_batch(tmp_path: Path):
    mp.spawn(process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for method, fused in [*((m, False) for m in BLOCKWISE), (natgrad.KFAC, True)]:
        key = f"{method.__name__} {fused}"
        for one, other in zip(first[key], second[key], strict=True):
            assert torch.equal(one, other), key
        net = mlp(4, 6, 3)
        schedule = {"stats_every": 2, "refresh_every": 2} if fused else {}
        opt = method(net, **EXACT, **schedule)
        train(net, opt, [k for k in range(STEPS) if k != BAD])
        assert float(first[key][1]) == 1, "the bad batch was not skipped once"
        assert relative(first[key][0], weights(net)) < 1e-9, key
        if method is natgrad.KFAC:
            for one, other in zip(first[key][2:], moments(opt), strict=True):
                assert relative(one, other) < 1e-9
    assert first["unwrapped"] == second["unwrapped"] == 1
    assert "needs the gradients of all examples in one process" in first["refused"]
