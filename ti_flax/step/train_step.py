"""The train step: draw examples, differentiate to the learned rows, update them.

Concepts live on a leading slot axis S and share the frozen networks. Each slot has its
own seed, pictures, prompts, step counter and optimizer state, so that a concept learns
the same rows whether it is trained alone or beside others.
"""

import functools
from collections.abc import Callable
from concurrent import futures
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from ti_flax.diffusion.process import Schedule, mse
from ti_flax.models import base_model, clip_text, unet, vae
from ti_flax.runtime import hosts, process, sharding

# The most steps of one dispatch. Metrics of every step come back in buffers this long.
MAX_STEPS_A_DISPATCH = 128

Rows = dict[str, Float[Array, "S K D"]]


class State(NamedTuple):
    """All that training changes: a few kilobytes.

    `skipped` counts those of the steps that were not finite and changed nothing else.
    """

    step: Int[Array, "S"]
    skipped: Int[Array, "S"]
    rows: Rows
    opt_state: optax.OptState


class Bank(NamedTuple):
    """What examples are drawn from; constant during a run.

    Slots with fewer pictures or prompts than others are padded; the counts say how many
    are real. F is 2 where pictures are mirrored at random, else 1.
    """

    keys: Key[Array, "S"]
    moments: Float[Array, "S N F h w Z"]
    num_pictures: Int[Array, "S"]
    prompts: Int[Array, "S P L"]
    num_prompts: Int[Array, "S"]
    row_mask: Bool[Array, "S K"]
    max_train_steps: Int[Array, "S"]
    # Where rows started, and the length to hold them to: what a `Hold` needs.
    initial: Rows | None = None
    norm: Float[Array, "S"] | None = None


class Batch(NamedTuple):
    """Examples of every slot; latents are scaled as the UNet sees them."""

    latents: Float[Array, "S B h w C"]
    noise: Float[Array, "S B h w C"]
    timesteps: Int[Array, "S B"]
    ids: Int[Array, "S B L"]


class Metrics(NamedTuple):
    """Of one step, or with a leading axis of steps."""

    loss: Float[Array, "*steps S"]
    grad_norm: Float[Array, "*steps S"]
    learning_rate: Float[Array, "*steps S"]
    row_norm: Float[Array, "*steps S K"]
    row_step: Float[Array, "*steps S K"]
    # Loss, gradient or update was not finite: the slot's rows are as before.
    skipped: Bool[Array, "*steps S"]


class Hold(NamedTuple):
    """What keeps rows from outgrowing the vocabulary, after each step.

    `clip`: no row is longer than the bank's `norm`; `median`: each is as long as that;
    `decay`: each goes the share `rate`, times the learning rate, of its way back to
    where it started.
    """

    kind: Literal["clip", "median", "decay"]
    rate: float

    def __call__(
        self,
        rows: Float[Array, "K D"],
        initial: Float[Array, "K D"],
        norm: Float[Array, ""],
        learning_rate: Float[Array, ""],
    ) -> Float[Array, "K D"]:
        if self.kind == "decay":
            return rows - learning_rate * self.rate * (rows - initial)
        # A row of zeros has no direction to be lengthened in.
        norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
        scale = norm / jnp.maximum(norms, jnp.finfo(rows.dtype).tiny)
        return rows * (jnp.minimum(scale, 1) if self.kind == "clip" else scale)


class Recipe(NamedTuple):
    """What a step is made of; nothing here changes, nothing here is large."""

    text_encoder: clip_text.ClipText
    unet: unet.UNet
    scaling_factor: float
    schedule: Schedule
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    train_batch_size: int
    gradient_accumulation_steps: int
    mesh: jax.sharding.Mesh
    hold: Hold | None = None


