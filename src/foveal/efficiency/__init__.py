"""What compression costs and gains: exact counts, rooflines, and measurements."""

from foveal.efficiency.cost import Cost, Load, cost
from foveal.efficiency.shape import ModelShape, model_shape

__all__ = ["Cost", "Load", "ModelShape", "cost", "model_shape"]
