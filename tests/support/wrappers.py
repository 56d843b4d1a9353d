"""What wraps models in the tests of wrappers: devices that this machine does not have, and processes that train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import foveal
from support import families
from support.families import ALL, Inputs

FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")  # torch itself takes both for the CPU
STAGES = [foveal.Random(keep=0.6, layer=0), foveal.FastV(keep=0.5, layer=2), foveal.DART(keep=1, layer=4)]


# ---------------------------------------------------------------------- devices


class Devices(TorchFunctionMode):
    """Pretend that there are several devices.

    As on real ones, tensors have to be moved with `.to()`, an operation on tensors of two devices fails (but for plain
    numbers, and indices on the CPU), and results are where the operands are.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__self__", None) is Tensor.device:
            return place_of(args[0])
        if function is Tensor.to:
            return _moved(*args, **kwargs)
        device = _common_device(function, args, kwargs)
        if kwargs.get("device") is not None:
            device, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": "cpu"}
        return placed(function(*args, **kwargs), device)


def place_of(tensor: Tensor) -> torch.device:
    """The device a tensor pretends to be on."""
    return getattr(tensor, "pretended", torch.device("cpu"))


def placed(tree: Any, device: torch.device) -> Any:
    """Let all tensors of a tree pretend to be on a device, in place."""

    def place(tensor: Any) -> Any:
        tensor.pretended = device
        return tensor

    return tree_map_only(Tensor, place, tree)


_TO_HOST = (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


def _common_device(function: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    cpu = torch.device("cpu")
    if function in _TO_HOST or not tensors:
        return cpu
    places = {place_of(tensor) for tensor in tensors if tensor.ndim} or {place_of(tensors[0])}
    if function in _INDEXING and place_of(args[0]) != cpu:
        places.discard(cpu)
    if len(places) > 1 and function is not Tensor.copy_:
        raise RuntimeError(f"{function.__name__} of tensors on {sorted(map(str, places))}")
    return place_of(tensors[0]) if function is Tensor.copy_ else places.pop()


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    asked = [*args, kwargs.get("device"), kwargs.get("dtype")]
    like = [x for x in asked if isinstance(x, Tensor)]
    dtypes = [x for x in asked if isinstance(x, torch.dtype)] + [x.dtype for x in like]
    devices = [torch.device(x) for x in asked if isinstance(x, str | torch.device)] + [*map(place_of, like)]
    home = place_of(tensor)
    target = devices[0] if devices else home
    found = tensor.to(dtypes[0]) if dtypes else tensor
    return placed(found.clone() if target != home or kwargs.get("copy") else found, target)


def spread(model: Any, cut: int, tower: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let accelerate distribute a model: decoder layers from `cut` on, and what is behind, go to the second device.

    Args:
        model: a vision-language model.
        cut: the first decoder layer on the second device.
        tower: home of the vision tower and the projector.
        monkeypatch: pytest's.
    """

    def place(hook: AlignDevicesHook, module: nn.Module) -> nn.Module:
        # Accelerate would exchange the parameters, and the new ones would not pretend.
        for owner in module.modules() if hook.place_submodules else [module]:
            placed(dict(vars(owner)), torch.device(hook.execution_device))
        return module

    monkeypatch.setattr(AlignDevicesHook, "init_hook", place)
    decoder, names = model.get_decoder(), blocks(model)
    homes = dict.fromkeys(names, FIRST) | {
        module: tower for module in model.base_model.children() if module in names
    }
    homes |= dict.fromkeys([*list(decoder.layers)[cut:], decoder.norm, model.lm_head], SECOND)
    return dispatch_model(
        model,
        {names[module]: str(home) for module, home in homes.items()},
        main_device=str(FIRST),
        skip_keys=model._skip_keys_device_placement,
    )


def blocks(model: Any) -> dict[nn.Module, str]:
    """The names of the modules that a device map tells apart."""
    decoder, layers = model.get_decoder(), model.get_decoder().layers
    found = {*model.base_model.children(), *decoder.children(), *layers, model.lm_head} - {decoder, layers}
    return {module: name for name, module in model.named_modules() if module in found}


# ---------------------------------------------------------------------- training


Step = tuple[float, dict[str, Tensor]]


def labels_of(inputs: Inputs) -> Tensor:
    """Labels on the last two words of each sample."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    return labels


def backward(called: Any, model: nn.Module, inputs: Inputs) -> Step:
    """One step through `called`: the loss, and the gradients of the model inside."""
    model.zero_grad(set_to_none=True)
    loss = called(**inputs, labels=labels_of(inputs), use_cache=False).loss
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the gradients by name, whole where the parameters are sharded."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: _whole(grad).clone() for name, grad in found.items()}


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def step_difference(step: Step, reference: Step) -> float:
    """The largest difference of loss and gradients."""
    (loss, found), (expected, gradient) = step, reference
    assert found.keys() == gradient.keys()
    assert any(grad.abs().max() > 1e-6 for grad in found.values()), "no gradient: this test is blind"
    differences = [float((found[name] - gradient[name]).abs().max()) for name in gradient]
    return max(abs(loss - expected), *differences)


# ---------------------------------------------------------------------- processes


def trainable(family: str, attention: str = "sdpa") -> Any:
    """The family's tiny model, all but what sees images, and what no loss reaches, ready to be trained."""
    model = ALL[family].build(6, attention).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name or "lm_head" in name)
    return model


def shard(model: Any, *also: nn.Module) -> Any:
    """Shard each decoder layer, the modules named `also`, and the rest of the decoder and head, in place.

    What sees images stays whole: generate runs it outside of the forward that gathers the sharded weights.
    """
    whole = {
        p for name, p in model.named_parameters() if "language_model" not in name and "lm_head" not in name
    }
    for module in [*also, *model.get_decoder().layers]:
        fully_shard(module)
    return fully_shard(model, ignored_params=whole)


@contextmanager
def processes(store: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Be one of several processes that meet at a file."""
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), world), rank=rank, world_size=world
    )
    try:
        yield
        distributed.barrier()  # one that leaves while the other still talks to it may abort at its end
    finally:
        distributed.destroy_process_group()


def in_each_of_two(rank: int, folder: Path) -> None:
    """A process of two: train with DDP and FSDP2 on samples of its own, and compare with all samples in one."""
    batches = [families.batch("llava", [1], [9], seed=0), families.batch("llava", [1, 2], [5, 7], seed=1)]
    wrappers: dict[str, Callable[[Any], Any]] = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": shard}
    found = {}
    with processes(folder / "store", rank, 2):
        for name, wrap in wrappers.items():
            model = trainable("llava")
            with foveal.compress(model, STAGES):
                alone = [backward(model, model, inputs) for inputs in batches]
                tokens = written(model, batches[rank])
            mean = {key: torch.stack([step[1][key] for step in alone]).mean(dim=0) for key in alone[0][1]}
            wrapped = wrap(model)
            with foveal.compress(wrapped, STAGES):
                step = backward(wrapped, model, batches[rank])
                assert torch.equal(written(model, batches[rank]), tokens)
            found[name] = step_difference(step, (alone[rank][0], mean))
    torch.save(found, folder / f"found-{rank}")


def written(model: Any, inputs: Inputs) -> Tensor:
    """What the model in training generates."""
    model.eval()
    tokens: Tensor = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model.train()
    return tokens
