"""How far a step goes, and whether it stays: learning rate, momentum and damping by themselves.

The quadratic model ``M(delta) = <g, delta> + 1/2 delta^T F delta`` with the exact Fisher matrix of
a part of the batch says how long the natural gradient and the last step should be; the loss after
the step says how much the model can be trusted (Martens & Grosse 2015, arXiv 1503.05671, sections
6.4 to 7).
"""

from natgrad.tuning.auto import Auto
from natgrad.tuning.snapshot import Snapshot
from natgrad.tuning.tuner import Tuner

__all__ = ["Auto", "Snapshot", "Tuner"]
