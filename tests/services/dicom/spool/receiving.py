"""A process that receives without end, for tests that kill it: `receiving.py FOLDER FSYNC` tells what it acknowledged.

Each line of its output is one instance: its UID and the digest of its file. It is written after `commit` returned.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from itertools import count
from pathlib import Path

from services.dicom.spool.spooled import WHO, facts

from clara_flow.services.dicom.spool import Spool, SpoolWriter

THREADS = 4
NOISE = os.urandom(2**20)


def receive(writer: SpoolWriter, thread: int) -> None:
    dice = random.Random(thread)  # noqa: S311
    numbers = count()
    while True:
        association = writer.open_association(**WHO)
        for _ in range(dice.randrange(6)):
            name = f"1.{os.getpid()}.{thread}.{next(numbers)}"
            digest = hashlib.sha256()
            with writer.begin(association) as incoming:
                for _ in range(dice.randrange(1, 8)):
                    piece = memoryview(NOISE)[: dice.randrange(40_000)]
                    digest.update(piece)
                    incoming.write(piece)
                if dice.random() < 0.1:
                    continue  # the peer gave up
                incoming.commit(facts(name))
            os.write(1, f"{name} {digest.hexdigest()}\n".encode())
        writer.close_association(association, "released")


def main() -> None:
    writer = Spool(Path(sys.argv[1])).writer(sys.argv[2] == "fsync", journal_bytes=20_000)
    for thread in range(THREADS):
        threading.Thread(target=receive, args=(writer, thread)).start()


if __name__ == "__main__":
    main()
