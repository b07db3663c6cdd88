"""Scale and shift of norm layers: one tiny exact block for every unit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from natgrad.layers.base import LayerView, Slot
from natgrad.sample import statistics_dtype

__all__ = ["NormView"]

OVER_FEATURES = (nn.LayerNorm, nn.RMSNorm)  #: units last; the others have channels second
KINDS = (*OVER_FEATURES, nn.GroupNorm, _BatchNorm, _InstanceNorm)


class NormView(LayerView):
    """``z_k = w_k xhat_k + b_k`` for each unit ``k``: a 1x2 matrix ``[w_k, b_k]`` per unit.

    The block of each unit, ``E[J J^T]`` with ``J = sum_t g_t [xhat_t, 1]``, is taken exactly.
    Either of scale and shift may be frozen. What the normalisation itself makes of the batch is
    no parameter and not part of this map: where BatchNorm uses the statistics of the batch,
    gradients of one example's loss reach the others' rows too, and rows hold the sum (as in every
    published K-FAC).
    """

    exact = True

    @classmethod
    def reads(cls, module: nn.Module) -> bool:
        """LayerNorm, RMSNorm, GroupNorm, BatchNorm and InstanceNorm in 1, 2 and 3 dimensions."""
        return isinstance(module, KINDS)

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Statistics from elsewhere, computed parameters, a forward of its own."""
        if isinstance(module, nn.SyncBatchNorm):
            return "SyncBatchNorm takes its statistics over several processes"
        if not isinstance(module.weight, nn.Parameter):
            return "weight is computed from other parameters"
        kind = next(kind for kind in KINDS if isinstance(module, kind))
        if type(module).forward is not kind.forward:
            return f"{type(module).__name__} overrides {kind.__name__.strip('_')}.forward"
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """``(1, 2)``, or ``(1, 1)`` where scale or shift alone is trained."""
        return 1, len(self.trained)

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of units."""
        return (self._parameters()["weight"].numel(),)

    def input_rows(self, h: Tensor) -> Tensor:
        """``[xhat, 1]`` at every position, ``[q, n, t, 2]``."""
        h = self._batched(h).to(statistics_dtype(h.dtype))
        xhat = self._by_unit(self._normalized(h))
        columns = {"weight": xhat, "bias": torch.ones_like(xhat)}
        return torch.cat([columns[name] for name in self.trained], dim=-1)

    def output_rows(self, grad_z: Tensor) -> Tensor:
        """The gradient of every unit at every position, ``[q, n, t, 1]``."""
        return self._by_unit(self._batched(grad_z))

    def slots(self) -> dict[str, Slot]:
        """``weight`` and ``bias``, as far as they are trained."""
        named = self._parameters()
        return {name: Slot(p) for name, p in named.items() if p.requires_grad}

    def to_matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``[w_k, b_k]`` for each unit, ``[q, 1, 2]``."""
        return torch.stack([tensors[name].flatten() for name in self.trained], -1).unsqueeze(1)

    def from_matrix(self, M: Tensor) -> dict[str, Tensor]:
        """Scale and shift."""
        columns = M.squeeze(1).unbind(-1)
        slots = self.trained.items()
        return {
            name: column.reshape(slot.parameter.shape)
            for (name, slot), column in zip(slots, columns, strict=True)
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters(recurse=False))

    def _by_unit(self, z: Tensor) -> Tensor:
        """``[n, ..., *units]`` or ``[n, C, *space]`` as ``[q, n, t, 1]``."""
        (q,) = self.groups
        if isinstance(self.module, OVER_FEATURES):
            leading = z.shape[: z.ndim - len(self.module.normalized_shape)]
            return z.reshape(leading[0] if leading else 1, -1, q).movedim(-1, 0).unsqueeze(-1)
        return z.reshape(z.shape[0], q, -1).movedim(1, 0).unsqueeze(-1)

    def _batched(self, z: Tensor) -> Tensor:
        """An input ``[C, *space]`` of InstanceNorm is one example."""
        m = self.module
        if isinstance(m, _InstanceNorm) and z.ndim == m._get_no_batch_dim():  # type: ignore[no-untyped-call]
            return z.unsqueeze(0)
        return z

    def _normalized(self, h: Tensor) -> Tensor:
        """The layer's output before scale and shift; running statistics stay as they are."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(h, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.RMSNorm):
            return F.rms_norm(h, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(h, m.num_groups, eps=m.eps)
        assert isinstance(m, (_BatchNorm, _InstanceNorm))
        mean, var = m.running_mean, m.running_var
        if not m.training and mean is not None and var is not None:
            return F.batch_norm(h, mean.to(h.dtype), var.to(h.dtype), eps=m.eps)
        if isinstance(m, _InstanceNorm):
            return F.instance_norm(h, eps=m.eps)
        return F.batch_norm(h, None, None, training=True, eps=m.eps)
