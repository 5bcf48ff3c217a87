"""A process that receives DICOM. The adapter starts several on one port.

python -m clara_flow.services.dicom.listener_process NUMBER
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.errors import ClaraFlowError
from clara_flow.services.dicom.commitment_check import asking_the_records
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire import listener
from clara_flow.settings import load_settings

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """SIGTERM when the adapter dies: a listener that nobody looks after would take what nobody groups."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent == 1 or os.getppid() != parent:
        sys.exit(0)


def take_all_descriptors() -> None:
    """Raise the soft limit on open files, 1024 on most systems, to the hard one: each association holds three."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """The exit status."""
    log_to_stderr()
    end_with_parent()
    take_all_descriptors()
    settings = load_settings()
    try:
        options = listener.ListenerOptions.of(
            settings, Places.of(settings), number=int(sys.argv[1]), check=asking_the_records(settings)
        )
        listener.run(options)
    except ClaraFlowError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
