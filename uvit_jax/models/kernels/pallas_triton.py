"""Pallas's Triton backend where the installed jax has it: deprecated since 0.12, it will be gone
from a later one.
"""

from typing import Any

plgpu: Any
try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:
    plgpu = None

AVAILABLE = plgpu is not None
