"""Condition numbers in trained coordinates, against Fisher blocks written out from Jacobians."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from natgrad import Bernoulli, Categorical, Gaussian
from natgrad.likelihood import Likelihood
from natgrad.whiten import PRONG, SNGD, PRONGPlus, fold, whiten, whitening_report
from natgrad.whiten import spectra as spectra_module
from natgrad.whiten.normalized import Normalized
from tests.whiten.nets import CONVS, attached, convnet, mlp, normal, output, relative, train

X = normal(30, 4) @ normal(4, 4, seed=1) + 2
LIKELIHOODS = (Gaussian(), Categorical(), Bernoulli())
RULES = {
    "plain": None,
    "pca": PRONG(eps=1e-3),
    "zca": PRONG(eps=1e-3, basis="zca"),
    "diagonal": PRONG(eps=1e-3, basis="diagonal"),
    "gradients": PRONG(eps=1e-2, gradients=True, every=3),
    "prong+": PRONGPlus(eps=1e-2, every=3),
    "sngd": SNGD(per_unit=True),
    "batchnorm": PRONGPlus(eps=1e-2, every=3, reading="batchnorm"),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def hessian(likelihood: Likelihood, f: Tensor) -> Tensor:
    """``R(f)``, the Fisher matrix of one example's logits."""
    if isinstance(likelihood, Categorical):
        p = f.softmax(-1)
        return p.diag() - torch.outer(p, p)
    if isinstance(likelihood, Bernoulli):
        return (f.sigmoid() * (1 - f.sigmoid())).diag()
    return torch.eye(len(f), dtype=f.dtype)


def block(net: nn.Module, names: list[str], x: Tensor, likelihood: Likelihood) -> Tensor:
    """``mean_n J_n^T R J_n`` with respect to some parameters, by ``torch.func``."""
    state = {name: p.detach() for name, p in net.named_parameters()}
    mine = {name: state[name] for name in names}

    def logits(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        given = {**state, **parameters}
        return torch.func.functional_call(net, given, (example[None],))[0].flatten()

    total = 0
    for example in x:
        J = torch.func.jacrev(logits)(mine, example)
        J = torch.cat([J[name].flatten(1) for name in names], 1)
        total = total + J.mT @ hessian(likelihood, output(net, example[None])[0]) @ J
    return total / len(x)


def names_of(net: nn.Module, layer: str) -> list[str]:
    return [name for name, _ in net.named_parameters() if name.rpartition(".")[0] == layer]


def trained(net: nn.Module, rule: str, x: Tensor, steps: int = 4) -> nn.Module:
    """A network that has been trained in the coordinates of a rule."""
    if RULES[rule] is not None:
        whitener = whiten(net, RULES[rule], x)
        opt = attached(whitener, torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9))
        train(net, opt, steps, shape=x.shape[1:])
    return net.eval()


def assert_spectrum(found: Tensor, expected: Tensor) -> None:
    values = torch.linalg.eigvalsh(expected).flip(0)
    n = min(len(found), len(values))
    assert values[0] > 0
    assert (found[:n] - values[:n]).abs().max() < 1e-10 * values[0]
    assert values[n:].abs().max() < 1e-10 * values[0] if n < len(values) else True


@every_rule
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("n", [3, 30])
def test_the_block_is_that_of_the_parameters_that_are_trained(rule, likelihood, n):
    net = trained(mlp(4, 5, 6, 3), rule, X)
    report = whitening_report(net, X[:n], likelihood)
    assert [row.layer for row in report.rows] == ["0", "2", "4"]
    for row in report.rows:
        expected = block(net, names_of(net, row.layer), X[:n], likelihood)
        assert row.dim == len(expected)
        assert_spectrum(report.spectra[row.layer], expected)
        values = torch.linalg.eigvalsh(expected)
        above = values[values > 1e-10 * values[-1]]
        assert row.rank == len(above)
        assert row.largest == pytest.approx(float(values[-1]), rel=1e-9)
        assert row.smallest == pytest.approx(float(above[0]), rel=1e-4)
        assert row.condition == pytest.approx(float(values[-1] / above[0]), rel=1e-4)
        assert row.whitened == (rule != "plain")


