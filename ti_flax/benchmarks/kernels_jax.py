"""What a step of the UNet is made of, each alone in JAX, ready to be timed."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ti_flax.aot import flops
from ti_flax.benchmarks import work
from ti_flax.benchmarks.keys import KernelKeys
from ti_flax.models import attention, layers, unet
from ti_flax.models.random_params import random_weights
from ti_flax.runtime import sharding
from ti_flax.runtime.errors import UserError
from ti_flax.step.abstract import abstract

KEYS = KernelKeys
# Long enough for the clock, and for what a dispatch costs, not to count.
_LEAST_SECONDS = 0.2
_TEXT_TOKENS = 77


class Kernel(NamedTuple):
    """One operation at one shape, and how often a forward pass of the UNet has it."""

    kind: str
    # Whose call it is; of `layers.Attention` what comes between its projections.
    module: nn.Module
    # Of what it reads, weights aside.
    shapes: tuple[tuple[int, ...], ...]
    calls: int


def find(network: unet.UNet, examples: int, side: int) -> dict[str, Kernel]:
    """The kernels of a UNet at latents of `side` x `side`, by a name that is unique."""
    found: dict[str, Kernel] = {}

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__":
            described = _describe(context.module, *args)
            if described is not None:
                name, kind, shapes = described
                calls = found[name].calls if name in found else 0
                module = context.module.clone(parent=None, name=None)
                found[name] = Kernel(kind, module, shapes, calls + 1)
        return call(*args, **kwargs)

    config = network.config
    with nn.intercept_methods(note):
        jax.eval_shape(
            network.init,
            jax.random.key(0),
            jnp.zeros((examples, side, side, config.in_channels)),
            jnp.zeros(examples, jnp.int32),
            jnp.zeros((examples, _TEXT_TOKENS, config.cross_attention_dim)),
        )
    return found


def _describe(
    module: nn.Module, x: jax.Array, context: Any = None, *_: Any
) -> tuple[str, str, tuple] | None:
    """Name, kind and shapes of a module's call; none for what is made of others."""
    size = " x ".join(map(str, x.shape[1:-1]))
    tokens = math.prod(x.shape[1:-1])
    rows = (x.shape[0], tokens, x.shape[-1])
    match module:
        case nn.Conv():
            window = " x ".join(map(str, module.kernel_size))
            stride = "" if module.strides == 1 else f" of stride {module.strides}"
            channels = f"{x.shape[-1]} to {module.features}"
            name = f"convolution {window}{stride}, {size}, {channels}"
            return name, "convolutions", (x.shape,)
        case nn.Dense():
            name = f"product, {tokens}, {x.shape[-1]} to {module.features}"
            return name, "products", (rows,)
        case nn.GroupNorm():
            return f"group norm, {size}, {x.shape[-1]}", "norms", (x.shape,)
        case nn.LayerNorm():
            return f"layer norm, {tokens}, {x.shape[-1]}", "norms", (rows,)
        case layers.Attention():
            keys = tokens if context is None else context.shape[1]
            width = module.heads * module.head_dim
            q, k = (x.shape[0], tokens, width), (x.shape[0], keys, width)
            heads = f"{module.heads} heads of {module.head_dim}"
            return f"attention, {tokens} to {keys}, {heads}", "attention", (q, k, k)
    return None


