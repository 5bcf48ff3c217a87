"""The operator SDK: what an operator needs to run inside a pipeline. Standard library only.

from clara_flow.operators.sdk import Driver, log
"""

from clara_flow.operators.sdk import log
from clara_flow.operators.sdk.driver import Driver, ExitCode, Notification
from clara_flow.operators.sdk.files import replace_file
from clara_flow.operators.sdk.payload import DriverError, Payload, PayloadCollection, PayloadEntry

__all__ = [
    "Driver",
    "DriverError",
    "ExitCode",
    "Notification",
    "Payload",
    "PayloadCollection",
    "PayloadEntry",
    "log",
    "replace_file",
]
