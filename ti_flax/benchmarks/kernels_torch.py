"""The kernels of a step of the UNet, each alone in PyTorch, ready to be timed."""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import torch
from torch import Tensor

from ti_flax.benchmarks import kernels_jax, step_torch, work
from ti_flax.benchmarks.keys import KernelKeys
from ti_flax.models import attention

KEYS = KernelKeys


def prepare(
    keys: KernelKeys,
) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Facts, and a function that takes a turn: seconds of each kernel."""
    model = work.open_model(keys, attention.Plan("plain"))
    kernels = kernels_jax.find(
        model.family.denoiser.module,
        keys.train_batch_size,
        work.latent_side(keys, model),
    )
    device, dtype = step_torch.place(keys)
    run = {name: _repeated(each, device, dtype) for name, each in kernels.items()}
    return {"library": f"PyTorch {torch.__version__}"}, lambda: {
        name: take_turn() for name, take_turn in run.items()
    }


def _function(
    module: nn.Module, channels: int, make: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """The kernel as a function of its inputs; `make` draws weights of a shape."""
    match module:
        case nn.Conv():
            kernel = make(module.features, channels, *module.kernel_size)
            p = {"kernel": kernel, "bias": make(module.features)}
            return lambda x: step_torch.conv(p, x, module.strides)
        case nn.Dense():
            p = {"kernel": make(module.features, channels)}
            if module.use_bias:
                p["bias"] = make(module.features)
            return lambda x: step_torch.dense(p, x)
        case nn.GroupNorm():
            p = {"scale": make(channels), "bias": make(channels)}
            groups, eps = module.num_groups, module.epsilon
            return lambda x: step_torch.group_norm(p, x, groups, eps)
        case nn.LayerNorm():
            p = {"scale": make(channels), "bias": make(channels)}
            return lambda x: step_torch.layer_norm(p, x, module.epsilon)
    return lambda *inputs: step_torch.attention(*inputs, heads=module.heads)


def _repeated(
    kernel: kernels_jax.Kernel, device: torch.device, dtype: torch.dtype
) -> Callable[[], float]:
    """Times the kernel and its gradient to the inputs."""

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    function = _function(kernel.module, kernel.shapes[0][-1], make)
    # Channels of pictures come first in PyTorch.
    inputs = [
        make(shape[0], shape[-1], *shape[1:-1]) if len(shape) == 4 else make(*shape)
        for shape in kernel.shapes
    ]
    for each in inputs:
        each.requires_grad_()
    d_out = torch.randn_like(function(*inputs))

    def timed(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            torch.autograd.grad(function(*inputs), inputs, d_out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    return kernels_jax.long_enough(timed)