def learning_rate_schedule(
    name: str,
    peak: float,
    warmup_steps: int,
    max_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
) -> optax.Schedule:
    """Learning rate as a function of the steps taken, as diffusers' `get_scheduler`.

    All but `constant` rise linearly from 0 over `warmup_steps`.
    """
    rest = max(max_steps - warmup_steps, 1)

    def restarts(count: Int[Array, ""]) -> Float[Array, ""]:
        progress = count / rest
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * ((num_cycles * progress) % 1.0)))
        return jnp.where(progress < 1.0, peak * cosine, 0.0)

    match name:
        case "constant":
            return optax.constant_schedule(peak)
        case "constant_with_warmup":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
        case "cosine_with_restarts":
            after = restarts
        case "polynomial":
            after = optax.polynomial_schedule(peak, 1e-7, power, rest)
    if warmup_steps == 0:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])


def schedule_has_end(name: str) -> bool:
    """Whether a schedule of `learning_rate_schedule` depends on the number of steps."""
    return name not in ("constant", "constant_with_warmup")


def adamw(
    learning_rate: optax.Schedule,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    max_grad_norm: float | None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW over one slot's rows (Loshchilov & Hutter 2019), of active rows only."""
    steps = [
        optax.adamw(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay)
    ]
    if max_grad_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(max_grad_norm))
    return only_active_rows(optax.chain(*steps))


def only_active_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Rows that are not active keep their value and their moments bit for bit.

    `update` takes `active`, bool [K]. (`optax.masked` is of no use here: it masks whole
    leaves, and passes the raw gradient through where its mask is false.)
    """

    def where_active(active: Bool[Array, "K"], new: Array, old: Array) -> Array:
        # Moments are [K, D], one row each; counters are scalars of the whole slot.
        mask = active[:, None] if new.ndim == 2 else active.any()
        return jnp.where(mask, new, old)

    def update(grads, state, rows=None, *, active):
        keep = functools.partial(where_active, active)
        # An inactive row's gradient must not count towards the norm that is clipped.
        grads = jax.tree.map(lambda g: keep(g, jnp.zeros_like(g)), grads)
        updates, new_state = inner.update(grads, state, rows)
        updates = jax.tree.map(lambda u: keep(u, jnp.zeros_like(u)), updates)
        return updates, jax.tree.map(keep, new_state, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def init_state(rows: Rows, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step; `rows` are the initial rows [S, K, D]."""
    slots = next(iter(rows.values())).shape[0]
    zeros = jnp.zeros(slots, jnp.int32)
    # Two arrays: a buffer is given up only once.
    return State(zeros, zeros.copy(), rows, jax.vmap(optimizer.init)(rows))


