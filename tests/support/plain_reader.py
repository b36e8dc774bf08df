"""Reads a checkpoint as docs/checkpoints.md describes it, with nothing of the program: numpy, and the safetensors library.

python plain_reader.py RUN/checkpoints/step_00000200 [PARAMETER]
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open


def read_parameter(folder: Path, name: str, kind: str = "weight") -> np.ndarray:
    manifest = json.loads((folder / "manifest.json").read_text())
    shape = manifest["parameters"][name]
    whole = np.full(int(np.prod(shape)), np.nan, dtype=np.float32)
    for file, facts in manifest["files"].items():
        for key, (ranks, rank, block, start, length) in facts["fragments"].items():
            if key.partition("#")[0] != name:
                continue
            with safe_open(folder / file, framework="numpy") as tensors:
                numbers = tensors.get_tensor(f"{kind}/{key}")
            here = np.arange(start, start + length)  # in what the tensor-parallel rank holds
            whole[(here // block * ranks + rank) * block + here % block] = numbers
    assert not np.isnan(whole).any(), f"{name} is not complete"
    return whole.reshape(shape)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = sys.argv[2:] or json.loads((folder / "manifest.json").read_text())["parameters"]
    for name in names:
        weight = read_parameter(folder, name)
        print(f"{name}: {weight.shape}, norm {np.linalg.norm(weight):.6f}")
