"""Under which account PostgreSQL runs. It refuses to run as root, so root lends it an unprivileged account.

That account must reach the data folder and the programs, which often lie below a closed folder (/root is 0700). Opening
other people's folders is not ours to do; instead the process keeps one ambient capability, "may pass closed folders".
"""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from clara_flow.errors import ServiceError

NOBODY_ID = 65534
CAP_DAC_OVERRIDE = 1  # capabilities(7)
CAP_DAC_READ_SEARCH = 2


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the cluster's files and runs its processes."""

    uid: int
    gid: int

    @classmethod
    def of_cluster(cls, data: Path) -> Account:
        """Ourselves; for root: the owner of `data` where it exists, else user `postgres`, else nobody."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        if data.exists() and (owner := data.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            return cls(NOBODY_ID, NOBODY_ID)
        return cls(entry.pw_uid, entry.pw_gid)

    def make_folder(self, folder: Path) -> None:
        """Make `folder` where it is missing; it is this account's alone (0700) afterwards.

        Raises OSError; ServiceError where root cannot give files away (a user namespace, a network disk).
        """
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != self.uid:
            try:
                os.chown(folder, self.uid, self.gid)
            except OSError as error:
                raise ServiceError(
                    "PostgreSQL",
                    f"{folder} cannot be given to the account {self.uid} that shall run it ({error.strerror})",
                    remedy="Choose a CLARA_FLOW_DATA_DIR of your own on a local disk, run clara-flow as a normal user, "
                    "or set CLARA_FLOW_DATABASE_URL.",
                ) from None
        folder.chmod(0o700)

    def reaches(self, path: Path) -> bool:
        """Whether this account may pass every folder above `path`, by permission bits alone."""
        for parent in path.parents:
            entry = parent.stat()
            if not entry.st_mode & 0o001 and not (entry.st_uid == self.uid and entry.st_mode & 0o100):
                return False
        return True

    def command(self, *command: str | Path, reaching: tuple[Path, ...]) -> list[str]:
        """`command` as this account would run it, able to reach the paths `reaching`.

        Raises ServiceError where root has no means to do so.
        """
        plain = [str(part) for part in command]
        if self.uid == os.geteuid():
            return plain
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise ServiceError(
                "PostgreSQL",
                "it refuses to run as root, and the program `setpriv` that changes the account is missing",
                remedy="Install util-linux, run clara-flow as a normal user, or set CLARA_FLOW_DATABASE_URL.",
            )
        prefix = [setpriv, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        closed = [path for path in reaching if not self.reaches(path)]
        if closed:
            capability = passing_capability()
            if capability is None:
                raise ServiceError(
                    "PostgreSQL",
                    f"it refuses to run as root, and the account {self.uid} it runs as cannot reach {closed[0]}",
                    remedy="Choose a CLARA_FLOW_DATA_DIR (and an installation) that every user can reach, "
                    "or run clara-flow as a normal user.",
                )
            prefix += [f"--inh-caps=-all,+{capability}", f"--ambient-caps=-all,+{capability}"]
        return [*prefix, "--", *plain]


def passing_capability() -> str | None:
    """The least capability we hold that lets a process pass closed folders (a container may lack the lesser one)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("CapPrm:"))
    held = int(line.split()[1], 16)
    for number, name in ((CAP_DAC_READ_SEARCH, "dac_read_search"), (CAP_DAC_OVERRIDE, "dac_override")):
        if held & (1 << number):
            return name
    return None
