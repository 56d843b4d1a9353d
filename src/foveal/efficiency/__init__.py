"""What compression costs and gains: exact counts, rooflines, and measurements."""

from foveal.efficiency.cost import Cost, Load, cost
from foveal.efficiency.hardware import HARDWARE, Hardware, find_hardware, measured
from foveal.efficiency.reasons import Reason, Setting, reasons
from foveal.efficiency.returns import Area, Case, Point, Serving, area, curve, ladder, paying_batch, serving
from foveal.efficiency.roofline import Times, roofline
from foveal.efficiency.shape import ModelShape, model_shape

__all__ = [
    "HARDWARE",
    "Area",
    "Case",
    "Cost",
    "Hardware",
    "Load",
    "ModelShape",
    "Point",
    "Reason",
    "Serving",
    "Setting",
    "Times",
    "area",
    "cost",
    "curve",
    "find_hardware",
    "ladder",
    "measured",
    "model_shape",
    "paying_batch",
    "reasons",
    "roofline",
    "serving",
]
