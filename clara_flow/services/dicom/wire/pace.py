"""Whether a message goes on: each byte ends a silence, so that silence alone would let one that drips last for ever."""

from __future__ import annotations

SLOWEST_BYTES_S = 1024


class TooSlow(TimeoutError):
    """The peer has begun a message, and hardly goes on with it."""


class Pace:
    """Judges what an association brings, window by window of `window_s` seconds.

    From its first byte to its last, a message brings SLOWEST_BYTES_S on the average of each window. Only time that was
    spent waiting for the peer counts: not that in which our own disk kept it. Between two messages nothing counts:
    how long a peer may be silent there is for others to say.
    """

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._has_begun = False
        self._waited_s = 0.0
        self._bytes = 0

    def note(self, waited_s: float, size: int) -> None:
        """So many bytes came after so long a wait. Raises TooSlow."""
        if self._has_begun:
            self._waited_s += waited_s
        self._has_begun = True
        self._bytes += size
        if self._waited_s >= self.window_s:
            if self._bytes < self._waited_s * SLOWEST_BYTES_S:
                raise TooSlow(f"a message that came at less than {SLOWEST_BYTES_S} bytes a second")
            self._waited_s, self._bytes = 0.0, 0

    def rest(self) -> None:
        """A message is whole."""
        self._has_begun, self._waited_s, self._bytes = False, 0.0, 0
