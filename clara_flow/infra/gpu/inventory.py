"""The GPUs of this node, through NVML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. `uuid` is what containers and CUDA_VISIBLE_DEVICES take; memory in MiB."""

    index: int
    uuid: str
    name: str
    memory_mib: int


def list_gpus() -> tuple[Gpu, ...]:
    """All GPUs that the driver shows, in its order; none where there is no driver or no device."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(
                    index=index,
                    uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                    name=str(pynvml.nvmlDeviceGetName(handle)),
                    memory_mib=int(memory.total) // 2**20,
                )
            )
        return tuple(gpus)
    finally:
        pynvml.nvmlShutdown()
