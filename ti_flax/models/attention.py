"""softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), as the machine does it best.

`attend` is the one entry. Scores and softmax are float32 in every implementation.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ti_flax.models import chunked_attention
from ti_flax.runtime import sharding
from ti_flax.runtime.errors import UserError

Name = Literal["auto", "plain", "chunked", "splash", "cudnn"]

# Where scores of one call take more bytes than this on a device, they are computed in
# chunks of half of it. On a CPU a chunk stays in the cache, elsewhere it is memory
# that counts: a chunk should still fill the device.
_MOST_SCORES = {"cpu": 2**23}
_MOST_SCORES_ELSEWHERE = 2**30

# Splash wants lengths in multiples of the TPU's 128 lanes, others are padded; sequences
# below 256 gain nothing. Wider heads than these are not among those that were compiled
# and compared.
_SPLASH_LANES = 128
_SPLASH_LENGTH = 256
_SPLASH_HEAD_DIM = 256
_SPLASH_BLOCK = 512


class Plan(NamedTuple):
    """How attention is computed: `name`, and the devices that hold the examples.

    `splash` and `cudnn` are taken where shape and dtype allow them, and `auto`'s
    choice for other machines where not. Without a mesh all is on one device, the
    process' first.
    """

    name: Name = "auto"
    mesh: Mesh | None = None

    @property
    def device(self) -> Any:
        """The device, or the description of one, that a program is compiled for."""
        return jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]


def make_plan(name: Name, mesh: Mesh) -> Plan:
    """The plan of the key `attention`; `UserError` where these devices cannot do it."""
    plan = Plan(name, mesh)
    needs = {"splash": "tpu", "cudnn": "gpu"}.get(name, plan.device.platform)
    if plan.device.platform != needs:
        raise UserError(
            f"attention: {name} runs on a {needs.upper()}, this is a "
            f"{plan.device.platform.upper()}; use auto"
        )
    return plan


def attend(
    q: Float[Array, "B Q heads D"],
    k: Float[Array, "B L heads D"],
    v: Float[Array, "B L heads D"],
    plan: Plan = Plan(),  # noqa: B008, a tuple
) -> Float[Array, "B Q heads D"]:
    """Attention of every query to every key, without a mask."""
    match choose(q, k, plan):
        case "splash":
            interpret = plan.device.platform != "tpu"
            one_device = functools.partial(splash, interpret=interpret)
        case "cudnn":
            return cudnn(q, k, v)
        case "chunked":
            scores = _most_scores(plan) // 2
            one_device = functools.partial(
                chunked_attention.chunked, scores_bytes=scores
            )
        case _:
            return plain(q, k, v)
    if _shards(q, plan) > 1:
        # Neither a Pallas kernel nor a loop over examples can be split automatically.
        examples = sharding.over_examples(plan.mesh).spec
        one_device = jax.shard_map(
            one_device,
            mesh=plan.mesh,
            in_specs=(examples, examples, examples),
            out_specs=examples,
            check_vma=False,
        )
    return one_device(q, k, v)


def choose(
    q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct, plan: Plan
) -> Name:
    """Which implementation `attend` takes for arrays of these shapes and dtypes."""
    (batch, length, heads, _), keys = q.shape, k.shape[1]
    device, name = plan.device, plan.name
    on = device.platform if name == "auto" else name
    if on in ("tpu", "splash") and length == keys and _splash_takes(q, device):
        return "splash"
    if on in ("gpu", "cudnn") and _cudnn_takes(q, device):
        return "cudnn"
    if name in ("plain", "chunked"):
        return name
    scores_bytes = 4 * batch * heads * length * keys // _shards(q, plan)
    return "chunked" if scores_bytes > _most_scores(plan) else "plain"


def _most_scores(plan: Plan) -> int:
    return _MOST_SCORES.get(plan.device.platform, _MOST_SCORES_ELSEWHERE)


def _shards(q: Array | jax.ShapeDtypeStruct, plan: Plan) -> int:
    """Devices over which the examples are split."""
    size = 1 if plan.mesh is None else plan.mesh.size
    return size if q.shape[0] % size == 0 else 1


def _splash_takes(q: Array | jax.ShapeDtypeStruct, device: Any) -> bool:
    """Long enough, and what the kernel compiles for."""
    _, length, _, head_dim = q.shape
    # Their matrix units multiply no bfloat16 as the kernel asks for it.
    old = getattr(device, "device_kind", "").startswith(("TPU v2", "TPU v3"))
    return (
        length >= _SPLASH_LENGTH
        and head_dim <= _SPLASH_HEAD_DIM
        and not (old and q.dtype == jnp.bfloat16)
    )


def _cudnn_takes(q: Array | jax.ShapeDtypeStruct, device: Any) -> bool:
    """What cuDNN asks of forward and backward; see its support matrix."""
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or capability is None or "." not in capability:
        return False  # AMD's are named, not numbered
    hopper = int(capability.split(".")[0]) >= 9
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= (256 if hopper else 128)
    )


def cudnn(
    q: Float[Array, "B Q heads D"],
    k: Float[Array, "B L heads D"],
    v: Float[Array, "B L heads D"],
) -> Float[Array, "B Q heads D"]:
    """cuDNN's flash attention, which XLA splits over the examples by itself.

    Its backward pass takes even lengths only: an odd one, as the 77 of a prompt, gets
    a token that nothing attends to.
    """
    (batch, queries, *_), keys = q.shape, k.shape[1]
    if queries % 2 == keys % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (chunked_attention.add_tokens(x, x.shape[1] % 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=jnp.full(batch, queries, jnp.int32),
        key_value_seq_lengths=jnp.full(batch, keys, jnp.int32),
        implementation="cudnn",
    )
    return out[:, :queries]


def plain(
    q: Float[Array, "B Q heads D"],
    k: Float[Array, "B L heads D"],
    v: Float[Array, "B L heads D"],
    causal: bool = False,
) -> Float[Array, "B Q heads D"]:
    """All scores at once."""
    scores = jnp.einsum(
        "bthd,blhd->bhtl", q, k, preferred_element_type=jnp.float32
    ) / jnp.sqrt(jnp.float32(q.shape[-1]))
    if causal:
        visible = jnp.tril(jnp.ones((1, 1, *scores.shape[-2:]), bool))
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhtl,blhd->bthd", weights, v)


def splash(
    q: Float[Array, "B Q heads D"],
    k: Float[Array, "B Q heads D"],
    v: Float[Array, "B Q heads D"],
    interpret: bool = False,
) -> Float[Array, "B Q heads D"]:
    """JAX's Pallas kernel for TPUs; no scores in memory, forward or backward.

    Any number of tokens; what `_splash_blocks` adds is cut off again and has no
    gradient. `interpret` runs the kernel's logic on any device, slowly.
    """
    # Slow to import, and of no use on other machines.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads = q.shape[1:3]
    padded, block = _splash_blocks(length)
    mask = splash_attention.FullMask((padded, padded))
    # Tokens lie along the lanes: heads of 40 or 80 would leave most of those empty, in
    # all that is kept for the backward pass.
    tokens = splash_attention.QKVLayout.SEQ_MINOR
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
            q_layout=tokens,
            k_layout=tokens,
            v_layout=tokens,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    arrays = [chunked_attention.scaled(q), k, v]
    if padded > length:
        added = padded - length
        arrays = [chunked_attention.add_tokens(array, added) for array in arrays]
        # Added queries see the added keys and only they do: no softmax is empty.
        parts = (jnp.arange(padded) >= length).astype(jnp.int32)
        segments = splash_attention.SegmentIds(q=parts, kv=parts)
        kernel = functools.partial(kernel, segment_ids=segments)
    by_head = (array.swapaxes(1, 2) for array in arrays)
    return jax.vmap(kernel)(*by_head).swapaxes(1, 2)[:, :length]


def _splash_blocks(length: int) -> tuple[int, int]:
    """The tokens that `length` is padded to, and how many of them are a block."""
    if length % _SPLASH_LANES == 0:
        sizes = range(_SPLASH_BLOCK, 0, -_SPLASH_LANES)
        return length, next(size for size in sizes if length % size == 0)
    # As few blocks as possible, then as short as possible: 3952 tokens become 8 x 512.
    # 31 x 128 would be 961 pairs of blocks rather than 64, for 6 % fewer scores.
    blocks = -(-length // _SPLASH_BLOCK)
    block = -(-length // (blocks * _SPLASH_LANES)) * _SPLASH_LANES
    return blocks * block, block


chunked_attention.attend_heads.defvjp(
    chunked_attention.forward, chunked_attention.backward
)
