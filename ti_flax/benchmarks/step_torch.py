"""The same step in PyTorch, written from the formulae, for the benchmark to compare.

Networks are functions of a tree of tensors with Flax's names and PyTorch's layouts.
`script` adds what diffusers' textual_inversion.py does besides in every step: encoding
the pictures, and an optimizer over the whole table whose other rows are then restored.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from jax.sharding import Mesh
from torch import Tensor
from torch.nn import functional as F

from ti_flax.benchmarks import random_run, work
from ti_flax.benchmarks.keys import StepKeys, WorkKeys
from ti_flax.models import attention as attention_plans
from ti_flax.models import clip_text, unet_config, vae
from ti_flax.models.base_model import BaseModel
from ti_flax.models.family import Family, TextEncoder
from ti_flax.models.random_params import constant_or_std
from ti_flax.models.torch_params import param_shapes
from ti_flax.runtime import profile, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.step import train_step
from ti_flax.step.abstract import frozen_shapes

KEYS = StepKeys

Tree = Mapping[str, Any]

_ACTIVATIONS = {
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def conv(p: Tree, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, p["kernel"], p["bias"], stride, p["kernel"].shape[-1] // 2)


def dense(p: Tree, x: Tensor) -> Tensor:
    return F.linear(x, p["kernel"], p.get("bias"))


def layer_norm(p: Tree, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps)


def group_norm(p: Tree, x: Tensor, groups: int, eps: float) -> Tensor:
    return F.group_norm(x, groups, p["scale"], p["bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **settings: Any) -> Tensor:
    split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*split, **settings)
    return out.transpose(1, 2).flatten(2)


def read(
    p: Tree, words: Tensor, config: clip_text.ClipTextConfig
) -> tuple[Tensor, Tensor]:
    """The text encoder, from embedded words: last state but one, and last, normed."""
    x = before = words + p["embeddings"]["position_embedding"]["embedding"]
    for i in range(config.num_hidden_layers):
        before = x
        layer = p["encoder"][f"layers_{i}"]
        own = layer["self_attn"]
        h = layer_norm(layer["layer_norm1"], x, config.layer_norm_eps)
        projected = (dense(own[f"{name}_proj"], h) for name in "qkv")
        heads = config.num_attention_heads
        x = x + dense(own["out_proj"], attention(*projected, heads, is_causal=True))
        h = layer_norm(layer["layer_norm2"], x, config.layer_norm_eps)
        h = _ACTIVATIONS[config.hidden_act](dense(layer["mlp"]["fc1"], h))
        x = x + dense(layer["mlp"]["fc2"], h)
    return before, layer_norm(p["final_layer_norm"], x, config.layer_norm_eps)


def tell(
    params: Mapping[str, Tree],
    words: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    encoders: Sequence[TextEncoder],
) -> tuple[Tensor, ...]:
    """What the UNet is told: context, and of SDXL pooled text and sizes."""
    states = [
        read(params[each.name], words[each.name], each.module.config)
        for each in encoders
    ]
    if len(encoders) == 1:
        return (states[0][1],)
    second = encoders[1]
    ends = (batch["ids"][second.name] == second.module.eos).int().argmax(1)
    last = states[1][1][torch.arange(len(ends), device=ends.device), ends]
    pooled = dense(params[second.name]["text_projection"], last)
    return torch.cat([hidden for hidden, _ in states], dim=-1), pooled, batch["sizes"]


def resnet(
    p: Tree, x: Tensor, groups: int, eps: float, time: Tensor | None = None
) -> Tensor:
    h = conv(p["conv1"], F.silu(group_norm(p["norm1"], x, groups, eps)))
    if time is not None:
        h = h + dense(p["time_emb_proj"], F.silu(time))[:, :, None, None]
    h = conv(p["conv2"], F.silu(group_norm(p["norm2"], h, groups, eps)))
    return h + (conv(p["conv_shortcut"], x) if "conv_shortcut" in p else x)


def transformer(p: Tree, x: Tensor, context: Tensor, heads: int, groups: int) -> Tensor:
    def project(name: str, y: Tensor) -> Tensor:
        kernel = p[name]["kernel"].flatten(1)
        return F.linear(y, kernel, p[name]["bias"])

    y = group_norm(p["norm"], x, groups, 1e-6).flatten(2).transpose(1, 2)
    y = project("proj_in", y)
    for k in range(sum(name.startswith("transformer_blocks_") for name in p)):
        y = transformer_block(p[f"transformer_blocks_{k}"], y, context, heads)
    return x + project("proj_out", y).transpose(1, 2).unflatten(2, x.shape[2:])


def transformer_block(p: Tree, y: Tensor, context: Tensor, heads: int) -> Tensor:
    for i, name in ((1, "attn1"), (2, "attn2")):
        h, own = layer_norm(p[f"norm{i}"], y), p[name]
        source = h if name == "attn1" else context
        out = attention(
            dense(own["to_q"], h),
            dense(own["to_k"], source),
            dense(own["to_v"], source),
            heads,
        )
        y = y + dense(own["to_out_0"], out)
    both = dense(p["ff"]["net_0"]["proj"], layer_norm(p["norm3"], y))
    value, gate = both.chunk(2, dim=-1)
    return y + dense(p["ff"]["net_2"], value * F.gelu(gate))


def embed_number(numbers: Tensor, width: int, config: unet_config.UNetConfig) -> Tensor:
    """Sinusoids of timesteps or sizes."""
    half = width // 2
    exponents = torch.arange(half, device=numbers.device) / (half - config.freq_shift)
    angles = numbers[:, None] * 10_000.0**-exponents
    waves = [angles.cos(), angles.sin()]
    return torch.cat(waves if config.flip_sin_to_cos else waves[::-1], dim=-1)


def predict(
    p: Tree,
    x: Tensor,
    timesteps: Tensor,
    config: unet_config.UNetConfig,
    context: Tensor,
    pooled: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """The UNet."""
    groups, eps = config.norm_num_groups, config.norm_eps

    def mlp(q: Tree, waves: Tensor) -> Tensor:
        return dense(q["linear_2"], F.silu(dense(q["linear_1"], waves.to(x.dtype))))

    waves = embed_number(timesteps, config.block_out_channels[0], config)
    time = mlp(p["time_embedding"], waves)
    if pooled is not None:
        waves = embed_number(sizes.flatten(), config.size_width, config)
        both = torch.cat([pooled, waves.unflatten(0, sizes.shape).flatten(1)], dim=-1)
        time = time + mlp(p["add_embedding"], both)

    def stage(q: Tree, i: int, x: Tensor, heads: int) -> Tensor:
        x = resnet(q[f"resnets_{i}"], x, groups, eps, time)
        if f"attentions_{i}" in q:
            x = transformer(q[f"attentions_{i}"], x, context, heads, groups)
        return x

    x = conv(p["conv_in"], x)
    skips = [x]
    for level, heads in enumerate(config.heads):
        block = p[f"down_blocks_{level}"]
        for i in range(config.layers_per_block):
            x = stage(block, i, x, heads)
            skips.append(x)
        if "downsamplers_0" in block:
            x = conv(block["downsamplers_0"]["conv"], x, stride=2)
            skips.append(x)
    x = stage(p["mid_block"], 0, x, config.heads[-1])
    x = resnet(p["mid_block"]["resnets_1"], x, groups, eps, time)
    for level, heads in enumerate(reversed(config.heads)):
        block = p[f"up_blocks_{level}"]
        for i in range(config.layers_per_block + 1):
            x = stage(block, i, torch.cat([x, skips.pop()], dim=1), heads)
        if "upsamplers_0" in block:
            x = F.interpolate(x, skips[-1].shape[2:], mode="nearest")
            x = conv(block["upsamplers_0"]["conv"], x)
    return conv(p["conv_out"], F.silu(group_norm(p["conv_norm_out"], x, groups, eps)))


def encode(p: Tree, x: Tensor, config: vae.VaeConfig) -> Tensor:
    """Pixels to moments of the VAE."""
    groups, eps = config.norm_num_groups, 1e-6
    q = p["encoder"]
    x = conv(q["conv_in"], x)
    for level in range(len(config.block_out_channels)):
        block = q[f"down_blocks_{level}"]
        for i in range(config.layers_per_block):
            x = resnet(block[f"resnets_{i}"], x, groups, eps)
        if "downsamplers_0" in block:
            own = block["downsamplers_0"]["conv"]
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), own["kernel"], own["bias"], stride=2)
    middle = q["mid_block"]
    x = resnet(middle["resnets_0"], x, groups, eps)
    own = middle["attentions_0"]
    y = group_norm(own["group_norm"], x, groups, eps).flatten(2).transpose(1, 2)
    y = attention(*(dense(own[f"to_{name}"], y) for name in "qkv"), heads=1)
    y = dense(own["to_out_0"], y).transpose(1, 2).unflatten(2, x.shape[2:])
    x = resnet(middle["resnets_1"], x + y, groups, eps)
    x = conv(q["conv_out"], F.silu(group_norm(q["conv_norm_out"], x, groups, eps)))
    return conv(p["quant_conv"], x)


def draw(
    moments: Tensor, scaling_factor: float, alphas_cumprod: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their noise and timesteps, of moments [B, Z, h, w]."""
    mean, logvar = moments.chunk(2, dim=1)
    std = (0.5 * logvar.clamp(-30, 20)).exp()
    latents = scaling_factor * (mean + std * torch.randn_like(mean))
    noise = torch.randn_like(latents)
    timesteps = torch.randint(
        len(alphas_cumprod), (len(latents),), device=latents.device
    )
    signal = alphas_cumprod[timesteps][:, None, None, None]
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise, noise, timesteps


