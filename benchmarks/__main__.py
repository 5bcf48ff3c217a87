"""`python -m benchmarks [NAME...] [--smoke]`: run benchmarks, write benchmarks/results/*.json."""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.common import FULL, HERE, SMOKE

NAMES = ("compile_speed", "operator_overhead", "job_overhead")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which; all by default")
    parser.add_argument("--smoke", action="store_true", help="as little as possible: shows only that they run")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))  # the Docker engine that the tests start serves here, too
    for name in given.names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main(SMOKE if given.smoke else FULL)


if __name__ == "__main__":
    main()
