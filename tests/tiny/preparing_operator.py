"""An operator for tests of early starts, with our driver. It tells when it was prepared, copies, tells its GPUs.

PREPARE may be `fail`: its prepare handler fails as long as no input is there.
"""

import os
import pathlib

from clara_flow.operators.sdk import Driver, Payload


def prepare(driver: Driver) -> bool:
    source = pathlib.Path(driver._stage_job.inputs[0].path)
    driver.report("prepared", {"pid": os.getpid(), "had_input": source.exists()})
    print("prepared", flush=True)
    return os.environ.get("PREPARE") != "fail" or source.exists()


def execute(driver: Driver, payload: Payload) -> None:
    target = pathlib.Path(payload.output_entries[0].path)
    for entry in payload.input_entries:
        for path in sorted(pathlib.Path(entry.path).iterdir()):
            (target / f"{entry.source}{path.name}").write_bytes(path.read_bytes() + b"prepared\n")
    (target / "gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    print("executed", flush=True)


if __name__ == "__main__":
    with Driver(execute, prepare):
        pass
