"""Data sets of DIMSE-N, which are short: they are kept in memory until they are whole."""

from __future__ import annotations


class Gathered:
    """The bytes of a data set, `maximum_bytes` at most. is_too_long: there were more, and none is kept."""

    def __init__(self, maximum_bytes: int) -> None:
        self.is_too_long = False
        self._maximum_bytes = maximum_bytes
        self._data = bytearray()

    @property
    def data(self) -> bytes:
        """All of them."""
        return bytes(self._data)

    def write(self, data: memoryview) -> None:
        """The next of them."""
        self.is_too_long = self.is_too_long or len(self._data) + len(data) > self._maximum_bytes
        if self.is_too_long:
            self._data.clear()
        else:
            self._data += data

    def clear(self) -> None:
        """Forget them."""
        self._data.clear()
