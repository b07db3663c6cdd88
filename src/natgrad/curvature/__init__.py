"""The curvature of a whole model: a block for each layer, or all layers' exact Fisher at once."""

from natgrad.curvature.base import Curvature, Solved
from natgrad.curvature.blockwise import Blockwise
from natgrad.curvature.joint import Joint
from natgrad.curvature.layer import Layer, remark_unheard

__all__ = ["Blockwise", "Curvature", "Joint", "Layer", "Solved", "remark_unheard"]