def embed(ids: Tensor, table: Tensor, learned: Tensor, script: bool) -> Tensor:
    """Embeddings of a prompt; `learned` is the last row, or the table of the script."""
    if script:
        return F.embedding(ids, learned)
    words = F.embedding(ids.clamp(max=len(table) - 1), table)
    return torch.where((ids == len(table))[:, :, None], learned, words)


def _learned(tables: Mapping[str, Tensor], script: bool) -> dict[str, Tensor]:
    """A row more for each table, its mean; of the script, the whole table with it."""
    learned = {}
    for name, table in tables.items():
        row = table.mean(0, keepdim=True)
        own = torch.cat([table, row]) if script else row
        learned[name] = own.detach().requires_grad_()
    return learned


def make_step(
    params: Mapping[str, Tree],
    family: Family,
    alphas_cumprod: Tensor,
    batch: Mapping[str, Any],
    script: bool,
    compiled: bool,
) -> Callable[[], Tensor]:
    """One step of a run that learns the last row of each table, as a function.

    `params` are those of the text encoders and the UNet, for `script` also of `vae`;
    `batch` has `ids` [B, L] by text encoder, `sizes` [B, 6] and `moments` [B, Z, h, w]
    or, for `script`, which does the work of diffusers' script, `pixels`. The function
    returns the loss, whose gradient is its `learned[name].grad`.
    """
    net, auto = family.denoiser.module.config, family.autoencoder.module.config
    encoders = family.text_encoders
    tables = {
        each.name: params[each.name]["embeddings"]["token_embedding"]["embedding"]
        for each in encoders
    }
    learned = _learned(tables, script)
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-3, weight_decay=1e-2 * script)
    dtype = params["unet"]["conv_in"]["kernel"].dtype
    compile_ = torch.compile if compiled else lambda function: function
    ask, tell_ = compile_(predict), compile_(tell)
    # bfloat16 as `accelerate` gives it to the script's text encoder.
    device = alphas_cumprod.device.type
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def moments() -> Tensor:
        if not script:
            return batch["moments"]
        with torch.no_grad():
            return encode(params["vae"], batch["pixels"], auto).float()

    def take_step() -> Tensor:
        x_t, noise, timesteps = draw(moments(), family.scale.factor, alphas_cumprod)
        words = {
            name: embed(batch["ids"][name], table, learned[name], script)
            for name, table in tables.items()
        }
        with autocast:
            context, *added = tell_(params, words, batch, encoders)
        predicted = ask(
            params["unet"], x_t.to(dtype), timesteps, net, context.to(dtype), *added
        )
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if script:
            with torch.no_grad():
                for name, table in tables.items():
                    learned[name][:-1] = table
        return loss.detach()

    take_step.learned = learned
    return take_step