@every_rule
@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_have_their_blocks(kind, rule):
    make, shape = CONVS[kind]
    x = normal(6, *shape) + 1
    net = nn.Sequential(make().double(), nn.Tanh(), nn.Flatten())
    net.append(nn.Linear(output(net, x).shape[1], 2).double())
    trained(net, rule, x)
    report = whitening_report(net, x, Gaussian())
    expected = block(net, names_of(net, "0"), x, Gaussian())
    q = net[0].groups
    assert report.rows[0].dim == len(expected)
    if q == 1:
        assert_spectrum(report.spectra["0"], expected)
        return
    if isinstance(net[0], Normalized):  # the block of each group by itself
        pytest.skip("parameters of a group are not next to each other")
    sizes = [p.numel() // q for p in (net[0].weight, net[0].bias)]
    values = []
    for group in range(q):
        index = [
            torch.arange(group * size, (group + 1) * size) + start
            for size, start in zip(sizes, (0, net[0].weight.numel()), strict=True)
        ]
        index = torch.cat(index)
        values.append(torch.linalg.eigvalsh(expected[index][:, index]))
    values = torch.cat(values).sort(descending=True).values
    found = report.spectra["0"]
    assert (found - values[: len(found)]).abs().max() < 1e-10 * values[0]


def test_a_normalized_convolution_in_groups_has_the_trace_of_its_parameters():
    make, shape = CONVS["2d groups"]
    x = normal(6, *shape) + 1
    net = nn.Sequential(make().double(), nn.Flatten(), nn.Linear(150, 2).double())
    trained(net, "batchnorm", x)
    report = whitening_report(net, x, Gaussian())
    expected = block(net, names_of(net, "0"), x, Gaussian())
    assert float(report.spectra["0"].sum()) == pytest.approx(float(expected.trace()), rel=1e-10)


@pytest.mark.parametrize("rule", ["plain", "pca", "zca", "diagonal"])
def test_whiteness_is_measured_on_what_the_layers_take_in(rule):
    net = mlp(4, 6, 3)
    if rule != "plain":
        whiten(net, RULES[rule], normal(40, 4) + 1)  # of other data: not quite white here
    report = whitening_report(net, X, Gaussian())
    h = X
    for row, layer, after in zip(report.rows, (net[0], net[2]), (net[1], None), strict=True):
        white = h
        if rule != "plain":
            white = h - layer.c
            white = white * layer.P if rule == "diagonal" else white @ layer.P.mT
        k = h.shape[1]
        off = torch.cov(white.mT, correction=0) - torch.eye(k, dtype=h.dtype)
        assert row.deviation == pytest.approx(float(off.norm()) / k**0.5, rel=1e-9)
        assert row.mean == pytest.approx(float(white.mean(0).norm()) / k**0.5, rel=1e-9)
        h = output(nn.Sequential(layer, after), h) if after is not None else h


def test_before_during_and_after():
    net = convnet()
    x = normal(40, 4, 5, 5) + 1
    before = whitening_report(net, x, Gaussian())
    whiten(net, PRONG(eps=1e-8), x)
    during = whitening_report(net, x, Gaussian())
    after = whitening_report(fold(net), x, Gaussian())
    for one, two, three in zip(before.rows, during.rows, after.rows, strict=True):
        assert (one.whitened, two.whitened, three.whitened) == (False, True, False)
        assert three.condition == pytest.approx(one.condition, rel=1e-5)
        assert three.deviation == pytest.approx(one.deviation, rel=1e-9)
        uncentred = one.layer == "2"  # has no bias: mean 0 is not what its P is made for
        assert uncentred or (two.deviation < 1e-4 and two.mean < 1e-10)
        assert two.condition < one.condition


def test_D14_the_last_layer_of_a_regression_has_condition_one():
    net = mlp(4, 6, 3)
    whiten(net, PRONG(eps=0.0), X)
    last = whitening_report(net, X, Gaussian()).rows[-1]
    assert last.condition == pytest.approx(1, abs=1e-6)
    assert last.rank == last.dim == 21


def test_damping_is_added_to_the_zeros_as_well():
    net = mlp(4, 6, 3)
    plain = whitening_report(net, X, Categorical())
    damped = whitening_report(net, X, Categorical(), damping=0.1)
    few = whitening_report(net, X[:2], Gaussian(), damping=0.1)
    assert plain.rows[-1].rank == 2 * 7 < damped.rows[-1].dim  # softmax: one output is redundant
    for one, two in zip(plain.rows, damped.rows, strict=True):
        if one.rank < one.dim:
            assert two.condition == pytest.approx((one.largest + 0.1) / 0.1)
        else:
            assert two.condition == pytest.approx((one.largest + 0.1) / (one.smallest + 0.1))
    assert all(r.condition == pytest.approx((r.largest + 0.1) / 0.1) for r in few.rows)
    assert plain.rows[0].rank == plain.rows[0].dim


def test_batches_make_no_difference():
    net = trained(mlp(4, 5, 3), "pca", X)
    whole = whitening_report(net, X, Categorical())
    parts = whitening_report(net, [{"input": X[:10]}, {"input": X[10:]}], Categorical())
    assert (whole.examples, parts.examples) == (30, 30)
    for name, values in whole.spectra.items():
        assert relative(parts.spectra[name], values) < 1e-10
    for one, two in zip(whole.rows, parts.rows, strict=True):
        assert two.deviation == pytest.approx(one.deviation)


@every_rule
def test_the_model_stays_as_it_is(rule):
    net = mlp(4, 5, 3)
    if RULES[rule] is not None:
        whiten(net, RULES[rule], X).attach(torch.optim.SGD(net.parameters(), lr=0.1))
    net.train()
    net[1].eval()
    net(X).sum().backward()
    state, grads = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    layer, random = net[0], torch.get_rng_state()
    whitening_report(net, X, Categorical())
    assert net[0] is layer
    assert net[0].training
    assert not net[1].training
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_report_prints_and_turns_into_records():
    net = mlp(4, 5, 3)
    whiten(net, PRONG(), X)
    report = whitening_report(net, X, Gaussian())
    lines = str(report).splitlines()
    assert lines[0].split() == [
        "layer", "shape", "whitened", "condition", "largest", "smallest", "rank", "deviation",
        "mean",
    ]  # fmt: skip
    assert len(lines) == 4
    assert lines[2].split()[:3] == ["0", "5x5", "yes"]
    records = report.records()
    assert [r["layer"] for r in records] == ["0", "2"]
    assert records[0]["condition"] == report.rows[0].condition


def test_a_single_layer_and_one_that_is_frozen_in_part():
    alone = whitening_report(nn.Linear(4, 2).double(), X, Gaussian())
    assert [row.layer for row in alone.rows] == [""]
    A = torch.cat([X, torch.ones(30, 1).double()], 1)
    assert alone.rows[0].condition == pytest.approx(float(torch.linalg.cond(A) ** 2), rel=1e-6)
    net = mlp(4, 3)
    net[0].bias.requires_grad_(False)
    whiten(net, PRONG(eps=1e-3), X)
    row = whitening_report(net, X, Gaussian()).rows[0]
    P = net[0].P
    expected = torch.linalg.cond(P @ (X.mT @ X) @ P.mT)
    assert (row.dim, row.condition) == (12, pytest.approx(float(expected), rel=1e-6))


def test_dead_units_and_layers_give_finite_numbers():
    net = mlp(4, 5, 3, activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias.fill_(-100)
    report = whitening_report(net, X, Gaussian())
    assert report.rows[0].rank == 0
    assert all(torch.isfinite(torch.tensor(row.condition)) for row in report.rows)
    one = whitening_report(mlp(4, 5, 3), X[:1], Gaussian())
    assert all(row.rank == 3 for row in one.rows)


def test_what_can_not_be_measured_is_refused(monkeypatch):
    net = mlp(4, 5, 3)
    with pytest.raises(ValueError, match="damping must be >= 0 and cutoff in"):
        whitening_report(net, X, Gaussian(), damping=-1.0)
    with pytest.raises(ValueError, match="damping must be >= 0 and cutoff in"):
        whitening_report(net, X, Gaussian(), cutoff=0.0)
    with pytest.raises(ValueError, match='kind must be "exact" or "sampled"'):
        whitening_report(net, X, Gaussian(), kind="empirical")
    with pytest.raises(ValueError, match="one-shot iterator"):
        whitening_report(net, iter([X]), Gaussian())
    with pytest.raises(ValueError, match="no layer of the model has a whitened form"):
        whitening_report(nn.Sequential(nn.LayerNorm(4)).double(), X, Gaussian())
    monkeypatch.setattr(spectra_module, "GRAM_ROWS", 10)
    with pytest.raises(ValueError, match=r"layer '0' has rank 25 on 30 .* at most 12 examples"):
        whitening_report(net, X, Gaussian())
    monkeypatch.undo()
    monkeypatch.setattr(spectra_module, "GRADIENT_BYTES", 1000)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3).double(), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '0' would take .* at most 1 of the 2 examples"):
        whitening_report(conv, normal(2, 1, 4, 4), Gaussian())


def test_a_layer_a_few_hundred_wide_needs_its_rows_alone():
    net = mlp(300, 250, 3)
    report = whitening_report(net, normal(40, 300), Gaussian())
    assert report.rows[0].dim == 301 * 250
    assert report.rows[0].rank == 120