def draw_batch(
    bank: Bank,
    step: Int[Array, "S"],
    examples: Int[Array, "B"],
    scaling_factor: float,
    train_timesteps: int,
) -> Batch:
    """Examples as a function of (seed, step, example index) and of nothing else.

    Picture, mirror, prompt, timestep, noise and the sample of the VAE's posterior are
    all drawn from the key of the example, whatever device it is drawn on.
    """

    def example(slot: Bank, step: Array, index: Array) -> Batch:
        key = jax.random.fold_in(jax.random.fold_in(slot.keys, step), index)
        (
            picture_key,
            mirror_key,
            prompt_key,
            timestep_key,
            noise_key,
            posterior_key,
        ) = jax.random.split(key, 6)
        picture = jax.random.randint(picture_key, (), 0, slot.num_pictures)
        mirror = jax.random.randint(mirror_key, (), 0, slot.moments.shape[1])
        prompt = jax.random.randint(prompt_key, (), 0, slot.num_prompts)
        moments = slot.moments[picture, mirror]
        shape = (*moments.shape[:-1], moments.shape[-1] // 2)
        posterior = vae.sample_posterior(
            moments, jax.random.normal(posterior_key, shape)
        )
        return Batch(
            latents=posterior * scaling_factor,
            noise=jax.random.normal(noise_key, shape),
            timesteps=jax.random.randint(timestep_key, (), 0, train_timesteps),
            ids=slot.prompts[prompt],
        )

    over_examples = jax.vmap(example, in_axes=(None, None, 0))
    return jax.vmap(over_examples, in_axes=(0, 0, None))(bank, step, examples)


def losses(
    rows: Rows, frozen: dict[str, base_model.Params], batch: Batch, recipe: Recipe
) -> Float[Array, "S"]:
    """Each slot's mean loss over its own examples (Gal et al. 2023, eq. 2)."""
    slots, examples = batch.timesteps.shape

    def flatten(array: Array) -> Array:
        flat = array.reshape(slots * examples, *array.shape[2:])
        return jax.lax.with_sharding_constraint(
            sharding.pad_examples(flat, recipe.mesh),
            sharding.over_examples(recipe.mesh),
        )

    latents, noise, timesteps, ids = (flatten(array) for array in batch)
    own_rows = sharding.pad_examples(
        jnp.repeat(rows["text_encoder"], examples, axis=0), recipe.mesh
    )
    context = recipe.text_encoder.apply(
        {"params": frozen["text_encoder"]}, ids, own_rows
    )
    prediction = recipe.unet.apply(
        {"params": frozen["unet"]},
        recipe.schedule.add_noise(latents, noise, timesteps),
        timesteps,
        context,
    )
    target = recipe.schedule.target(latents, noise, timesteps)
    # What fills the batch up has no part in the mean, and so none in the gradient.
    each = mse(prediction, target)[: slots * examples]
    return each.reshape(slots, examples).mean(axis=1)


def gradients(
    rows: Rows, frozen: dict[str, base_model.Params], batch: Batch, recipe: Recipe
) -> tuple[Float[Array, "S"], Rows]:
    """Losses, and the gradient of each slot's loss to its own rows."""

    def total(rows: Rows) -> tuple[Array, Array]:
        # Slots share no rows, so the gradient of the sum is each slot's own.
        per_slot = losses(rows, frozen, batch, recipe)
        return per_slot.sum(), per_slot

    (_, per_slot), grads = jax.value_and_grad(total, has_aux=True)(rows)
    return per_slot, grads


def apply_gradients(
    state: State, loss: Float[Array, "S"], grads: Rows, bank: Bank, recipe: Recipe
) -> tuple[State, Metrics]:
    """One optimizer step of every slot that has not reached its last step.

    A slot whose loss, gradient or new state is not finite keeps what it had, to the
    bit, but for the counters: the next step draws another batch.
    """
    running = state.step < bank.max_train_steps
    active = bank.row_mask & running[:, None]
    updates, opt_state = jax.vmap(
        lambda g, s, r, active: recipe.optimizer.update(g, s, r, active=active)
    )(grads, state.opt_state, state.rows, active)
    rows = optax.apply_updates(state.rows, updates)
    learning_rate = jax.vmap(recipe.learning_rate)(state.step - state.skipped)
    if recipe.hold is not None:
        held = jax.tree.map(
            lambda new, first: jax.vmap(recipe.hold)(
                new, first, bank.norm, learning_rate
            ),
            rows,
            bank.initial,
        )
        rows = jax.tree.map(
            lambda held, new: jnp.where(active[..., None], held, new), held, rows
        )
    finite = _all_finite((loss, grads, rows, opt_state))

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    rows, opt_state = jax.tree.map(
        keep, (rows, opt_state), (state.rows, state.opt_state)
    )
    skipped = running & ~finite
    metrics = Metrics(
        loss=loss,
        grad_norm=jax.vmap(optax.tree.norm)(grads),
        learning_rate=learning_rate,
        row_norm=jnp.linalg.norm(rows["text_encoder"], axis=-1),
        row_step=jnp.linalg.norm(
            rows["text_encoder"] - state.rows["text_encoder"], axis=-1
        ),
        skipped=skipped,
    )
    return State(
        state.step + running, state.skipped + skipped, rows, opt_state
    ), metrics


def _all_finite(tree: Any) -> Bool[Array, "S"]:
    """Whether every number of a slot is finite; all leaves have the slots first."""
    return functools.reduce(
        jnp.logical_and,
        (
            jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ),
    )


def train_step(
    state: State, frozen: dict[str, base_model.Params], bank: Bank, recipe: Recipe
) -> tuple[State, Metrics]:
    """Draws a batch, in `gradient_accumulation_steps` parts, and updates the rows."""

    def part(index: Array) -> tuple[Array, Rows]:
        examples = index * recipe.train_batch_size + jnp.arange(recipe.train_batch_size)
        batch = draw_batch(
            bank,
            state.step,
            examples,
            recipe.scaling_factor,
            recipe.schedule.num_timesteps,
        )
        return gradients(state.rows, frozen, batch, recipe)

    parts = recipe.gradient_accumulation_steps
    if parts == 1:
        loss, grads = part(jnp.int32(0))
    else:
        # One part at a time; only their sum is kept.
        first = part(jnp.int32(0))
        summed = jax.lax.fori_loop(
            1, parts, lambda i, sums: jax.tree.map(jnp.add, sums, part(i)), first
        )
        loss, grads = jax.tree.map(lambda x: x / parts, summed)
    return apply_gradients(state, loss, grads, bank, recipe)


def train_steps(
    state: State,
    frozen: dict[str, base_model.Params],
    bank: Bank,
    num_steps: Int[Array, ""],
    recipe: Recipe,
) -> tuple[State, Metrics]:
    """`num_steps` train steps, and the metrics of each in buffers of fixed length.

    The trip count is traced: one executable serves every length, so that no number
    depends on how steps are grouped into dispatches.
    """
    one_step = functools.partial(train_step, recipe=recipe)
    shapes = jax.eval_shape(one_step, state, frozen, bank)[1]
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((MAX_STEPS_A_DISPATCH, *leaf.shape), leaf.dtype), shapes
    )

    def body(i: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, buffers = carry
        state, metrics = one_step(state, frozen, bank)
        return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, buffers))


