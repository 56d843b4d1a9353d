"""What wraps models in the tests of wrappers, above all devices that this machine does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")  # torch itself computes on both as on "cpu"


def place_of(tensor: Tensor) -> torch.device:
    """The device a tensor pretends to be on."""
    return getattr(tensor, "pretended", CPU)


def placed(tree: Any, device: torch.device) -> Any:
    """Let all tensors of a tree pretend to be on this device, from now on and in place."""

    def place(tensor: Tensor) -> Tensor:
        tensor.pretended = device  # type: ignore[attr-defined]
        return tensor

    return tree_map_only(Tensor, place, tree)


class Devices(TorchFunctionMode):
    """Pretend that there are several devices.

    As on real ones, tensors have to be moved with `.to()`, an operation on two devices fails (but for numbers, and
    index tensors of the CPU), and results are where the operands are.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__self__", None) is Tensor.device:
            return place_of(args[0])
        if function is Tensor.to:
            return _moved(*args, **kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            kwargs = {**kwargs, "device": CPU}
        device = _common_device(function, args, kwargs)
        return placed(function(*args, **kwargs), torch.device(asked) if asked is not None else device)


_TO_HOST = (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy)
_ANYWHERE = (*_TO_HOST, Tensor.copy_)


def _common_device(function: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if function in _TO_HOST or not tensors:
        return CPU
    places = {place_of(tensor) for tensor in tensors if tensor.ndim}
    if function in (Tensor.__getitem__, Tensor.__setitem__) and place_of(args[0]) != CPU:
        places.discard(CPU)
    if len(places) > 1 and function not in _ANYWHERE:
        raise RuntimeError(f"{function.__name__} of tensors on {sorted(map(str, places))}")
    return place_of(tensors[0]) if function in _ANYWHERE or not places else places.pop()


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    asked = [*args, kwargs.get("device"), kwargs.get("dtype")]
    like = [x for x in asked if isinstance(x, Tensor)]
    dtypes = [x for x in asked if isinstance(x, torch.dtype)] + [x.dtype for x in like]
    devices = [torch.device(x) for x in asked if isinstance(x, str | torch.device)] + [*map(place_of, like)]
    found = tensor.to(dtypes[0]) if dtypes else tensor
    moves = bool(devices) and devices[0] != place_of(tensor)
    if moves or kwargs.get("copy"):
        found = found.clone()
    return placed(found, devices[0] if moves else place_of(tensor))


def spread(model: Any, cut: int, tower: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let accelerate distribute a model: decoder layers from `cut` on, and all behind them, are on the second device.

    Args:
        model: a vision-language model.
        cut: the first layer on the second device.
        tower: device of the vision tower and the projector.
        monkeypatch: pytest's.
    """

    def place(hook: AlignDevicesHook, module: nn.Module) -> nn.Module:
        """Instead of exchanging parameters, which would lose what they pretend."""
        for owner in module.modules() if hook.place_submodules else [module]:
            placed(dict(vars(owner)), torch.device(hook.execution_device))
        return module

    monkeypatch.setattr(AlignDevicesHook, "init_hook", place)
    homes = _homes(model, cut, tower)
    names = {module: name for name, module in model.named_modules()}
    return dispatch_model(
        model,
        {names[module]: str(device) for module, device in homes.items()},
        main_device=str(FIRST),
        skip_keys=model._skip_keys_device_placement,
    )


def _homes(model: Any, cut: int, tower: torch.device) -> dict[nn.Module, torch.device]:
    decoder = model.get_decoder()
    layers = list(decoder.layers)
    homes = dict.fromkeys(model.base_model.children(), tower)
    homes |= dict.fromkeys([*decoder.children(), *layers[:cut]], FIRST)
    homes |= dict.fromkeys([*layers[cut:], decoder.norm, model.lm_head], SECOND)
    return {module: home for module, home in homes.items() if module not in (decoder, decoder.layers)}
