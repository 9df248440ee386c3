"""How much tensor memory a function holds at its peak."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveStorages(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An argument that was not seen before is older than the function, and not its own.
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor, new=True)
        return result

    def meet(self, tensor: torch.Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes() if new else 0
        weakref.finalize(storage, self._forget, key)
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def peak_tensor_bytes(fn: Callable[[], object], held: Iterable[torch.Tensor] = ()) -> int:
    """The most bytes of tensors made in ``fn`` that were alive at once, in forward and backward; of older tensors only those in
    ``held`` count.

    Counts what torch's operators return, also under ``FakeTensorMode`` (entered before, or inside): what a kernel or a custom
    operator needs for itself meanwhile is not seen.
    """
    with _LiveStorages() as live:
        for tensor in held:
            live.meet(tensor, new=True)
        result = fn()
    del result
    return live.peak
