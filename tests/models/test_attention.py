"""Every implementation of attention is the formula, forward and backward."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.models import attention, chunked_attention, stable_diffusion, unet
from ti_flax.models.attention import Plan, plain
from ti_flax.runtime import errors, sharding

# Of Stable Diffusion 1.x (40, 80, 160) and 2.x (64).
HEAD_DIMS = [40, 64, 80, 160]


@dataclasses.dataclass
class Device:
    """What `choose` reads of a device."""

    platform: str
    compute_capability: str = ""
    device_kind: str = ""


def plan_for(platform, name="auto", capability="9.0", size=1, kind=""):
    devices = np.array([Device(platform, capability, kind)] * size)
    return Plan(name, mock.Mock(jax.sharding.Mesh, devices=devices, size=size))


def shaped(batch, length, heads, head_dim, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((batch, length, heads, head_dim), dtype)


def formula(q, k, v):
    """Numpy, float64, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ v[b, :, h]
    return out


def inputs(batch, length, keys, heads, head_dim, dtype=jnp.float32):
    """q, k, v and the gradient that comes back; scores from -10 to 10."""
    random = np.random.default_rng(0)
    lengths = (length, keys, keys, length)
    q, k, v, d_out = (
        random.normal(size=(batch, n, heads, head_dim)).astype(np.float32)
        for n in lengths
    )
    return tuple(jnp.asarray(x, dtype) for x in (3 * q, k, v, d_out))


def with_gradients(function, q, k, v, d_out):
    out, pull_back = jax.vjp(jax.jit(function), q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *pull_back(d_out))]


def assert_equal_to_plain(function, arrays, tolerance):
    """By norm: output and the three gradients, and the output to the formula."""
    exact = [x.astype(jnp.float32) for x in arrays]
    ours, theirs = with_gradients(function, *arrays), with_gradients(plain, *exact)
    pairs = [*zip(ours, theirs, strict=True), (ours[0], formula(*exact[:3]))]
    for our, their in pairs:
        assert np.linalg.norm(our - their) <= tolerance * np.linalg.norm(their)


