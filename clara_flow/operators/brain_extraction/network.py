"""The two networks, run by onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clara_flow.operators.brain_extraction.extraction import Network

NVIDIA_DEVICE = Path("/dev/nvidiactl")
"""There when the driver of an NVIDIA GPU serves this process."""


def load_network(path: Path, *, threads: int) -> Network:
    """A model file made by `prepare_model`, ready to run: float32 (side,) * 3 -> float32 (side,) * 3.

    threads     CPU threads; the same number gives the same bytes again.
    Runs on the GPU when onnxruntime has its CUDA provider and a GPU is visible, otherwise on the CPU.
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()  # nothing leaves a hospital unasked
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.enable_cpu_mem_arena = False  # the arena holds a third more memory than the largest layers need
    session = ort.InferenceSession(path, options, providers=_providers(ort.get_available_providers()))

    def run(image: np.ndarray) -> np.ndarray:
        (probability,) = session.run(["probability"], {"image": image[np.newaxis, np.newaxis]})
        return np.asarray(probability[0, 1])  # class 1 is brain

    return run


def requested_threads() -> int:
    """CPU cores that the platform gave this operator (`CLARA_CPU`); 1 when it does not say.

    Raises ValueError where the variable is no whole number.
    """
    text = os.environ.get("CLARA_CPU") or "1"
    if not text.isdecimal():
        raise ValueError(f"CLARA_CPU must be a whole number of cores, found {text!r}")
    return max(1, int(text))


def _providers(available: list[str]) -> list[str | tuple[str, dict[str, str]]]:
    cpu = "CPUExecutionProvider"
    if "CUDAExecutionProvider" in available and NVIDIA_DEVICE.exists():
        return [("CUDAExecutionProvider", {"use_tf32": "0"}), cpu]  # TF32 keeps three digits only
    return [cpu]
