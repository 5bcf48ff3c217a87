"""An operator for tests of the DICOM adapter: a result for each instance, with nothing but the manifest.

Every file of its inputs goes to its output with `RECEIVED` in its SOP Instance UID replaced by `PRODUCED`, which is as
long: the same instance gives the same result, however often it is made.
"""

import json
import os
import pathlib

RECEIVED, PRODUCED = b"1.2.826.0.1.3680043.10.543.1.", b"1.2.826.0.1.3680043.10.543.2."


def main() -> None:
    manifest = json.loads(pathlib.Path(os.environ["CLARA_IO_MANIFEST"]).read_text())
    target = pathlib.Path(manifest["outputs"][0]["path"])
    number = 0
    for entry in manifest["inputs"]:
        for path in sorted(pathlib.Path(entry["path"]).rglob("*.dcm")):
            number += 1
            (target / f"{number}.dcm").write_bytes(path.read_bytes().replace(RECEIVED, PRODUCED))


if __name__ == "__main__":
    main()
