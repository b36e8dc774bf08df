"""Any stretch of any parameter, from a checkpoint written on any layout."""

from pathlib import Path

import numpy as np

from pretrain.checkpoint.fragments import Fragment, Split, common
from pretrain.checkpoint.manifest import Manifest, parameter_of
from pretrain.checkpoint.tensors import TensorFile
from pretrain.optim.names import TENSORS

MOST_OPEN = 64
"""Files; processes may open some thousand, and a checkpoint may have more."""


class Reader:
    """An opened checkpoint. Reads what is asked for and little else; nothing in a file is ever run."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._opened: dict[str, TensorFile] = {}
        self._where: dict[str, list[tuple[str, str, Fragment]]] = {}
        for file, facts in manifest.files.items():
            for key in facts.fragments:
                self._where.setdefault(parameter_of(key), []).append((file, key, facts.fragment(key)))

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._opened.values():
            file.close()

    def read(self, name: str, kind: str, wanted: Fragment, target: np.ndarray) -> None:
        """A fragment of parameter `name` into `target`, a vector of fp32.

        Args:
            kind: weight, exp_avg or exp_avg_sq.

        Raises:
            ValueError: the checkpoint lacks some of it, or a file is not what the manifest says.
        """
        found = 0
        for file, key, fragment in self._where.get(name, ()):
            overlap = common(fragment, wanted)
            if overlap.total:
                self._open(file, key, fragment).copy(f"{kind}/{key}", overlap, target)
                found += overlap.total
        if found != wanted.length:
            raise ValueError(f"holds {found} of {wanted.length} numbers of {name} that are needed")

    def whole(self, name: str, kind: str = "weight") -> np.ndarray:
        """A parameter in full, in its shape."""
        if name not in self.manifest.parameters:
            raise ValueError(f"has no parameter {name}")
        shape = self.manifest.parameters[name]
        numbers = np.empty(int(np.prod(shape)), dtype=np.float32)
        self.read(name, kind, Fragment(Split.whole(shape), 0, len(numbers)), numbers)
        return numbers.reshape(shape)

    def _open(self, file: str, key: str, fragment: Fragment) -> TensorFile:
        opened = self._opened.pop(file, None) or TensorFile.open(self.folder / file)
        self._opened[file] = opened  # the one used last stands last
        if len(self._opened) > MOST_OPEN:
            self._opened.pop(next(iter(self._opened))).close()
        if any(opened.places.get(f"{kind}/{key}", (0, -1))[1] != fragment.length for kind in TENSORS):
            raise ValueError(f"{file}: {key} has not the length that the manifest gives")
        return opened
