"""``compare()`` against dense matrices, and what its table can do."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Comparison, Gaussian
from natgrad.compare import COMPARED
from natgrad.fisher import STRUCTURES
from tests import byhand, oracle
from tests.measured import damped_solve
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
DAMPING = 0.05


def network(shared: bool, seed: int) -> tuple[nn.Sequential, Tensor]:
    net = mlp(3, 4, 2, seed=seed)
    if shared:
        return nn.Sequential(*net, SumPool()), normal(14, 2, 3, seed=seed)
    return net, normal(14, 3, seed=seed)


@every_kind
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shared", "sharing"), [(False, "expand"), (True, "expand"), (True, "reduce")]
)
def test_every_number_is_that_of_dense_matrices(kind, seed, shared, sharing):
    net, x = network(shared, seed)
    y = oracle.targets(kind, oracle.output(net, x), seed)
    found = natgrad.compare(
        net, list(x.split([5, 9])), LIKELIHOODS[kind], targets=list(y.split([5, 9])),
        damping=DAMPING, shared=sharing,
    )  # fmt: skip
    exact = oracle.blocks(net, x, kind)
    gradients = oracle.example_gradients(net, x, y, kind)
    rows = byhand.rows(net, x, kind)
    assert [(row.layer, row.structure) for row in found.rows] == [
        (layer, structure) for layer in exact for structure in COMPARED
    ]
    for row in found.rows:
        F, M = exact[row.layer], gradients[row.layer].mean(0)
        other = byhand.dense(row.structure, *rows[row.layer], shared=sharing)
        step, solved = (damped_solve(matrix, M, DAMPING) for matrix in (F, other))
        assert row.error == pytest.approx(relative(other, F), abs=1e-7)
        assert row.trace_ratio == pytest.approx(float(other.trace() / F.trace()), rel=1e-9)
        cosine = float((step * solved).sum() / (step.norm() * solved.norm()))
        assert row.cosine == pytest.approx(cosine, abs=1e-9)
        assert row.step_error == pytest.approx(relative(solved, step), abs=1e-8)
        assert row.shape == "x".join(map(str, M.shape))


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_block_compared_with_itself_has_no_error(seed):
    net, x = network(True, seed)
    found = natgrad.compare(net, x, Gaussian(), structures=["block"])
    for row in found.rows:
        assert row.error < 1e-7
        assert row.step_error < 1e-9
        assert row.cosine == pytest.approx(1, abs=1e-12)
        assert row.trace_ratio == pytest.approx(1, rel=1e-12)


@every_kind
def test_spectra_and_matrices_are_those_of_the_blocks(kind):
    net, x = network(False, 0)
    found = natgrad.compare(net, x, LIKELIHOODS[kind])
    for layer, (a, g) in byhand.rows(net, x, kind).items():
        assert found.matrices[layer].keys() == found.spectra[layer].keys() == {"exact", *COMPARED}
        for structure, matrix in found.matrices[layer].items():
            name = "block" if structure == "exact" else structure
            assert relative(matrix, byhand.dense(name, a, g)) < 1e-9
            expected = torch.linalg.eigvalsh(matrix).flip(0)
            spectrum = found.spectra[layer][structure]
            assert relative(spectrum, expected[: len(spectrum)]) < 1e-9


def test_memory_is_that_of_the_blocks_buffers_in_single_precision():
    [row] = natgrad.compare(mlp(3, 2), normal(9, 3), Gaussian(), structures=["diagonal"]).rows
    block = natgrad.blocks.Diagonal((2, 4), damping=0.1)
    floats = sum(b.nbytes for name, b in block.named_buffers() if name != "ready")
    assert row.bytes == pytest.approx(floats, abs=4)


def test_without_targets_the_gradient_is_that_of_drawn_ones():
    net, x = network(False, 0)
    one, other = (natgrad.compare(net, x, Categorical(), damping=DAMPING) for _ in range(2))
    assert one.records() == other.records()
    y = oracle.targets("categorical", oracle.output(net, x))
    given = natgrad.compare(net, x, Categorical(), damping=DAMPING, targets=y)
    assert [row.error for row in given.rows] == [row.error for row in one.rows]
    assert [row.cosine for row in given.rows] != [row.cosine for row in one.rows]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    net, x = network(False, 0)
    return natgrad.compare(net, x, Categorical(), damping=DAMPING)


def test_the_table_prints_a_line_for_every_row(comparison):
    lines = str(comparison).splitlines()
    assert lines[0].split() == [
        "layer", "shape", "structure", "error", "trace", "cosine", "step", "error", "MiB"
    ]  # fmt: skip
    assert set(lines[1]) == {"-"}
    assert len(lines) == 2 + len(comparison.rows)
    for line, row in zip(lines[2:], comparison.rows, strict=True):
        assert line.split()[:4] == [row.layer, row.shape, row.structure, f"{row.error:.3f}"]
        assert line == line.rstrip()


def test_records_load_in_pandas(comparison):
    frame = pd.DataFrame(comparison.records())
    assert list(frame["structure"]) == [row.structure for row in comparison.rows]
    table = frame.pivot(index="layer", columns="structure", values="error")
    assert table.shape == (2, len(COMPARED))
    assert table.loc["0", "kfac"] == comparison.rows[0].error
    assert not frame.isna().any().any()
    assert comparison.examples == 14
    assert comparison.damping == DAMPING


def test_blocks_too_large_to_show_are_not_kept():
    net, x = network(False, 0)
    found = natgrad.compare(net, x, Categorical(), write_out=12)
    assert set(found.matrices["2"]) == {"exact", *COMPARED}
    assert found.matrices["0"] == {}
    assert set(found.spectra["0"]) == {"exact", *COMPARED}


def test_too_many_examples_are_refused_with_a_number_that_would_do():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2000, 10))
    x = torch.randn(1000, 2000)
    with pytest.raises(
        ValueError, match=r"layer '1' would take .* GiB.* at most \d+ of the 1000"
    ) as e:
        natgrad.compare(net, x, Categorical())
    allowed = int(str(e.value).split("at most ")[1].split()[0])
    assert allowed == math.floor(2**30 / (8 * 10 * 2001 * 10))


def test_what_cannot_be_compared_is_refused():
    net, x = network(False, 0)
    with pytest.raises(ValueError, match="damping must be > 0"):
        natgrad.compare(net, x, Categorical(), damping=0.0)
    with pytest.raises(ValueError, match=r"unknown structures \['shampoo'\]"):
        natgrad.compare(net, x, Categorical(), structures=["kfac", "shampoo"])
    with pytest.raises(ValueError, match="no layer of the model is covered"):
        natgrad.compare(nn.PReLU(), x, Categorical())
    assert set(COMPARED) <= set(STRUCTURES)
