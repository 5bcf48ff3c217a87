"""Copies the files of all inputs to the output: the least that an operator can do.

NOOP_STAMP  name of a file in the output that tells when it began, Unix time.
"""

import json
import os
import shutil
import time

started = time.time()
with open(os.environ["CLARA_IO_MANIFEST"]) as stream:  # noqa: PTH123  pathlib alone would double the start-up
    manifest = json.load(stream)
if stamp := os.environ.get("NOOP_STAMP"):
    with open(f"{manifest['outputs'][0]['path']}/{stamp}", "w") as stream:  # noqa: PTH123
        stream.write(str(started))
for entry in manifest["inputs"]:
    for name in os.listdir(entry["path"]):  # noqa: PTH208
        shutil.copyfile(f"{entry['path']}/{name}", f"{manifest['outputs'][0]['path']}/{name}")
