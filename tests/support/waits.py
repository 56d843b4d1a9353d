"""Tensors that pretend to lie on a GPU, and what on a GPU would make the host wait for them.

They are computed on the CPU, but say that they are on `cuda:0`, so that code takes the branches it would take there. A
mode sees every operation below Python: what reads a value or a size that only the device knows is a wait, and so is a
copy between host and device that is not marked `non_blocking` (`torch.tensor(numbers, device=...)` is one). What would
fail on a GPU, because it mixes both, fails here.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import foveal

SOURCE, LIBRARY = (str(Path(module.__file__).parent) for module in (foveal, transformers))
GPU = torch.device("cuda", 0)
aten = torch.ops.aten

# On a GPU these end with a transfer to the host: of a value, or of the size of what they return.
READING = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.isin,  # sorts, and waits, where there is much to look for
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._unsafe_index_put}


class OnDevice(Tensor):
    """Wraps a CPU tensor; torch's own code takes it for one without data."""

    held: Tensor
    is_cpu = False
    is_cuda = True
    is_meta = False
    device = property(lambda self: GPU)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of a watched block")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, specification: str) -> str:
        return format(self.cpu(), specification)


class Waits(TorchDispatchMode):
    """Counts what waits, by the function of Foveal's that does; "" stands for the model's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        # Lets tensors be made on a device that is not there.
        self._no_devices = FakeTensorMode()

    def __enter__(self) -> Waits:
        self._no_devices.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._no_devices.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
        target = kwargs.get("device")
        goes_to_device = on_device if target is None else torch.device(target).type != "cpu"
        if waits(function, args, kwargs, on_device, goes_to_device):
            self.found[place()] += 1
        if target is not None:
            kwargs["device"] = "cpu"
        with _disable_current_modes():
            made = function(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
        return tree_map(wrapped, made) if goes_to_device else made


def waits(function: Any, args: Any, kwargs: dict[str, Any], on_device: bool, goes_to_device: bool) -> bool:
    """Whether an operation would make the host wait.

    Raises:
        AssertionError: it would fail, for it mixes tensors on host and device.
    """
    packet = function.overloadpacket
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if packet is aten._to_copy:
        return on_device != goes_to_device and not (goes_to_device and kwargs.get("non_blocking"))
    if not on_device:
        return False
    if packet in INDEXING:
        indices = [index for index in args[1] if index is not None]
        return any(not isinstance(i, OnDevice) or i.dtype in (torch.bool, torch.uint8) for i in indices)
    if packet is aten.copy_:
        return bool(on_host)
    assert all(tensor.ndim == 0 for tensor in on_host), f"{function} mixes host and device"
    copies = packet is aten.where and bool(on_host)
    counts = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    return copies or counts or packet in READING


def place() -> str:
    """Who asked, the innermost of Foveal and transformers: Foveal's file:function, or "" for the model's own code."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith((SOURCE, LIBRARY)):
            return f"{Path(file).name}:{frame.f_code.co_name}" if file.startswith(SOURCE) else ""
        frame = frame.f_back
    return ""


def wrapped(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) else value


def unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def on_device(model: nn.Module) -> nn.Module:
    """Move a model there, for good."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = OnDevice(parameter.detach())
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return model
