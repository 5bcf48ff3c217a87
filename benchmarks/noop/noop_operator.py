"""Copies the files of all inputs to the output: the least that an operator can do.

NOOP_STAMP  name of a file in the output that tells when it began, Unix time.
"""

import json
import os
import time

started = time.time()
# ruff: noqa: PTH123, PTH208  importing pathlib, or shutil, alone would double the start-up
with open(os.environ["CLARA_IO_MANIFEST"]) as stream:
    manifest = json.load(stream)
if stamp := os.environ.get("NOOP_STAMP"):
    with open(f"{manifest['outputs'][0]['path']}/{stamp}", "w") as stream:
        stream.write(str(started))
for entry in manifest["inputs"]:
    for name in os.listdir(entry["path"]):
        with (
            open(f"{entry['path']}/{name}", "rb") as source,
            open(f"{manifest['outputs'][0]['path']}/{name}", "wb") as target,
        ):
            target.write(source.read())
