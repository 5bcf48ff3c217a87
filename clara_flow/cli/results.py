"""From a job's payload to the user's folder: all of a job's results, or none of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clara_flow.errors import InputError, StorageError

if TYPE_CHECKING:
    from clara_flow.deployments.watch import ResultFolder

PARTIAL = ".clara-flow-partial"


def check_source(source: Path) -> None:
    """Raise InputError unless `source` is a folder with at least one file in it."""
    if not source.exists():
        raise InputError(f"the input folder {source} does not exist")
    if not source.is_dir():
        raise InputError(f"the input {source} is a file; give the folder it lies in")
    if not any(entry.is_file() for entry in source.rglob("*")):
        raise InputError(f"the input folder {source} holds no files")


def check_target(target: Path, source: Path | None) -> None:
    """Make the folder for results and try to write there.

    Raises InputError when it overlaps the input, StorageError when it cannot be written.
    """
    inside = target.resolve()
    if source is not None and (inside.is_relative_to(source.resolve()) or source.resolve().is_relative_to(inside)):
        raise InputError(f"the results' folder {target} and the input {source} overlap; choose another --output")
    try:
        target.mkdir(parents=True, exist_ok=True)
        probe = target / PARTIAL
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise StorageError(f"cannot write to {target}: {error.strerror}. Choose another --output.") from None


def copy_results(
    results: Sequence[ResultFolder], target: Path, *, before_publishing: Callable[[], None] = lambda: None
) -> list[Path]:
    """Copy result folders to `target/<operator>[/<output>]`, replacing those of an earlier run. Returns the files.

    Nothing half-written gets its final name: all is copied first, then named at once.

    before_publishing   called when all is copied and nothing has its name yet; until then an interruption leaves
                        `target` as it was.

    Raises StorageError when the disk is full or not writable; then `target` is as it was.
    """
    partial = target / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for result in results:
            shutil.copytree(result.path, partial / result.operator / result.output, copy_function=shutil.copyfile)
        before_publishing()
        written = []
        for result in results:
            final = target / result.operator / result.output
            shutil.rmtree(final, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            (partial / result.operator / result.output).rename(final)
            written += sorted(path for path in final.rglob("*") if path.is_file())
        return written
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StorageError(f"the results cannot be written to {target}: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
