"""What execute works on: the folders of a stage's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import overload


class DriverError(Exception):
    """The driver cannot find, read or keep what it needs; the process ends with exit code 2."""


@dataclass(frozen=True, slots=True)
class PayloadEntry:
    """One input or output on disk.

    name          as the definition declares it; may be empty.
    path          folder as seen by this process; the platform has mapped the upstream's output to it.
    source        the operator that made it; "" for the job's own payload and for outputs.
    element_type  what the files are (`dicom`, `metaimage`); "" when the definition does not say.
    output        an input's name as the upstream spells it (names are compared without case); "" as for `name`.
    """

    name: str
    path: str
    source: str = ""
    element_type: str = ""
    output: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names it answers to: its name, and `source.name` (`source` alone when it has no name)."""
        if not self.source:
            return (self.name,)
        if not self.name:
            return (self.source, "")
        return (f"{self.source}.{self.name}", self.name)


class PayloadCollection:
    """The inputs or the outputs of a stage, in the definition's order.

    An entry is found by index or by name, compared without case. Where two upstreams give the same name, the entry is
    `<from>.<name>`. Raises DriverError when two entries cannot be told apart.
    """

    def __init__(self, kind: str, entries: Iterable[PayloadEntry]) -> None:
        self._kind = kind
        self._entries = tuple(entries)
        seen: set[str] = set()
        for entry in self._entries:
            key = entry.keys[0].casefold()
            if key in seen:
                what = f"named {entry.keys[0]!r}" if key else "without a name"
                raise DriverError(f"two {kind}s {what}: give each its own name in the pipeline definition")
            seen.add(key)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PayloadEntry]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        """True when an entry has this name, be it the only one or not."""
        return isinstance(name, str) and bool(self._named(name))

    @overload
    def __getitem__(self, key: int) -> PayloadEntry: ...
    @overload
    def __getitem__(self, key: str) -> PayloadEntry: ...
    def __getitem__(self, key: int | str) -> PayloadEntry:
        """The entry at a position or of a name.

        Raises IndexError or KeyError naming the entries there are, KeyError also when a name fits several.
        """
        if isinstance(key, int):
            try:
                return self._entries[key]
            except IndexError:
                raise IndexError(f"no {self._kind} at position {key}; {self._what_there_is()}") from None
        found = self._named(key)
        if len(found) > 1:
            choices = ", ".join(repr(entry.keys[0]) for entry in found)
            raise KeyError(f"{self._kind} {key!r} is ambiguous; say one of {choices}")
        if not found:
            raise KeyError(f"no {self._kind} {key!r}; {self._what_there_is()}")
        return found[0]

    def __repr__(self) -> str:
        return f"PayloadCollection({self._kind!r}, {list(self._entries)!r})"

    def _named(self, name: str) -> list[PayloadEntry]:
        wanted = name.casefold()
        exact = [entry for entry in self._entries if entry.keys[0].casefold() == wanted]
        return exact or [entry for entry in self._entries if wanted in [key.casefold() for key in entry.keys]]

    def _what_there_is(self) -> str:
        if not self._entries:
            return f"this stage has no {self._kind}s (stand-alone: set NVIDIA_CLARA_{self._kind.upper()} to a folder)"
        return "there are " + ", ".join(repr(entry.keys[0]) for entry in self._entries)


@dataclass(frozen=True, slots=True)
class Payload:
    """What execute is given. Valid until execute returns."""

    input_entries: PayloadCollection
    output_entries: PayloadCollection