def prepare(
    keys: KernelKeys,
) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Facts of the kernels, and a function that takes a turn: seconds of each.

    Where we do not leave a kernel to XLA, its facts have the seconds of XLA's own.
    """
    mesh = sharding.make_mesh()
    if keys.train_batch_size % mesh.size:
        raise UserError(
            f"train_batch_size: kernels of {keys.train_batch_size} examples cannot be "
            f"split over {mesh.size} devices; use a multiple of {mesh.size}"
        )
    plan = attention.make_plan(keys.attention, mesh)
    model = work.open_model(keys, plan)
    kernels = find(
        model.family.denoiser.module,
        keys.train_batch_size,
        work.latent_side(keys, model),
    )
    run, facts = {}, {}
    for name, kernel in kernels.items():
        ours = _function(kernel, plan)
        xlas = _function(kernel, None)
        arguments = _arguments(kernel, model.family.denoiser.module.dtype, mesh)
        run[name] = _repeated(ours, arguments)
        facts[name] = {
            "kind": kernel.kind,
            "calls": kernel.calls,
            "flops": flops.count(functools.partial(_with_gradient, xlas), *arguments),
            "seconds": {},
        }
        if kernel.kind in ("attention", *_XLAS):
            # Once: in bfloat16 on a CPU all of them take minutes.
            facts[name]["seconds"]["XLA"] = _repeated(xlas, arguments)()
    return {
        "library": f"jax {jax.__version__}",
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "dtype": jnp.dtype(model.family.denoiser.module.dtype).name,
        "peak_flops": mesh.size * work.peak_flops(model.family.denoiser.module.dtype),
        "kernels": facts,
    }, lambda: {name: take_turn() for name, take_turn in run.items()}


# Settings of a module by which what we compute otherwise is XLA's own, by its kind.
_XLAS = {
    "convolutions": {"conv_general_dilated": None},
    "products": {"dot_general": None},
}


def _function(kernel: Kernel, plan: attention.Plan | None) -> Callable[..., jax.Array]:
    """The kernel as a function of weights and inputs; without a plan it is XLA's."""
    module = kernel.module
    if kernel.kind == "attention":
        plan = plan or attention.Plan("plain")

        def attend(_: Mapping, *inputs: jax.Array) -> jax.Array:
            split = (x.reshape(*x.shape[:2], module.heads, -1) for x in inputs)
            return attention.attend(*split, plan).reshape(inputs[0].shape)

        return attend
    if plan is None:
        module = module.clone(**_XLAS.get(kernel.kind, {}))
    return lambda params, x: module.apply({"params": params}, x)


def _arguments(kernel: Kernel, dtype: Any, mesh: jax.sharding.Mesh) -> tuple:
    """Weights, inputs, and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), len(kernel.shapes) + 1)
    inputs = [
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, kernel.shapes, strict=False)
    ]
    params = {}
    if kernel.kind != "attention":
        shapes = jax.eval_shape(kernel.module.init, keys[0], *inputs)["params"]
        everywhere = sharding.replicated(mesh)
        params = random_weights(abstract(shapes, everywhere))
    out = jax.eval_shape(_function(kernel, None), params, *inputs)
    d_out = jax.random.normal(keys[-1], out.shape, out.dtype)
    place = sharding.over_examples(mesh)
    return params, jax.device_put(tuple(inputs), place), jax.device_put(d_out, place)


def _with_gradient(
    function: Callable, params: Any, inputs: tuple, d_out: jax.Array
) -> tuple[jax.Array, tuple]:
    out, pull = jax.vjp(functools.partial(function, params), *inputs)
    return out, pull(d_out)


def _repeated(function: Callable, arguments: tuple) -> Callable[[], float]:
    """Times the function and its gradient to the inputs, in a loop as training's is."""

    @jax.jit
    def repeat(times: jax.Array, params: Any, inputs: tuple, d_out: jax.Array) -> Any:
        def body(i: jax.Array, _: Any) -> Any:
            # What does not depend on the loop would be computed before it.
            _, own, d_own = jax.lax.optimization_barrier((i, inputs, d_out))
            return _with_gradient(function, params, own, d_own)

        return jax.lax.fori_loop(0, times, body, (d_out, inputs))

    def timed(times: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(repeat(times, *arguments))
        return (time.perf_counter() - began) / times

    return long_enough(timed)


def long_enough(timed: Callable[[int], float]) -> Callable[[], float]:
    """A turn of so many calls that their time can be told; `timed` takes how many."""
    timed(1)
    times = math.ceil(_LEAST_SECONDS / timed(1))

    def take_turn() -> float:
        timed(1)
        return timed(times)

    return take_turn
