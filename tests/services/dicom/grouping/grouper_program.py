"""A grouper as a process of its own, to be killed. python grouper_program.py DATA_DIR DATABASE_URL"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

TESTS = Path(__file__).parents[3]
sys.path.insert(0, str(TESTS))

from tiny.pipelines import tiny_catalog  # noqa: E402

from clara_flow.deployments.trigger import House  # noqa: E402
from clara_flow.records import database  # noqa: E402
from clara_flow.services.dicom.grouping.grouper import Grouper  # noqa: E402
from clara_flow.settings import load_settings  # noqa: E402


def main() -> None:
    data_dir, url = Path(sys.argv[1]), sys.argv[2]
    settings = load_settings(data_dir=data_dir, dicom_submit_retry_delay_s=0.1, storage_limit_percent=100)
    house = House(settings=settings, engine=database.connect(url), catalog=tiny_catalog())
    print("up", flush=True)
    Grouper(house, data_dir / "spool").run(threading.Event())


if __name__ == "__main__":
    main()
