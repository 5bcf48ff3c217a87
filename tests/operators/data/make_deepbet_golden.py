"""Makes `deepbet_golden.npz`: what deepbet itself, on torch, gives. See README.md; run by hand, in an own environment.

python make_deepbet_golden.py COLIN27.nii.gz MNI152.nii.gz
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from deepbet import BrainExtraction

GOLDEN = Path(__file__).with_name("deepbet_golden.npz")


def wave(side: int) -> np.ndarray:
    """float32 (side,) * 3: the same test image on every machine, in the intensities that the networks know."""
    x, y, z = np.meshgrid(*[np.arange(side, dtype=np.float64)] * 3, indexing="ij")
    return (0.449 + 0.226 * np.sin(x / 7) * np.cos(y / 5 + z / 3)).astype(np.float32)


def main() -> None:
    """Write the golden file."""
    bet = BrainExtraction(no_gpu=True)
    golden: dict[str, np.ndarray] = {}
    for name, network, side in (("bbox_model", bet.bbox_model, 128), ("model", bet.model, 256)):
        with torch.no_grad():
            probability = network(torch.from_numpy(wave(side))[None, None])[0, 1].numpy()
        step = side // 16
        golden[f"{name}_wave"] = probability[::step, ::step, ::step]
    for name, path in (("colin27", sys.argv[1]), ("mni152", sys.argv[2])):
        _, mask, _ = bet.run(path)
        array = np.asarray(nib.as_closest_canonical(mask).dataobj).T > 0  # (slice, row, column), towards S, A, R
        packed = lzma.compress(np.packbits(array).tobytes(), preset=9)
        golden[f"{name}_shape"] = np.array(array.shape)
        golden[f"{name}_mask"] = np.frombuffer(packed, np.uint8)
    np.savez(GOLDEN, **golden)


if __name__ == "__main__":
    main()
