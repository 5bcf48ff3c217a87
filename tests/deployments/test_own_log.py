"""Our programs' log lines are written, whatever Prefect does to the root logger."""

from __future__ import annotations

import re
import subprocess
import sys

PROGRAM = """
import logging
from clara_flow.deployments.own_log import log_to_stderr
log_to_stderr()
from prefect.logging.configuration import setup_logging
setup_logging()
logging.getLogger("clara_flow.infra.pool.node").info("the node joins")
logging.getLogger("clara_flow.infra.pool.node").debug("too much")
logging.getLogger(__name__).info("the program begins")
logging.getLogger("httpx").info("not ours")
"""


def test_a_line_of_ours_is_written_once_in_utc() -> None:
    environment = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    moment = r"\d{4}-\d\d-\d\dT(\d\d):\d\d:\d\d\.\d{3}Z"
    lines = (
        rf"{moment} INFO clara_flow\.infra\.pool\.node: the node joins\n{moment} INFO __main__: the program begins\n"
    )
    assert re.fullmatch(lines, done.stderr)
    assert done.stdout == ""
