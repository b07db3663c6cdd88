"""What is counted against what torch's own counter sees, stage by stage."""

from __future__ import annotations

from math import isnan

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from natgrad import blocks
from natgrad.damping import Constant
from natgrad.decompose import decompose
from natgrad.flops import WARM, Cost, Rows, Stages, Work, layer_passes, model_flops, product
from natgrad.patches import Patches, Window
from natgrad.sample import OneHot, Sample
from natgrad.split import GRAM_ROWS

N, O, I = 5, 3, 4
KINDS = [
    "KFAC", "TKFAC", "EKFAC", "TEKFAC", "EKFACRa", "TEKFACRa", "Diagonal", "Exact",
]  # fmt: skip


def sample_of(rows: Rows, q: tuple[int, ...] = (), one_hot: bool = False) -> Sample:
    generator = torch.Generator().manual_seed(0)
    n, t, c = rows[:3]
    g = torch.randn(*q, c, n, t, O, generator=generator)
    if one_hot:
        return Sample(OneHot(torch.randint(0, I, (n, t), generator=generator), I), g)
    return Sample(torch.randn(*q, n, t, I, generator=generator), g)


def block_of(kind: str, **kwargs) -> blocks.Block:
    return getattr(blocks, kind)((O, I), **{"damping": 0.1, **kwargs})


def decomposed(block: blocks.Block) -> None:
    factors = block.factors()
    found = decompose(list(factors.values()))
    block.load({name: each for name, each in zip(factors, found, strict=True) if each is not None})


def learned(block: blocks.Block, sample: Sample) -> None:
    block.observe(sample)
    block.rescale(sample)
    for moment in block.moments():
        moment.commit()


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def products(stage: tuple[Work, ...]) -> float:
    return sum(work.flops for work in stage if work.kind == "product")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", ["expand", "reduce"])
@pytest.mark.parametrize("rows", [Rows(N), Rows(N, 7), Rows(N, 1, 2), Rows(N, 7, 2)])
@pytest.mark.parametrize("q", [(), (2,)])
def test_products_of_every_stage_are_those_that_torch_counts(kind, shared, rows, q):
    block, sample = block_of(kind, groups=q, shared=shared), sample_of(rows, q)
    learned(block, sample)
    decomposed(block)  # the next one carries the scale over
    cost = block.cost(rows)
    assert counted(lambda: learned(block, sample)) == products(cost.statistics)
    assert counted(lambda: decomposed(block)) == products(cost.decomposition)
    M = torch.randn(*q, O, I)
    assert counted(lambda: block.solve(M)) == products(cost.solve)


@pytest.mark.parametrize("kind", ["KFAC", "TKFAC", "EKFAC", "TEKFAC"])
@pytest.mark.parametrize("n", [4, 600])  # few rows beside the widths, and more than these
def test_solves_from_the_rows_of_a_backward_pass_are_counted_where_they_are_made(kind, n):
    o, i = 208, 304
    block = getattr(blocks, kind)((o, i), damping=0.1)
    sample = Sample(torch.randn(n, 1, i), torch.randn(1, n, 1, o))
    learned(block, sample)
    decomposed(block)
    there, gone = block.cost(Rows(n, kept=True)), block.cost(Rows(n))
    made = block.rows_pay(n)
    assert made == (n == 4)
    summed = 0 if made else 2 * n * o * i  # the gradient, which counts as the model's own work
    assert counted(lambda: block.solve_rows(sample)) == products(there.solve) + summed
    assert counted(lambda: block.solve(torch.randn(o, i))) == products(gone.solve)
    assert (products(there.solve) < products(gone.solve)) == made
    assert there[:2] == gone[:2]


@pytest.mark.parametrize("kind", ["KFAC", "TKFAC"])
def test_products_in_eigenbases(kind):
    block, sample = block_of(kind, damping=Constant(0.1)), sample_of(Rows(N))
    learned(block, sample)
    decomposed(block)
    cost = block.cost(Rows(N))
    assert counted(lambda: block.solve(torch.randn(O, I))) == products(cost.solve)
    assert [work.kind for work in cost.decomposition[:2]] == ["eigh", "eigh"]


@pytest.mark.parametrize("kind", ["KFAC", "TKFAC", "EKFAC", "TEKFAC", "Diagonal"])
def test_embeddings_leave_out_the_diagonal_factor(kind):
    rows = Rows(N, 7)
    block, sample = block_of(kind, diagonal_input=True), sample_of(rows, one_hot=True)
    learned(block, sample)
    decomposed(block)
    cost = block.cost(rows)
    assert counted(lambda: learned(block, sample)) == products(cost.statistics)
    assert counted(lambda: decomposed(block)) == products(cost.decomposition)
    assert counted(lambda: block.solve(torch.randn(O, I))) == products(cost.solve)


def test_decompositions_are_counted_by_the_cube():
    assert block_of("KFAC").flops(Rows(N)).decomposition == O**3 + I**3
    exact = block_of("Exact", groups=(6,))
    assert exact.flops(Rows(N)).decomposition == 6 * 9 * (O * I) ** 3
    assert exact.cost(Rows(N)).decomposition[0].calls == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_cover_at_least_rows_and_moments_once(kind, dtype):
    rows = Rows(N, 7)
    block = block_of(kind, dtype=dtype)
    read = N * 7 * (O + I)
    kept = sum(moment.value.numel() for moment in block.moments() if moment.value.ndim)
    found = block.cost(rows).bytes.statistics
    assert found >= dtype.itemsize * (read + kept)
    assert found == dtype.itemsize / 4 * block_of(kind).cost(rows).bytes.statistics


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_needs_to_be_allocated_to_be_counted(kind):
    block = block_of(kind, device=torch.device("meta"))
    assert block.cost(Rows(N, 7)) == block_of(kind).cost(Rows(N, 7))
    assert block.state_bytes() == block_of(kind).state_bytes() > 0