@pytest.mark.parametrize(
    ("length", "keys"), [(64, 77), (9, 9), (9, 64), (35, 78), (64, 64)]
)
def test_cudnn_gets_even_lengths_and_is_plain_attention(length, keys, monkeypatch):
    """JAX refuses odd ones to the backward pass: every prompt has 77 tokens."""
    by_xla = jax.nn.dot_product_attention

    def fake(q, k, v, implementation, **lengths):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == v.shape[1] % 2 == 0
        assert bool(lengths) == (length % 2 or keys % 2)
        return by_xla(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    arrays = inputs(2, length, keys, 2, 40)
    assert_equal_to_plain(attention.cudnn, arrays, 1e-5)


# Of Stable Diffusion 1.x at 512 px, of SDXL, and a length that no block divides.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("length", "keys", "head_dim"),
    [
        (4096, 4096, 40),
        (4096, 77, 40),
        (1024, 1024, 80),
        (256, 77, 160),
        (64, 64, 160),
        (247, 247, 160),
        (1024, 1024, 64),
        (988, 988, 64),
    ],
)
def test_cudnn_is_plain_attention(length, keys, head_dim):
    """As near, by norm, as bfloat16 comes to float32, forward and backward."""
    plan = attention.make_plan("auto", sharding.make_mesh())
    random = np.random.default_rng(0)
    arrays = [
        jnp.asarray(random.normal(size=(2, n, 4, head_dim)), jnp.bfloat16)
        for n in (length, keys, keys, length)
    ]
    assert attention.choose(*arrays[:2], plan) == "cudnn"
    found = with_gradients(functools.partial(attention.attend, plan=plan), *arrays)
    with jax.default_matmul_precision("highest"):
        exact = with_gradients(plain, *(x.astype(jnp.float32) for x in arrays))
    for ours, theirs in zip(found, exact, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_splash_is_plain_attention(head_dim):
    splash = functools.partial(attention.splash, interpret=True)
    assert_equal_to_plain(splash, inputs(1, 256, 256, 2, head_dim), 1e-5)


def test_splash_takes_lengths_that_no_large_block_divides():
    """384 tokens: neither 512 nor 256 divides them."""
    splash = functools.partial(attention.splash, interpret=True)
    assert_equal_to_plain(splash, inputs(1, 384, 384, 1, 40), 1e-5)


@pytest.mark.parametrize(
    ("length", "computed"),
    # One token too many or too few for whole lanes, for one block, for equal blocks.
    [(257, 384), (388, 512), (511, 512), (520, 768)],
)
def test_splash_pads_lengths_that_no_block_divides(length, computed):
    splash = functools.partial(attention.splash, interpret=True)
    arrays = inputs(2, length, length, 1, 40)
    assert_equal_to_plain(splash, arrays, 1e-5)
    assert f"f32[2,1,{computed},40]" in str(jax.make_jaxpr(splash)(*arrays[:3]))


def test_splash_pads_bfloat16_as_well_as_plain_computes_it():
    splash = functools.partial(attention.splash, interpret=True)
    assert_equal_to_plain(splash, inputs(1, 260, 260, 1, 64, jnp.bfloat16), 1e-2)


def test_splash_pads_scores_that_overflow_exp():
    """All far below zero, which is the score of what is added, and far above."""
    splash = functools.partial(attention.splash, interpret=True)
    q, k, v, d_out = inputs(1, 260, 260, 1, 40)
    for sign in (-1, 1):
        one_sided = (20 * jnp.abs(q), sign * jnp.abs(k), v, d_out)
        assert_equal_to_plain(splash, one_sided, 1e-4)


@pytest.mark.parametrize("length", [256, 384, 640, 1024])
def test_splash_adds_nothing_to_whole_lanes(length):
    arrays = inputs(1, length, length, 1, 40)[:3]
    program = jax.make_jaxpr(attention.splash)(*arrays)
    names = {eqn.params.get("name", eqn.primitive.name) for eqn in program.eqns}
    assert names == {"mul", "transpose", "_splash_attention"}


@pytest.mark.parametrize(
    ("length", "padded", "block"),
    [
        (3952, 4096, 512),  # SDXL at 832 x 1216, and its lower half
        (988, 1024, 512),
        (4032, 4096, 512),  # SD 1.5 at 576 x 448
        (1008, 1024, 512),
        (576, 768, 384),  # SD 2.1 at 768 px
        (4100, 4608, 512),
        (4096, 4096, 512),
        (3968, 3968, 128),
    ],
)
def test_splash_computes_few_large_blocks(length, padded, block):
    assert attention._splash_blocks(length) == (padded, block)


@pytest.mark.parametrize(
    ("length", "keys", "chunk", "head_dim"),
    [(64, 64, 16, 40), (77, 77, 10, 64), (20, 77, 1, 80), (64, 100, 500, 160)],
    ids=["whole chunks", "padded", "single queries", "one chunk"],
)
def test_chunked_is_plain_attention(length, keys, chunk, head_dim):
    chunked = functools.partial(
        chunked_attention.chunked, scores_bytes=4 * keys * chunk
    )
    assert_equal_to_plain(chunked, inputs(2, length, keys, 2, head_dim), 1e-5)


def test_chunked_bfloat16_is_as_good_as_plain():
    arrays = inputs(1, 64, 64, 2, 40, jnp.bfloat16)
    chunked = functools.partial(chunked_attention.chunked, scores_bytes=4 * 64 * 16)
    # Three significant digits of bfloat16, plain loses as many.
    assert_equal_to_plain(chunked, arrays, 1e-2)
    assert_equal_to_plain(plain, arrays, 1e-2)


def test_chunked_survives_scores_that_overflow_exp():
    q, k, v, d_out = inputs(1, 64, 64, 1, 40)
    chunked = functools.partial(chunked_attention.chunked, scores_bytes=4 * 64 * 16)
    assert_equal_to_plain(chunked, (10 * q, k, v, d_out), 1e-4)


@pytest.mark.parametrize(
    ("name", "length"), [("splash", 256), ("splash", 260), ("chunked", 256)]
)
def test_each_device_attends_to_its_own_examples(name, length):
    plan = Plan(name, sharding.make_mesh())
    arrays = inputs(8, length, length, 1, 40)
    assert_equal_to_plain(lambda q, k, v: attention.attend(q, k, v, plan), arrays, 1e-5)
    apart = jax.device_put(arrays[:3], sharding.over_examples(plan.mesh))
    lowered = jax.jit(lambda q, k, v: attention.attend(q, k, v, plan)).lower(*apart)
    program = lowered.compile().as_text()
    assert f"f32[1,{length},1,40]" in program
    assert not any(word in program for word in ("all-gather", "all-to-all"))


@pytest.mark.parametrize(
    ("plan", "q", "keys", "expected"),
    [
        (plan_for("tpu"), shaped(4, 4096, 8, 40), 4096, "splash"),
        (plan_for("tpu"), shaped(4, 256, 8, 160, jnp.float32), 256, "splash"),
        # SD 2.1 at 768 px: 24 x 24 tokens are 4.5 times 128; SDXL at 832 x 1216.
        # The kernel does not compile for the oldest TPUs' bfloat16.
        (plan_for("tpu", kind="TPU v3"), shaped(1, 4096, 8, 40), 4096, "plain"),
        (plan_for("tpu", kind="TPU v2"), shaped(1, 4096, 8, 40), 4096, "plain"),
        (
            plan_for("tpu", kind="TPU v3"),
            shaped(1, 4096, 8, 40, jnp.float32),
            4096,
            "splash",
        ),
        (plan_for("tpu"), shaped(4, 576, 20, 64), 576, "splash"),
        (plan_for("tpu"), shaped(1, 3952, 10, 64), 3952, "splash"),
        (plan_for("tpu"), shaped(1, 988, 20, 64), 988, "splash"),
        (plan_for("tpu"), shaped(1, 257, 20, 64), 257, "splash"),
        (plan_for("tpu"), shaped(1, 255, 20, 64), 255, "plain"),
        (plan_for("tpu"), shaped(1, 3952, 10, 64), 988, "plain"),
        (plan_for("tpu"), shaped(8, 3952, 10, 320), 3952, "chunked"),
        (plan_for("tpu"), shaped(4, 64, 8, 160), 64, "plain"),
        (plan_for("tpu"), shaped(4, 4096, 8, 40), 77, "plain"),
        (plan_for("tpu", "plain"), shaped(4, 4096, 8, 40), 4096, "plain"),
        (plan_for("tpu", "chunked"), shaped(4, 4096, 8, 40), 4096, "chunked"),
        # The autoencoder's only head, and more scores than a GiB.
        (plan_for("tpu"), shaped(1, 4096, 1, 512), 4096, "plain"),
        (plan_for("tpu"), shaped(32, 4096, 1, 512), 4096, "chunked"),
        (plan_for("tpu", size=8), shaped(32, 4096, 1, 512), 4096, "plain"),
        (plan_for("gpu"), shaped(4, 4096, 8, 40), 4096, "cudnn"),
        (plan_for("gpu"), shaped(4, 4096, 8, 40), 77, "cudnn"),
        (plan_for("gpu"), shaped(4, 64, 8, 160), 64, "cudnn"),
        (plan_for("gpu", capability="8.0"), shaped(4, 64, 8, 160), 64, "plain"),
        (plan_for("gpu", capability="8.0"), shaped(4, 4096, 8, 40), 77, "cudnn"),
        (plan_for("gpu", capability="gfx942"), shaped(4, 64, 8, 40), 64, "plain"),
        (plan_for("gpu"), shaped(1, 4096, 8, 40, jnp.float32), 4096, "plain"),
        (plan_for("gpu", "cudnn"), shaped(8, 4096, 8, 4), 4096, "chunked"),
        (plan_for("cpu"), shaped(1, 4096, 8, 40), 4096, "chunked"),
        (plan_for("cpu"), shaped(1, 256, 8, 160), 256, "plain"),
        (plan_for("cpu", "splash"), shaped(1, 4096, 8, 40), 4096, "splash"),
        (plan_for("cpu", "splash"), shaped(1, 4096, 8, 40), 77, "chunked"),
        (plan_for("cpu", "splash"), shaped(1, 1024, 8, 80), 77, "plain"),
    ],
)
def test_choice_by_platform_dtype_and_shape(plan, q, keys, expected):
    k = shaped(q.shape[0], keys, *q.shape[2:], q.dtype)
    assert attention.choose(q, k, plan) == expected


@pytest.mark.parametrize(("name", "needs"), [("splash", "TPU"), ("cudnn", "GPU")])
def test_an_implementation_of_another_machine_is_refused(name, needs):
    with pytest.raises(errors.UserError, match=f"{name} runs on a {needs}, this is"):
        attention.make_plan(name, sharding.make_mesh())


def test_the_key_reaches_every_attention_of_the_unet(monkeypatch):
    from ti_flax.models import known

    seen = []

    def attend(q, k, v, plan):
        seen.append((plan, q.shape[1] == k.shape[1]))
        return plain(q, k, v)

    monkeypatch.setattr(attention, "attend", attend)
    plan = Plan("chunked", sharding.make_mesh())
    net = stable_diffusion.make_family(known.TINY, plan=plan).parts["unet"]
    assert isinstance(net, unet.UNet)
    jax.eval_shape(net.init, jax.random.key(0), *net.example_inputs())
    # Self and cross: one pair down, one in the middle, two up.
    assert seen == [(plan, True), (plan, False)] * 4