def jit_train_steps(recipe: Recipe) -> jax.stages.Wrapped:
    """The jitted `train_steps`; the state passed in is given up (donated)."""
    return jax.jit(
        functools.partial(train_steps, recipe=recipe),
        donate_argnums=0,
        out_shardings=sharding.replicated(recipe.mesh),
    )


def compile_train_steps(
    recipe: Recipe,
    shapes: tuple[State, dict[str, base_model.Params], Bank] | None = None,
) -> Callable[[State, dict[str, base_model.Params], Bank, int], tuple[State, Metrics]]:
    """`jit_train_steps`, called with a checked number of steps.

    Given the arguments' shapes, dtypes and shardings, it is compiled from now on, in a
    thread of its own, so that weights can be read meanwhile.
    """
    jitted, compiling, steps = jit_train_steps(recipe), None, None
    if shapes is not None:
        everywhere = sharding.replicated(recipe.mesh)
        count = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
        pool = futures.ThreadPoolExecutor(1)
        compiling = pool.submit(lambda: jitted.lower(*shapes, count).compile())
        pool.shutdown(wait=False)

    def run(state, frozen, bank, num_steps):
        nonlocal steps
        if not 0 < num_steps <= MAX_STEPS_A_DISPATCH:
            raise ValueError(f"num_steps {num_steps} not in 1..{MAX_STEPS_A_DISPATCH}")
        arguments = state, frozen, bank, np.int32(num_steps)
        if steps is None:
            # Processes compile at their own speed, and their networks do not wait long.
            if compiling is None:
                jitted.lower(*arguments).compile()  # kept for the call
            steps = jitted if compiling is None else compiling.result()
            process.give_back_freed()
            hosts.meet()
        return steps(*arguments)

    return run
