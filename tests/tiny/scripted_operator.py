"""An operator for tests of the flow: does what SCRIPT says, word by word. No SDK, nothing but the manifest.

copy        all inputs' files into every output, each with a line of its own added
fail:N      exit status N, after two lines of log
hang        wait for ever, ends on SIGTERM
hog         take memory until killed
nothing     write no output
gate:PATH   wait until PATH exists
need:PATH   exit status 1 unless PATH exists
say:WORD    print WORD
"""

import json
import os
import pathlib
import select
import sys


def main() -> None:
    manifest = json.loads(pathlib.Path(os.environ["CLARA_IO_MANIFEST"]).read_text())
    for word in os.environ.get("SCRIPT", "copy").split():
        verb, _, argument = word.partition(":")
        if verb == "copy":
            for output in manifest["outputs"]:
                for entry in manifest["inputs"]:
                    for path in sorted(pathlib.Path(entry["path"]).rglob("*")):
                        if path.is_file():
                            target = pathlib.Path(output["path"]) / f"{entry['from']}{path.name}"
                            target.write_bytes(path.read_bytes() + f"{manifest['stage']}\n".encode())
        elif verb == "fail":
            print("about to fail\nthe reason why", flush=True)
            sys.exit(int(argument))
        elif verb == "hang":
            print("hanging", flush=True)
            select.select([], [], [])
        elif verb == "hog":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1024)) * 8192)
        elif verb == "say":
            print(argument, flush=True)
        elif verb == "need" and not pathlib.Path(argument).exists():
            sys.exit(1)
        elif verb == "gate":
            while not pathlib.Path(argument).exists():
                select.select([], [], [], 0.02)


if __name__ == "__main__":
    main()
