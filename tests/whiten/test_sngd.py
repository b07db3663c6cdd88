"""SNGD in a training loop: when constants change, what they are made of, what is kept."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from natgrad import Categorical
from natgrad.whiten import SNGD, Constants, Whitened, fold, local_fisher, whiten
from natgrad.whiten.inverse_root import InverseRoot
from tests.whiten.nets import (
    attached,
    convnet,
    dense,
    loss_of,
    mlp,
    normal,
    output,
    relative,
    train,
)

SGD = torch.optim.SGD
X = normal(8, 4) + 1


def started(rule: SNGD, *widths: int, **kwargs) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    net = mlp(*(widths or (4, 6, 3)), **kwargs)
    return net, attached(whiten(net, rule), SGD(net.parameters(), lr=0.02, momentum=0.9))


def constants(net: nn.Module) -> list[Tensor]:
    """Copies of what training computes with."""
    found = [(m.in_use().P, m.Q) for m in net.modules() if isinstance(m, Whitened)]
    return [x.clone() for pair in found for x in pair if x is not None]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def backward(net: nn.Module, x: Tensor = X) -> None:
    loss_of(net, x).backward()


# when --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_constants_are_renewed_at_the_first_pass_of_every_so_many_steps(every):
    net, opt = started(SNGD(every=every))
    changes = []
    for k in range(7):
        before = constants(net)
        backward(net, normal(8, 4, seed=k))
        changes.append(not same(constants(net), before))
        opt.step()
    assert changes == [k % every == 0 for k in range(7)]


def test_micro_batches_have_the_constants_of_the_first():
    net, opt = started(SNGD(compensate=True))
    backward(net)
    opt.step()
    before = output(net, X)
    backward(net, X)
    held, statistics = constants(net), net[0].averages.A.value.clone()
    for k in range(3):
        backward(net, normal(8, 4, seed=k))
    assert same(constants(net), held)
    assert torch.equal(net[0].averages.A.value, statistics)
    assert relative(output(net, X), before) < 1e-12


def test_accumulated_gradients_are_those_of_the_whole_batch():
    grads = []
    for parts in (1, 2):
        net, _ = started(SNGD(every=1000))
        backward(net, X)  # constants
        net.zero_grad()
        for part in normal(8, 4, seed=3).chunk(parts):
            (loss_of(net, part) / parts).backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert relative(*grads) < 1e-12


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference"])
def test_other_passes_change_nothing(how):
    net, opt = started(SNGD())
    train(net, opt, 2)
    state = copy.deepcopy(net.state_dict())
    if how == "eval":
        net.eval()(X)
        net.train()
    else:
        with torch.no_grad() if how == "no_grad" else torch.inference_mode():
            net(X)
    assert all(torch.equal(x, state[key]) for key, x in net.state_dict().items())
    twin, other = started(SNGD())
    train(twin, other, 2)
    train(net, opt, 2, first=2)
    train(twin, other, 2, first=2)
    assert same(list(net.parameters()), list(twin.parameters()))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(self.inner(self.inner(x).tanh()).tanh())


@pytest.mark.parametrize("compensate", [False, True])
def test_a_layer_called_twice_has_the_constants_of_its_first_call(compensate):
    net = Twice().double()
    whiten(net, SNGD(compensate=compensate, eps=1e-2))
    backward(net)
    k = X.mT @ X / 8
    found = net.inner.averages.mean().A
    assert relative(found, k) < 1e-12
    assert net.inner.averages.A.weight == 1


def test_without_attaching_it_works_as_well():
    ends = []
    for attach in (True, False):
        net = mlp(4, 6, 3)
        whitener, opt = whiten(net, SNGD()), SGD(net.parameters(), lr=0.02)
        if attach:
            whitener.attach(opt)
        train(net, opt, 3)
        ends.append(list(net.parameters()))
    assert same(*ends)


# what --------------------------------------------------------------------------------------------


def test_as_printed_statistics_are_of_this_batch_alone():
    net, opt = started(SNGD())
    train(net, opt, 3)
    other = copy.deepcopy(net)
    other[0].averages.A.value.fill_(7.0)
    for each in (net, other):
        backward(each)
    assert same(constants(net), constants(other))
    assert not torch.equal(net[0].averages.A.value, other[0].averages.A.value)


def test_training_may_use_the_averages():
    net, opt = started(SNGD(average=True, eps=1e-2, method="eigh"))
    train(net, opt, 3)
    backward(net)
    layer = net[0]
    at = layer.averages.mean()
    A = at.A + 1e-2 * at.A.diagonal().mean() * torch.eye(4).double()
    P = layer.in_use().P
    assert relative(P @ A @ P, torch.eye(4).double() / at.nu.mean()) < 1e-9


def test_averages_weigh_as_those_of_batchnorm_do_but_begin_unbiased():
    net, opt = started(SNGD(decay=0.75))
    weights = [0.75**2, 0.75, 1.0]
    train(net, opt, 3)
    seen = [(normal(8, 4, seed=k) + 0.5) for k in range(3)]
    expected = sum(w * x.mT @ x / 8 for w, x in zip(weights, seen, strict=True)) / sum(weights)
    assert relative(net[0].averages.mean().A, expected) < 1e-12


def test_lagged_nu_is_that_of_the_pass_before():
    net, opt = started(SNGD(lag=True))
    before = None
    for k in range(3):
        opt.zero_grad()
        x = normal(8, 4, seed=k) + 0.5
        backward(net, x)
        z = output(net[0], x)
        assert relative(net[0].lagged, z.cosh().pow(-2).mean(0)) < 1e-12
        if before is not None:
            P = net[0].in_use().P
            A = x.mT @ x / 8
            A = A + 1e-3 * A.diagonal().mean() * torch.eye(4).double()
            assert relative(P @ A @ P, torch.eye(4).double() / before.mean()) < 1e-9
        before = net[0].lagged.clone()
        opt.step()


def test_positions_are_averaged_or_summed():
    found = []
    for spatial in ("mean", "sum"):
        net = convnet()
        whiten(net, SNGD(spatial=spatial))
        (net(normal(6, 4, 5, 5)) ** 2).mean().backward()
        found.append([m.averages.mean().A for m in net if isinstance(m, Whitened)])
    for mean, sum_, positions in zip(*found, (25, 25, 1, 1), strict=True):
        if positions == 25 and mean.ndim == 3:
            assert relative(25 * mean, sum_) < 1e-12
    x = normal(6, 4, 5, 5)
    by_group = x.view(6, 2, 2, 25).movedim(1, 0).mT.reshape(2, 150, 2)
    assert relative(found[0][0], by_group.mT @ by_group / 150) < 1e-12


def test_the_likelihood_and_what_is_given_reach_the_layers():
    rule = SNGD(likelihood=Categorical(), activations={"0": "elu"})
    net = mlp(4, 6, 3)
    whiten(net, rule)
    assert [net[k].activation.name for k in (0, 2)] == ["elu", "softmax"]
    backward(net)
    assert (net[2].averages.mean().nu < 0.25).all()


@pytest.mark.parametrize("nu", ["bernoulli", "gaussian"])
def test_the_reading_can_be_chosen(nu):
    net = mlp(4, 6, 3)
    whiten(net, SNGD(nu=nu))
    slope = output(net[0], X).cosh().pow(-2)
    backward(net)
    expected = (slope if nu == "bernoulli" else slope**2).mean(0)
    assert relative(net[0].averages.mean().nu, expected) < 1e-12


@pytest.mark.parametrize("method", ["newton-schulz", "denman-beavers", "eigh"])
def test_roots_by_every_method_make_the_same_network(method):
    ends = []
    for rule in (SNGD(method=method), SNGD(method="eigh")):
        net, opt = started(rule)
        train(net, opt, 4)
        ends.append(output(net.eval(), X))
    assert relative(*ends) < 1e-8


def test_the_papers_iteration_count_is_taken_at_its_word():
    ends = []
    for rule in (SNGD(iterations=2), SNGD(iterations=30), SNGD()):
        net, opt = started(rule)
        train(net, opt, 2)
        ends.append(output(net.eval(), X))
    assert relative(ends[1], ends[2]) < 1e-8
    assert relative(ends[0], ends[2]) > 1e-3


# the function ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("per_unit", [False, True])
@pytest.mark.parametrize("compensate", [False, True])
def test_folding_keeps_the_function_of_evaluation(dtype, tolerance, per_unit, compensate):
    for make, shape in ((lambda: mlp(30, 6, 5, 3), (30,)), (convnet, (4, 5, 5))):
        net = make().to(dtype)
        whitener = whiten(net, SNGD(per_unit=per_unit, compensate=compensate))
        opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
        train(net, opt, 4, shape=shape)
        x = normal(9, *shape).to(dtype)
        in_training, before = output(net, x), output(net.eval(), x)
        assert (relative(in_training, before) > 1e-2) != compensate
        fold(net.train())
        assert not any(isinstance(m, Whitened) for m in net.modules())
        assert relative(output(net.eval(), x), before) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(4,), (30,), (4, 5, 5)])
def test_compensated_the_function_stays_at_every_refresh(dtype, tolerance, shape):
    net = convnet() if len(shape) == 3 else mlp(*shape, 6, 5, 3)
    net = net.to(dtype)
    opt = attached(whiten(net, SNGD(compensate=True)), SGD(net.parameters(), lr=1e-2))
    x = normal(9, *shape).to(dtype)
    for k in range(5):
        before, held = output(net, x), constants(net)
        opt.zero_grad()
        backward(net, (normal(8, *shape, seed=k) + 0.5).to(dtype))
        assert not same(constants(net), held)
        assert relative(output(net, x), before) < tolerance
        opt.step()


def test_compensated_the_velocity_is_carried_over():
    net, opt = started(SNGD(compensate=True))
    train(net, opt, 3)
    layer = net[0]
    velocity = opt.state[layer.weight]["momentum_buffer"] @ layer.in_use().P
    held = constants(net)
    net(X)
    assert not same(constants(net), held)
    now = opt.state[layer.weight]["momentum_buffer"] @ layer.in_use().P
    assert relative(now, velocity) < 1e-10


def test_before_any_training_pass_it_is_the_plain_network():
    net = mlp(4, 6, 3)
    before = output(net, X)
    whiten(net, SNGD(per_unit=True))
    assert torch.equal(output(net.eval(), X), before)
    assert torch.equal(output(net.train(), X), before)
    assert torch.equal(output(fold(net), X), before)


@pytest.mark.parametrize("compensate", [False, True])
def test_evaluation_works_its_weights_out_once_for_every_change(compensate, monkeypatch):
    net, opt = started(SNGD(compensate=compensate))
    train(net, opt, 2)
    calls = []
    exact = local_fisher.canonical
    monkeypatch.setattr(local_fisher, "canonical", lambda *a: calls.append(1) or exact(*a))
    first = output(net.eval(), X)
    assert torch.equal(output(net, X), first)
    assert len(calls) == 2  # layers
    assert net[0].weight.requires_grad
    assert net(X).requires_grad
    for change in (
        lambda: train(net.train(), opt, 1),
        lambda: net[0].weight.detach().mul_(2),
        lambda: net.load_state_dict({k: 2 * x for k, x in net.state_dict().items()}),
        lambda: net.float().double(),
    ):
        change()
        fresh = copy.deepcopy(net).eval()
        calls.clear()
        assert torch.equal(output(net.eval(), X), output(fresh, X))
        assert len(calls) > 2


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 5, 5)])
def test_data_whitens_from_the_start(compensate, shape):
    net = convnet() if len(shape) == 3 else mlp(*shape, 6, 3)
    data, x = [normal(6, *shape) + 1, normal(3, *shape, seed=1)], normal(9, *shape, seed=2)
    before = output(net, x)
    whitener = whiten(net, SNGD(compensate=compensate, eps=1e-2), data)
    assert relative(output(net, x), before) < 1e-10
    assert relative(output(net.eval(), x), before) < 1e-10
    layer = net.train()[0]
    rows = torch.cat([layer.view.features(part) for part in data], -2)
    A = rows.mT @ rows / rows.shape[-2]
    assert relative(layer.averages.mean().A, A) < 1e-12
    assert not torch.equal(layer.in_use().P, layer.identity().P)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2))
    train(net, opt, 2, shape=shape)
    whitener.refit(data)
    assert relative(layer.averages.mean().A, A) < 1e-12


def test_data_weighs_as_much_as_a_long_run():
    net = mlp(4, 6, 3)
    whiten(net, SNGD(decay=0.75), X)
    x = normal(8, 4, seed=5)
    backward(net, x)
    expected = 0.75 * X.mT @ X / 8 + 0.25 * x.mT @ x / 8
    assert relative(net[0].averages.mean().A, expected) < 1e-12


def test_positions_of_data_are_summed_too():
    found = []
    for spatial in ("mean", "sum"):
        net = convnet()
        whiten(net, SNGD(spatial=spatial), normal(6, 4, 5, 5))
        found.append(net[0].averages.mean().A)
    assert relative(found[1], 25 * found[0]) < 1e-12


def test_passes_over_other_data_are_forgotten():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    whitener = whiten(net, SNGD())
    for layer in whitener.layers.values():
        layer.heard = lambda *_: None
    net.eval()(5 * X)
    for layer in whitener.layers.values():
        layer.heard = None
    whitener.refit(X)
    whiten(twin, SNGD(), X)
    assert torch.equal(net[0].averages.nu.value, twin[0].averages.nu.value)


def test_in_evaluation_gradients_flow_in_every_pass():
    net, opt = started(SNGD())
    train(net, opt, 2)
    for _ in range(2):
        net.eval().zero_grad()
        net(X).square().sum().backward()
        assert net[0].weight.grad.abs().sum() > 0
    assert not output(net, X).requires_grad


def test_a_refit_without_data_is_refused():
    whitener = whiten(mlp(4, 3), SNGD())
    with pytest.raises(ValueError, match=r"refit\(\) needs data"):
        whitener.refit()


# copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 40])
@pytest.mark.parametrize("rule", [SNGD(every=2), SNGD(lag=True, per_unit=True),
                                  SNGD(compensate=True, every=2)])  # fmt: skip
def test_a_resumed_run_goes_on_bit_by_bit(width, rule):
    net, opt = started(rule, width, 6, 3)
    train(net, opt, 3, shape=(width,))
    file = io.BytesIO()
    torch.save([net.state_dict(), opt.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = started(rule, width, 6, 3, seed=5)
    train(other, again, 1, n=5, shape=(width,))
    fresh, _ = started(rule, width, 6, 3)
    for each in (other, fresh):
        each.load_state_dict(saved[0])
    assert same(list(net.state_dict().values()), list(fresh.state_dict().values()))
    again.load_state_dict(saved[1])
    x = normal(9, width)
    for a, o in ((net, opt), (other, again)):
        train(a, o, 4, shape=(width,), first=3)
    assert same(list(net.state_dict().values()), list(other.state_dict().values()))
    assert torch.equal(output(net.eval(), x), output(other.eval(), x))


def test_a_copy_goes_its_own_way():
    net, opt = started(SNGD(), 40, 6, 3)
    train(net, opt, 2, shape=(40,))
    other = copy.deepcopy(net)
    x = normal(9, 40)
    assert torch.equal(output(other, x), output(net, x))
    assert torch.equal(output(other.eval(), x), output(net.eval(), x))
    before = constants(net.train())
    backward(other.train(), x)
    assert same(constants(net), before)
    assert not same(constants(other), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_moves_to_another_precision_and_trains_on(dtype):
    net, opt = started(SNGD(eps=1e-1), 40, 6, 3)
    train(net, opt, 2, shape=(40,))
    x = normal(9, 40)
    before = output(net, x), output(net.eval(), x)
    net.train().to(dtype)
    found = output(net, x.to(dtype)), output(net.eval(), x.to(dtype))
    for pair in zip(found, before, strict=True):
        assert relative(pair[0].double(), pair[1]) < 40 * torch.finfo(dtype).eps
    train(net.train(), SGD(net.parameters(), lr=1e-3), 2, shape=(40,))
    assert all(x.isfinite().all() for x in net.state_dict().values())
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert output(net.eval(), x.to(dtype)).isfinite().all()


def test_a_half_precision_model_keeps_its_averages_in_single():
    net = mlp(4, 6, 3).bfloat16()
    whiten(net, SNGD())
    backward(net, X.bfloat16())
    assert net[0].averages.A.value.dtype == torch.float32
    assert net[0].P.dtype == torch.bfloat16


# the rest of torch -------------------------------------------------------------------------------


def test_under_autocast_training_follows_full_precision():
    ends = []
    for enabled in (True, False):
        net = mlp(40, 8, 3).float()
        whitener = whiten(net, SNGD(eps=1e-1))
        opt = attached(whitener, SGD(net.parameters(), lr=1e-2))
        for k in range(4):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = loss_of(net, normal(16, 40, seed=k).float())
            loss.backward()
            opt.step()
        assert net[0].P.dtype == net[0].averages.A.value.dtype == torch.float32
        ends.append(torch.cat([x.flatten() for m in (net[0], net[2]) for x in dense(m)]))
    assert 0 < relative(*ends) < 0.05


def test_under_autocast_weights_are_worked_out_in_full():
    net = mlp(40, 8, 3).float()
    whiten(net, SNGD(every=1000))
    x, seen = normal(3, 40).float(), []
    backward(net, x)
    view = net[0].view
    view.compute = lambda h, w, b, run=view.compute: seen.append((h, w)) or run(h, w, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
    assert torch.equal(seen[0][0], x)
    assert torch.equal(seen[0][1], net[0].canonical()[0])


@pytest.mark.parametrize("overflow", [None, 2])
def test_a_grad_scaler_changes_nothing_but_the_steps_it_skips(overflow):
    ends = []
    for scaled in (True, False):
        net = mlp(4, 5, 3).float()
        opt = attached(whiten(net, SNGD(every=2)), SGD(net.parameters(), lr=1e-3))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for k in range(5):
            opt.zero_grad()
            loss = loss_of(net, normal(8, 4, seed=k).float())
            if k == overflow and not scaled:
                continue
            scaler.scale(loss * torch.inf if k == overflow else loss).backward()
            scaler.step(opt)
            scaler.update()
        ends.append(torch.cat([x.flatten() for m in (net[0], net[2]) for x in dense(m)]))
        assert net[0].clock.steps == (5 if overflow is None else 4)
    assert relative(*ends) < 1e-5


@pytest.mark.parametrize("compensate", [False, True])
def test_checkpointed_passes_see_the_constants_of_the_first(compensate):
    ends = []
    for wrapped in (False, True):
        net, opt = started(SNGD(compensate=compensate))
        for k in range(3):
            opt.zero_grad()
            x = normal(8, 4, seed=k)
            y = checkpoint(net, x, use_reentrant=False) if wrapped else net(x)
            y.square().mean().backward()
            opt.step()
        ends.append([*net.parameters(), *constants(net)])
    assert same(*ends)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network_is_the_same():
    ends = []
    for compiled in (True, False):
        net, opt = started(SNGD(every=2))
        called = torch.compile(net, backend="eager") if compiled else net
        for k in range(4):
            opt.zero_grad()
            backward(called, normal(8, 4, seed=k))
            opt.step()
        ends.append(output(net.eval(), X))
    assert relative(*ends) < 1e-12
    torch._dynamo.reset()


def test_functional_calls_take_other_parameters_and_change_nothing():
    net, _ = started(SNGD())
    zeros = {name: torch.zeros_like(p).requires_grad_() for name, p in net.named_parameters()}
    held = constants(net)
    assert torch.equal(torch.func.functional_call(net, zeros, (X,)), torch.zeros(8, 3).double())
    assert same(constants(net), held)


def train_on_a_part(rank: int, world: int, compensate: bool) -> list[Tensor]:
    net = mlp(4, 5, 3)
    whitener = whiten(net, SNGD(compensate=compensate))
    wrapped = DistributedDataParallel(net) if dist.is_initialized() else net
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    for k in range(4):
        opt.zero_grad()
        loss_of(wrapped, normal(8, 4, seed=k)[rank::world]).backward()
        opt.step()
    return [x.detach() for m in (net[0], net[2]) for x in dense(m)] + [output(net.eval(), X)]


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    try:
        found = [train_on_a_part(rank, world, compensate) for compensate in (False, True)]
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="gloo is not built in"
)


@needs_gloo
def test_distributed_data_parallel_in_one_process(tmp_path: Path):
    process(0, 1, str(tmp_path))
    for compensate, found in enumerate(torch.load(tmp_path / "0.pt", weights_only=True)):
        assert same(train_on_a_part(0, 1, bool(compensate)), found)


@needs_gloo
def test_two_processes_have_the_statistics_of_one(tmp_path: Path):
    mp.spawn(process, args=(2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for compensate in (False, True):
        assert same(parts[0][compensate], parts[1][compensate])
        one = train_on_a_part(0, 1, compensate)
        for x, expected in zip(parts[0][compensate], one, strict=True):
            assert relative(x, expected) < 1e-9


# hard inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["constant", "zeros", "one", "vector", "few", "dead", "large",
                                   "small", "empty"])  # fmt: skip
def test_hard_inputs_leave_everything_finite(which, dtype, compensate):
    x = {
        "constant": torch.ones(8, 4), "zeros": torch.zeros(8, 4), "one": torch.ones(1, 4),
        "vector": torch.ones(4), "few": torch.randn(2, 4), "dead": -torch.ones(8, 4),
        "large": 1e12 * torch.randn(8, 4), "small": 1e-12 * torch.randn(8, 4),
        "empty": torch.zeros(0, 4),
    }[which].to(dtype)  # fmt: skip
    net = mlp(4, 6, 5, 3, activation=nn.ReLU).to(dtype)
    if which == "dead":
        with torch.no_grad():
            net[0].weight.abs_()
            net[0].bias.fill_(-1)
    opt = attached(whiten(net, SNGD(compensate=compensate)), SGD(net.parameters(), lr=1e-30))
    for _ in range(3):
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
    assert all(x.isfinite().all() for x in net.state_dict().values())
    assert net[0].averages.empty == (which == "empty")
    assert output(net, x).isfinite().all()
    assert output(net.eval(), x).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_what_is_not_finite_never_enters(bad):
    net, opt = started(SNGD())
    train(net, opt, 2)
    statistics = {key: x.clone() for key, x in net.state_dict().items() if "averages" in key}
    held = constants(net)
    x = X.clone()
    x[3, 2] = bad
    backward(net, x)
    assert same(constants(net)[:1], held[:1])
    if bad != 1e200:  # behind tanh the large one is tame
        assert same(constants(net), held)
    first = {key for key in statistics if key.startswith("0.") or bad != 1e200}
    assert all(torch.equal(net.state_dict()[key], statistics[key]) for key in first)


def test_a_root_that_fails_keeps_the_constants_until_it_fails_three_times(monkeypatch):
    net, opt = started(SNGD(method="eigh"))
    train(net, opt, 2)

    def fail(A, *_):
        return InverseRoot(A * torch.nan)

    monkeypatch.setattr(local_fisher, "inverse_root", fail)
    monkeypatch.setattr(local_fisher, "inverse_root_of_rows", fail)
    held = constants(net)
    for k in range(2):
        train(net, opt, 1, first=k)
        assert same(constants(net), held)
    with pytest.raises(RuntimeError, match=r"0: .* \(4, 4\), failed 3 times in a row; choose eps"):
        backward(net)


def test_failures_count_only_in_a_row():
    net, opt = started(SNGD())
    net[0].failures = 2
    train(net, opt, 1)
    assert net[0].failures == 0


def test_a_slope_that_is_not_finite_never_enters():
    net = mlp(4, 6, 3)
    whiten(net, SNGD(activations={"0": torch.sqrt}))
    backward(net)
    assert net[0].averages.empty
    assert torch.equal(net[0].P, net[0].identity().P)
    assert not net[2].averages.empty


def test_dead_units_have_the_least_nu():
    net = mlp(4, 6, 3, activation=nn.ReLU)
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = -1
    whiten(net, SNGD(per_unit=True, nu_min=1e-2))
    backward(net)
    assert net[0].Q[2] == pytest.approx(10.0)
    assert (net[0].Q[[0, 1, 3, 4, 5]] < 10).all()


# arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": 0}, "eps must be > 0, got 0"), ({"every": 0}, "every must be >= 1, got 0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"nu_min": 0}, "nu_min must be > 0, got 0"),
        ({"method": "svd"}, "method must be 'newton-schulz' or .* got 'svd'"),
        ({"spatial": "max"}, "spatial must be 'mean' or 'sum', got 'max'"),
        ({"nu": "poisson"}, "nu must be 'bernoulli' or 'gaussian', got 'poisson'"),
        ({"iterations": 0}, "iterations must be None or >= 1, got 0"),
        ({"samples": 0}, "samples must be None or >= 1, got 0"),
        ({"tolerance": -1}, "tolerance must be None or >= 0, got -1"),
        ({"method": "eigh", "iterations": 3}, "takes neither iterations nor tolerance"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SNGD(**given)


def test_constants_that_do_not_fit_are_refused():
    net = mlp(4, 3)
    whiten(net, SNGD())
    with pytest.raises(ValueError, match=r"0: P must have shape \(4, 4\), got \(3, 3\)"):
        net[0].refit(Constants(torch.eye(3)))
    with pytest.raises(ValueError, match=r"0: Q must have shape None, got \(3, 1\)"):
        net[0].refit(Constants(torch.eye(4), None, torch.ones(3, 1)))
    before = output(net, X)
    net[0].refit(Constants(2 * torch.eye(4)))
    assert relative(output(net, X), before) < 1e-12
