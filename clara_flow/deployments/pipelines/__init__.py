"""The bundled pipeline definitions, and how a name or a path becomes the text of one."""

from __future__ import annotations

from pathlib import Path

from clara_flow.errors import InputError
from clara_flow.flows.definition.loader import MAX_BYTES

SUFFIX = ".yaml"
_FOLDER = Path(__file__).parent


def bundled_names() -> tuple[str, ...]:
    """Names of the definitions that come with clara-flow, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}")))


def bundled_definition(name: str) -> Path:
    """The file of the bundled definition of that name."""
    return _FOLDER / f"{name}{SUFFIX}"


def find_definition(name_or_path: str | Path) -> Path:
    """The file of a definition: a path, or the name of a bundled one. A file that exists wins over a name.

    Raises InputError that lists the bundled names when there is neither.
    """
    path, name = Path(name_or_path), str(name_or_path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a folder on the way may not be entered, a name is too long
        raise InputError(f"{name} cannot be read: {error.strerror}", definition=name) from None
    if exists and not is_folder:
        return path
    if name in bundled_names():
        return bundled_definition(name)
    what = "is a folder, not a definition" if is_folder else "does not exist"
    raise InputError(
        f"{name} {what}; give the path of a pipeline definition or the name of a bundled one: "
        f"{', '.join(bundled_names())}",
        definition=name,
    )


def read_definition(path: Path) -> bytes:
    """The bytes of a definition's file, cut where they are too many anyway.

    Raises InputError when it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", definition=str(path)) from None
