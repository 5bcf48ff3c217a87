"""An operator for the soak: marks that it ran, then does what SCRIPT says. Nothing but the standard library.

work:SECONDS    take that long
copy            all inputs' files into every output, each with a line of its own added
fail:N          exit status N
hang            wait for ever

Where MARKS is a folder, a line is appended to its file `marks`: `begin JOB OPERATOR NANOSECONDS` (Unix time), and `end`
when all is done. Two that run at once for one operator of one job are told as `overlap`.
"""

import fcntl
import json
import os
import pathlib
import select
import sys
import time


def mark(folder: str, word: str, name: str) -> None:
    if os.path.isdir(folder):  # noqa: PTH112
        descriptor = os.open(f"{folder}/marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{word} {name} {time.time_ns()}\n".encode())
        os.close(descriptor)


def main() -> None:
    manifest = json.loads(pathlib.Path(os.environ["CLARA_IO_MANIFEST"]).read_text())
    marks, name = os.environ.get("MARKS", ""), f"{manifest['job_id']} {manifest['stage']}"
    if os.path.isdir(marks):  # noqa: PTH112
        lock = os.open(f"{marks}/{name.replace(' ', '.')}.lock", os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for as long as this process lives
        except BlockingIOError:
            mark(marks, "overlap", name)
    mark(marks, "begin", name)
    for word in os.environ["SCRIPT"].split():
        verb, _, argument = word.partition(":")
        if verb == "work":
            select.select([], [], [], float(argument))
        elif verb == "hang":
            select.select([], [], [])
        elif verb == "fail":
            sys.exit(int(argument))
        elif verb == "copy":
            for output in manifest["outputs"]:
                for entry in manifest["inputs"]:
                    for path in sorted(pathlib.Path(entry["path"]).rglob("*")):
                        if path.is_file():
                            target = pathlib.Path(output["path"]) / f"{entry['from']}{path.name}"
                            target.write_bytes(path.read_bytes() + f"{manifest['stage']}\n".encode())
    mark(marks, "end", name)


if __name__ == "__main__":
    main()
