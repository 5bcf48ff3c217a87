"""`import clara` for published operators: the vendor's module name over clara-flow's SDK.

Put the folder that holds this package on PYTHONPATH; operator images do.
"""

from clara_flow.operators.sdk import Driver, Payload, PayloadCollection, PayloadEntry
from clara_flow.operators.sdk import DriverError as Error

from . import logging

__all__ = ["Driver", "Error", "Payload", "PayloadCollection", "PayloadEntry", "logging"]