def place(keys: WorkKeys) -> tuple[torch.device, torch.dtype]:
    """Where PyTorch computes, and in which dtype."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = {"auto": device.type == "cuda", "bf16": True, "no": False}[keys.dtype]
    return device, torch.bfloat16 if half else torch.float32


def _batch(
    keys: StepKeys,
    recipe: train_step.StepRecipe,
    side: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Examples of one prompt and random pictures, as `make_step` takes them."""
    _, bank = random_run.make_run(recipe, side)
    examples = keys.train_batch_size * keys.concepts
    ids = {
        name: np.resize(np.asarray(prompts)[0], (examples, prompts.shape[-1]))
        for name, prompts in bank.prompts.items()
    }
    pixels = side * recipe.family.downscale
    shape = (examples, 2 * recipe.family.latent_channels, side, side)
    return {
        "ids": {
            name: torch.from_numpy(each).long().to(device) for name, each in ids.items()
        },
        "sizes": torch.full((examples, 6), pixels, device=device),
        "moments": torch.randn(shape, device=device),
        "pixels": torch.rand(examples, 3, pixels, pixels).to(device, dtype),
    }


def random_step(keys: StepKeys, model: BaseModel, mesh: Mesh) -> Callable[[], Tensor]:
    """A step of these networks with random weights and pictures, as `make_step`'s."""
    recipe, side = work.recipe_of(keys, model, mesh)
    device, dtype = place(keys)
    script = keys.pytorch == "script"
    trees = frozen_shapes(recipe)
    if script:
        trees["vae"] = param_shapes(model.family.autoencoder.module)
    texts = {each.name for each in model.family.text_encoders}
    params = {
        name: _random(tree, torch.float32 if name in texts else dtype, device)
        for name, tree in trees.items()
    }
    batch = _batch(keys, recipe, side, device, dtype)
    return make_step(
        params,
        model.family,
        torch.from_numpy(np.array(recipe.family.process.alphas_cumprod)).to(device),
        batch,
        script,
        compiled=device.type == "cuda",
    )


