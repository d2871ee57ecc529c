"""Attention a chunk of queries at a time, with its own gradient."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add_tokens(
    x: Float[Array, "B L heads D"], count: int
) -> Float[Array, "B M heads D"]:
    """`count` tokens of zeros behind the others."""
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))


def scaled(q: Array) -> Array:
    return (q * q.shape[-1] ** -0.5).astype(q.dtype)


def chunked(
    q: Float[Array, "B Q heads D"],
    k: Float[Array, "B L heads D"],
    v: Float[Array, "B L heads D"],
    scores_bytes: int,
) -> Float[Array, "B Q heads D"]:
    """One head after the other, and in it as many queries as `scores_bytes` hold.

    The backward pass computes the scores again, chunk by chunk (Dao et al. 2022,
    section 3.1; here all keys are seen at once).
    """
    length = q.shape[1]
    chunk = min(length, max(1, scores_bytes // (4 * k.shape[1])))
    # Whole chunks; what is added is cut off again and has no gradient.
    q = add_tokens(scaled(q), -length % chunk)
    by_head = (
        array.swapaxes(1, 2).reshape(-1, array.shape[1], array.shape[3])
        for array in (q, k, v)
    )
    out = attend_heads(chunk, *by_head)
    return out.reshape(*q.shape[:1], q.shape[2], *out.shape[1:]).swapaxes(1, 2)[
        :, :length
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_heads(
    chunk: int, q: Float[Array, "N Q D"], k: Float[Array, "N L D"], v: Array
) -> Float[Array, "N Q D"]:
    """`q` is scaled; its length is a multiple of `chunk`."""
    return forward(chunk, q, k, v)[0]


def forward(chunk: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    def head(arrays: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = arrays
        # A column of ones makes the product count the sum of the weights, too.
        v = jnp.pad(v, ((0, 0), (0, 1)), constant_values=1)

        def queries(q: Float[Array, "C D"]) -> tuple[Array, Array]:
            scores = _product("cd,ld->cl", q, k)
            most = scores.max(axis=-1)
            weights = jnp.exp(scores - most[:, None]).astype(v.dtype)
            out = _product("cl,ld->cd", weights, v)
            total = out[:, -1]
            return out[:, :-1] / total[:, None], most + jnp.log(total)

        return jax.lax.map(queries, _chunks(q, chunk))

    out, logsumexp = jax.lax.map(head, (q, k, v))
    out = out.reshape(q.shape).astype(q.dtype)
    return out, (q, k, v, out, logsumexp.reshape(q.shape[:2]))


def backward(chunk: int, saved: tuple, d_out: Array) -> tuple[Array, Array, Array]:
    def head(arrays: tuple) -> tuple[Array, Array, Array]:
        q, k, v, out, logsumexp, d_out = arrays
        wide = jnp.float32
        inner = (out.astype(wide) * d_out.astype(wide)).sum(axis=-1)
        # Turned in memory: XLA's CPU backend multiplies bfloat16 as such in this order,
        # and in others as float32.
        k_turned = jax.lax.optimization_barrier(k.T)

        def queries(sums: tuple[Array, Array], rows: tuple) -> tuple:
            q, d_out, logsumexp, inner = rows
            # Keys first: then every product reads them as they lie in memory.
            weights = jnp.exp(_product("ld,cd->lc", k, q) - logsumexp[None])
            d_weights = _product("ld,cd->lc", v, d_out)
            d_scores = (weights * (d_weights - inner[None])).astype(k.dtype)
            weights = weights.astype(v.dtype)
            d_k = sums[0] + _product("lc,cd->ld", d_scores, q)
            d_v = sums[1] + _product("lc,cd->ld", weights, d_out)
            return (d_k, d_v), _product("dl,lc->dc", k_turned, d_scores)

        rows = (_chunks(array, chunk) for array in (q, d_out, logsumexp, inner))
        nothing = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
        (d_k, d_v), d_q = jax.lax.scan(queries, nothing, tuple(rows))
        d_q = d_q.swapaxes(1, 2).reshape(q.shape).astype(q.dtype)
        return d_q, d_k.astype(k.dtype), d_v

    d_q, d_k, d_v = jax.lax.map(head, (*saved, d_out))
    return d_q, d_k, d_v.astype(saved[2].dtype)


def _chunks(array: Array, chunk: int) -> Array:
    return array.reshape(-1, chunk, *array.shape[1:])


def _product(subscripts: str, *arrays: Array) -> Array:
    return jnp.einsum(subscripts, *arrays, preferred_element_type=jnp.float32)
