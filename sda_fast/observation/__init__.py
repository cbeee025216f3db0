r"""Observation operators: what an instrument sees of a state.

An observation is :math:`y = A(x) + \epsilon` with an operator :math:`A` from states (B, *event) to
observations (B, *shape). Guidance needs, beside :math:`A(x)`, the product of its Jacobian with a
cotangent,

.. math:: \nabla_x \, \langle A(x), \bar y \rangle = J(x)^\top \bar y

which a linear operator gives by its adjoint, without a graph, and a nonlinear one by automatic
differentiation. Where something was not observed, the observation is NaN.
"""

__all__ = [
    "BlockMean",
    "Composition",
    "Function",
    "Interpolate",
    "Linear",
    "ObservationOperator",
    "Pointwise",
    "Select",
    "SparseMap",
    "Stack",
    "Subsample",
    "Vorticity",
]

from .functions import Function, Linear, Pointwise
from .grids import BlockMean, Subsample
from .operator import Composition, ObservationOperator, Stack
from .places import Interpolate, Select, Vorticity
from .sparse import SparseMap