def prepare(keys: StepKeys) -> tuple[dict[str, Any], Callable[[], float]]:
    """Facts of the program, and a function that takes a turn: seconds a step."""
    mesh = sharding.make_mesh()
    model = work.open_model(keys, attention_plans.Plan("plain", mesh))
    take_step = random_step(keys, model, mesh)
    device, dtype = place(keys)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            loss = take_step()
        # Once: a GPU computes while Python asks for the next step.
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if not torch.isfinite(loss):
            raise UserError(f"PyTorch's loss is {loss}: random weights blew up")
        return seconds

    def take_turn() -> float:
        run(keys.steps)
        return run(keys.steps) / keys.steps

    first = run(1)
    return {
        "first_step_seconds": profile.process_age(),
        "library": library(keys.pytorch),
        "dtype": str(dtype).removeprefix("torch."),
        "compile_seconds": first,
    }, take_turn


def library(pytorch: str) -> str:
    """PyTorch's version, and what it does."""
    script = " as diffusers' script" if pytorch == "script" else ""
    return f"PyTorch {torch.__version__}{script}"


def peak_memory() -> int | None:
    """Most bytes in use on the GPU so far; none without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _random(tree: Tree, dtype: torch.dtype, device: torch.device) -> Tree:
    """Random weights of these shapes, by the rule of `models.random_params`."""

    def draw(path: tuple, leaf: Any) -> Any:
        constant, std = constant_or_std(path, leaf.shape)
        if constant is not None:
            return torch.full(leaf.shape, constant).to(device, dtype)
        shape = leaf.shape
        if path[-1].key == "kernel":
            shape = (shape[-1], shape[-2], *shape[:-2])
        return (std * torch.randn(shape)).to(device, dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)