def test_a_block_that_nobody_counted_has_no_figures():
    class Own(blocks.Diagonal):
        cost = blocks.Block.cost

    found = Own((O, I), damping=0.1)
    assert all(isnan(part) for part in found.flops(Rows(N)))


def test_stages_average_over_a_schedule_and_add_up():
    stages = Stages(20.0, 300.0, 4.0)
    assert stages.averaged(10, 100) == (2, 3, 4)
    assert stages.per_step(10, 100) == 9
    assert stages.plus(Stages(1, 1, 1)) == (21, 301, 5)


def test_costs_side_by_side_stack_products_and_repeat_decompositions():
    (work,) = Cost((product(2, 3, 4),), (), ()).times(5).statistics
    assert work == product(2, 3, 4, stack=5)
    assert work.calls == 1
    assert (work.flops, work.words, work.fresh) == (5 * 48, 5 * 26, 5 * 8)


def test_the_layers_own_passes_are_three_products():
    rows = Rows(N, 7)
    assert sum(work.flops for work in layer_passes(O, I, rows)) == model_flops(O, I, rows)


SPLIT = 2  #: 3 outputs in blocks of 2 and 1, 4 inputs in two of 2


@pytest.mark.parametrize("kind", ["KFAC", "TKFAC", "EKFAC", "TEKFAC", "EKFACRa", "TEKFACRa"])
@pytest.mark.parametrize("damping", [0.1, Constant(0.1)])
@pytest.mark.parametrize("rows", [Rows(N), Rows(N, 2), Rows(N, 7, 2)])
@pytest.mark.parametrize("q", [(), (2,)])
def test_products_of_split_factors_are_counted_block_by_block(kind, damping, rows, q):
    kwargs = {"damping": damping, "groups": q}
    block, sample = block_of(kind, widest=SPLIT, **kwargs), sample_of(rows, q)
    learned(block, sample)
    decomposed(block)
    cost, whole = block.cost(rows), block_of(kind, **kwargs).cost(rows)
    assert counted(lambda: learned(block, sample)) == products(cost.statistics)
    assert counted(lambda: decomposed(block)) == products(cost.decomposition)
    assert counted(lambda: block.solve(torch.randn(*q, O, I))) == products(cost.solve)
    assert products(cost.statistics) < products(whole.statistics)
    assert products(cost.solve) < products(whole.solve)


def test_split_embeddings_and_decompositions():
    block, sample = (
        block_of("EKFACRa", widest=SPLIT, diagonal_input=True),
        sample_of(Rows(N), (), True),
    )
    learned(block, sample)
    decomposed(block)
    assert counted(lambda: learned(block, sample)) == products(block.cost(Rows(N)).statistics)
    factored = block_of("KFAC", widest=SPLIT, groups=(3,))
    assert factored.flops(Rows(N)).decomposition == 3 * (2**3 + 1 + 2 * 2**3)
    assert [work.calls for work in factored.cost(Rows(N)).decomposition[:3]] == [6, 3, 3]


@pytest.mark.parametrize("widest", [None, SPLIT])
def test_warm_bases_count_two_products_and_an_orthogonal_factorisation(widest):
    block, sample = block_of("EKFAC", eigen="warm", widest=widest), sample_of(Rows(N))
    learned(block, sample)
    decomposed(block)
    work = block.cost(Rows(N)).decomposition
    warm = [each for each in work if each.kind == "warm"]
    cubes = sum(each.flops for each in warm) / WARM
    assert not any(each.kind == "eigh" for each in work)
    assert cubes == pytest.approx(O**3 + I**3 if widest is None else 8 + 1 + 2 * 8)
    # torch counts the two products, and no factorisation
    assert counted(lambda: decomposed(block)) == pytest.approx(products(work) + 4 * cubes)


@pytest.mark.parametrize("rows", [3, GRAM_ROWS])
@pytest.mark.parametrize("width", [511, 512, 600, 1024])
def test_wide_moments_of_many_rows_on_the_cpu_are_half_of_a_product(width, rows):
    block = blocks.KFAC((2, width), damping=0.1)
    sample = Sample(torch.randn(rows, 1, width), torch.randn(1, rows, 1, 2))
    cost = block.cost(Rows(rows))
    assert counted(lambda: block.observe(sample)) == products(cost.statistics)
    meta = blocks.KFAC((2, width), damping=0.1, device=torch.device("meta")).cost(Rows(rows))
    assert (meta == cost) == (width < 512 or rows < GRAM_ROWS)


@pytest.mark.parametrize("widest", [None, 30, 4])
@pytest.mark.parametrize("space", [2, 12])
def test_moments_of_images_are_counted_the_way_they_are_taken(widest, space, monkeypatch):
    monkeypatch.setattr("natgrad.blocks.kfac.SMALLER", 10**9)  # none is left for later
    image = torch.randn(2, 8, space, space)
    patches = Patches(image, Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), ones=True))
    sample = Sample(patches, torch.randn(1, 2, space**2, O))
    block = blocks.KFAC((O, 73), damping=0.1, widest=widest)
    cost = block.cost(Rows(2, space**2, 1, 9, sample.input_products()))
    found = counted(lambda: block.observe(sample))
    gathers = any(work.kind == "gather" for work in cost.statistics)
    assert gathers == ("rows" in vars(patches))
    if gathers:
        assert found == products(cost.statistics)
    reference = blocks.KFAC((O, 73), damping=0.1, widest=widest)
    reference.observe(Sample(patches.rows, sample.g))
    assert torch.allclose(block.A.pending, reference.A.pending, rtol=1e-4, atol=1e-4)
