"""What tensors take, counted as they come and go."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that were made inside, `now` and at their `peak`; views of others do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.new_storages((args, kwargs))
        found = func(*args, **(kwargs or {}))
        for storage in self.new_storages(found):
            self.now += storage.nbytes()
            weakref.finalize(storage, self.gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return found

    def new_storages(self, values: object) -> list[torch.UntypedStorage]:
        """Return those that have not been seen before."""
        found = {leaf.untyped_storage()._cdata: leaf.untyped_storage() for leaf in tree_leaves(values) if torch.is_tensor(leaf)}
        new = {key: storage for key, storage in found.items() if key not in self.seen}
        self.seen.update(new)
        return list(new.values())

    def gone(self, size: int) -> None:
        self.now -= size
