"""``fisher()``: every structure and every kind against the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.fisher import STRUCTURES
from tests import byhand, oracle
from tests.measured import assembled, reordered
from tests.networks import SumPool, mlp, normal, relative
from tests.tapped import LIKELIHOODS

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", range(3))
every_structure = pytest.mark.parametrize("structure", STRUCTURES)
LAYERWISE = [name for name in STRUCTURES if name != "dense"]


def network(shape: str, seed: int) -> tuple[nn.Sequential, Tensor]:
    if shape == "rows":
        return mlp(3, 4, 2, seed=seed), normal(12, 3, seed=seed)
    net = mlp(3, 4, 2, seed=seed)
    if shape == "pooled":
        net = nn.Sequential(*net, SumPool())
    return net, normal(12, 2, 3, seed=seed)


every_shape = pytest.mark.parametrize("shape", ["rows", "positions", "pooled"])


def by_hand(net: nn.Sequential, x: Tensor, kind: str, structure: str, **kwargs) -> Tensor:
    found = byhand.rows(net, x, kind, kwargs.pop("y", None))
    each = {layer: byhand.dense(structure, *pair, **kwargs) for layer, pair in found.items()}
    return assembled(net, each)


@every_kind
@every_seed
@every_shape
def test_dense_is_the_whole_matrix_of_the_oracle(kind, seed, shape):
    net, x = network(shape, seed)
    found = natgrad.fisher(net, x, LIKELIHOODS[kind], structure="dense")
    assert relative(found.dense(), reordered(net, oracle.fisher(net, x, kind))) < 1e-12


@every_kind
@every_seed
@every_shape
def test_block_and_diagonal_are_parts_of_the_oracles_matrix(kind, seed, shape):
    net, x = network(shape, seed)
    F = assembled(net, oracle.blocks(net, x, kind))
    block, diagonal = (
        natgrad.fisher(net, x, LIKELIHOODS[kind], structure=s) for s in ("block", "diagonal")
    )
    assert relative(block.dense(), F) < 1e-12
    assert relative(diagonal.dense(), torch.diag(F.diagonal())) < 1e-12


@every_kind
@every_seed
@every_shape
@pytest.mark.parametrize("structure", LAYERWISE)
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_every_structure_is_what_its_formula_says(kind, seed, shape, structure, shared):
    net, x = network(shape, seed)
    found = natgrad.fisher(net, x, LIKELIHOODS[kind], structure=structure, shared=shared)
    expected = by_hand(net, x, kind, structure, shared=shared)
    assert relative(found.dense(), expected) < 1e-9


@every_kind
@every_seed
@pytest.mark.parametrize("structure", LAYERWISE)
def test_the_empirical_fisher_is_that_of_the_given_targets(kind, seed, structure):
    net, x = network("rows", seed)
    y = oracle.targets(kind, oracle.output(net, x), seed)
    found = natgrad.fisher(
        net, x, LIKELIHOODS[kind], kind="empirical", structure=structure, targets=y
    )
    assert relative(found.dense(), by_hand(net, x, kind, structure, y=y)) < 1e-9
    if structure == "block":
        expected = assembled(net, oracle.empirical_blocks(net, x, y, kind))
        assert relative(found.dense(), expected) < 1e-12


@every_kind
@pytest.mark.parametrize("structure", ["dense", "tekfac"])
def test_the_sampled_fisher_is_drawn_anew_only_with_another_generator(kind, structure):
    net, x = network("rows", 0)

    def sampled(generator: torch.Generator | None) -> Tensor:
        return natgrad.fisher(
            net, x, LIKELIHOODS[kind], kind="sampled", structure=structure, generator=generator
        ).dense()

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert torch.equal(sampled(None), sampled(None))
    assert torch.equal(sampled(seeded(3)), sampled(seeded(3)))
    assert relative(sampled(seeded(3)), sampled(seeded(4))) > 1e-2
    generator = seeded(3)
    assert relative(sampled(generator), sampled(generator)) > 1e-2


@every_kind
@pytest.mark.parametrize("structure", ["dense", "kfac", "diagonal"])
def test_the_sampled_fisher_tends_to_the_exact_one(kind, structure):
    net, x = network("rows", 0)
    exact = natgrad.fisher(net, x, LIKELIHOODS[kind], structure=structure).dense()
    few, many = (
        natgrad.fisher(
            net, x, LIKELIHOODS[kind], kind="sampled", structure=structure, samples=samples
        ).dense()
        for samples in (2, 600)
    )
    assert relative(many, exact) < 0.1
    assert relative(few, exact) > 2 * relative(many, exact)


@every_seed
def test_the_scale_of_a_sampled_ekfac_is_measured_at_the_very_targets_of_its_factors(seed):
    net, x = network("rows", seed)
    ekfac, block = (
        natgrad.fisher(net, x, Categorical(), kind="sampled", structure=structure)
        for structure in ("ekfac", "block")
    )
    for layer, made in ekfac.blocks.items():
        assert float(made.trace()) == pytest.approx(float(block.blocks[layer].trace()), rel=1e-12)


@every_structure
@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [1, 7, 4]])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_streamed_batches_are_one_batch(structure, sizes, kind):
    net, x = network("rows", 1)
    y = oracle.targets("categorical", oracle.output(net, x))
    whole = natgrad.fisher(net, x, Categorical(), structure=structure, kind=kind, targets=y)
    streamed = natgrad.fisher(
        net, list(x.split(sizes)), Categorical(), structure=structure, kind=kind,
        targets=list(y.split(sizes)),
    )  # fmt: skip
    assert relative(streamed.dense(), whole.dense()) < 1e-9


def test_an_unknown_structure_kind_or_a_missing_target_is_refused():
    net, x = network("rows", 0)
    with pytest.raises(ValueError, match=r"structure must be one of 'dense', .* 'shampoo'"):
        natgrad.fisher(net, x, Categorical(), structure="shampoo")
    with pytest.raises(ValueError, match=r"kind must be .* got 'true'"):
        natgrad.fisher(net, x, Categorical(), kind="true")
    with pytest.raises(ValueError, match="needs targets="):
        natgrad.fisher(net, x, Categorical(), kind="empirical")
    with pytest.raises(ValueError, match="no layer of the model is covered"):
        natgrad.fisher(nn.Sequential(nn.PReLU()), x, Categorical(), structure="kfac")


@pytest.mark.parametrize("structure", ["block", "kfac", "ekfac"])
def test_a_layer_that_no_gradient_reaches_is_named(structure):
    net, x = network("rows", 0)
    net.spare = nn.Linear(2, 2).double()
    net.forward = lambda x: nn.Sequential(*list(net)[:3])(x)
    with pytest.raises(ValueError, match="no gradient reached layers spare"):
        natgrad.fisher(net, x, Categorical(), structure=structure)
