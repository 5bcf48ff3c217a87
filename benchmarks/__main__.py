"""`python -m benchmarks [NAME...] [--smoke] [--results DIR]`: run benchmarks, write benchmarks/results/*.json."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.common import FULL, HERE, RESULTS, SMOKE

NAMES = ("compile_speed", "operator_overhead", "pool_speed", "ledger_decision", "hospital_day", "dicom_speed")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(NAMES)}; all by default")
    parser.add_argument("--smoke", action="store_true", help="as little as possible: shows only that they run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))  # the Docker engine that the tests start serves here, too
    for name in given.names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main(SMOKE if given.smoke else FULL, given.results)


if __name__ == "__main__":
    main()
