import pytest
import torch

from natgrad.lab.bench.networks import Transformer
from natgrad.lab.bench.tasks import TASKS


def test_the_transformer_sees_the_past_alone() -> None:
    model = Transformer(11, 8, width=16, heads=2, depth=2)
    x = torch.randint(0, 11, (3, 8))
    later = x.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    before, after = model(x), model(later)
    assert before.shape == (3, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("name", ["mlp", "autoencoder", "transformer"])
def test_batches_fit_their_network(name: str) -> None:
    found = TASKS[name]
    x, y = found.batches()[0]
    assert len(x) == len(y) == found.batch
    with torch.no_grad():
        assert torch.isfinite(found.loss(found.model()(x[:2]), y[:2]))
