"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ti_flax import (
    checkpoint,
    data,
    diffusion,
    export,
    files,
    loop,
    report,
    run_folder,
    sharding,
    step,
    stop_signals,
    tokens,
    watch,
)
from ti_flax import config as configuration
from ti_flax.errors import Stopped, UserError
from ti_flax.models import weights
from ti_flax.templates import prompt_templates

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)

_ENCODE_BATCH_SIZE = 4


def train_concepts(
    config: configuration.Config, progress: bool = True
) -> list[export.Embedding]:
    """Trains what `config` describes, writes `output_dir`, returns what was learned.

    Everything a user may have got wrong is checked before weights are read.

    Raises:
        UserError: what to mend, in one line.
        Stopped: SIGTERM or SIGINT came; the run goes on from its last checkpoint.
    """
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(stop_signals.StopSignals())
        folder = None
        if jax.process_index() == 0:  # the only process that writes
            folder = stack.enter_context(run_folder.RunFolder(config))
        return _train(config, folder, signals, progress)


def _train(
    config: configuration.Config,
    folder: run_folder.RunFolder | None,
    signals: stop_signals.StopSignals,
    progress: bool,
) -> list[export.Embedding]:
    pictures = data.read_pictures(
        config.train_data_dir, config.resolution, config.center_crop
    )
    for note in pictures.notes:
        _log.warning("train_data_dir: %s", note)
    mesh = sharding.make_mesh()
    sharding.check_batch(config.train_batch_size, mesh)
    model = weights.open_model(
        config.pretrained_model_name_or_path,
        config.revision,
        config.variant,
        weights.unet_dtype(config.mixed_precision),
    )
    if config.resolution % model.vae.config.downscale:
        raise UserError(
            f"resolution: {config.resolution} is not a multiple of "
            f"{model.vae.config.downscale}, the pixels of a latent of this model"
        )
    schedule = diffusion.Schedule.from_json(model.scheduler)
    tokenizer = tokens.load_tokenizer(_tokenizer_folder(config, model))
    prompts = _training_prompts(config, tokenizer, model)
    initial = _initial_rows(config, tokenizer, model)
    fingerprints = {
        "pretrained_model_name_or_path": model.fingerprint(),
        "train_data_dir": checkpoint.fingerprint(pictures.images),
        "template_file": checkpoint.fingerprint(prompts),
    }
    found = folder.found if folder else None
    if found:
        checkpoint.check_fingerprints(found, fingerprints)

    _log.info("reading %s", model.folder)
    everywhere = sharding.replicated(mesh)
    moments = encode_pictures(
        model,
        model.load("vae"),
        pictures.images,
        config.random_flip,
        _ENCODE_BATCH_SIZE,
        progress,
    )
    frozen = {name: model.load(name, everywhere) for name in ("text_encoder", "unet")}
    table = frozen["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    rows = initial(np.asarray(table))
    median_norm, high_norm = watch.vocabulary_norms(np.asarray(table))

    recipe = make_recipe(config, model, schedule, mesh)
    if config.hold_row_norm is not None:
        norm = median_norm if config.hold_row_norm == "median" else high_norm
        hold = step.Hold(config.hold_row_norm, norm, config.row_decay)
        recipe = recipe._replace(hold=hold)
    bank = make_bank(config, moments, prompts, num_rows=len(rows))
    state = step.init_state({"text_encoder": jnp.asarray(rows)[None]}, recipe.optimizer)
    bank = bank._replace(initial=state.rows)
    start, state = checkpoint.restore(found, state)
    state, bank = jax.device_put((state, bank), everywhere)
    steps = range(start, max(start, config.max_train_steps))

    def learned(state: step.State) -> export.Embedding:
        rows = np.asarray(state.rows["text_encoder"])[0]
        return export.Embedding(config.placeholder_token, rows)

    def write(state: step.State) -> None:
        export.export_concept(
            config.output_dir,
            learned(state),
            config.learnable_property,
            pictures.images,
        )

    train_steps = step.compile_train_steps(recipe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            files.one_line_errors(
                "output_dir",
                "what was saved before is whole; make room, then run again with "
                "resume_from_checkpoint latest",
            )
        )
        folder.create()
        checkpoints = stack.enter_context(
            checkpoint.Checkpoints(
                checkpoint.folder_of(config),
                config.checkpoints_total_limit,
                checkpoint.describe(config, fingerprints),
            )
        )
        run_report = stack.enter_context(
            report.Report(config.output_dir, steps, progress)
        )

        def save(done: int, state: step.State) -> None:
            checkpoints.save(done, state)
            if done < steps.stop:
                write(state)

        run_watch = watch.Watch(start, high_norm)
        signals.defer()
        done, state = loop.run(
            lambda state, num_steps: train_steps(state, frozen, bank, num_steps),
            state,
            steps,
            config.examples_per_step,
            [loop.Event(config.checkpointing_steps, save)],
            run_report,
            run_watch.add,
            lambda: run_watch.diverged or signals.wanted(),
        )
        if done == steps.stop or run_watch.diverged:
            write(state)
        elif done > start:
            save(done, state)
    if run_watch.diverged:
        raise UserError(run_watch.explanation())
    if done < steps.stop:
        raise Stopped(
            f"{signals.name}: {done} of {steps.stop} steps are saved in "
            f"{config.output_dir}; resume_from_checkpoint latest goes on"
        )
    _log.info("wrote %s", config.output_dir)
    return [learned(state)]


def make_recipe(
    config: configuration.Config,
    model: weights.BaseModel,
    schedule: diffusion.Schedule,
    mesh: jax.sharding.Mesh,
) -> step.Recipe:
    """The step that the configuration describes."""
    learning_rate = step.learning_rate_schedule(
        config.lr_scheduler,
        config.peak_learning_rate,
        config.lr_warmup_steps,
        config.max_train_steps,
        config.lr_num_cycles,
        config.lr_power,
    )
    optimizer = step.adamw(
        learning_rate,
        config.adam_beta1,
        config.adam_beta2,
        config.adam_epsilon,
        config.adam_weight_decay,
        config.max_grad_norm,
    )
    return step.Recipe(
        text_encoder=model.text_encoder,
        unet=model.unet,
        scaling_factor=model.vae.config.scaling_factor,
        schedule=schedule,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mesh=mesh,
    )


def make_bank(
    config: configuration.Config,
    moments: np.ndarray,
    prompts: np.ndarray,
    num_rows: int,
) -> step.Bank:
    """One concept's pictures and prompts as slot 0 of 1."""
    return step.Bank(
        keys=jax.random.key(config.seed)[None],
        moments=jnp.asarray(moments)[None],
        num_pictures=jnp.array([len(moments)], jnp.int32),
        prompts=jnp.asarray(prompts)[None],
        num_prompts=jnp.array([len(prompts)], jnp.int32),
        row_mask=jnp.ones((1, num_rows), bool),
        max_train_steps=jnp.array([config.max_train_steps], jnp.int32),
    )


def _tokenizer_folder(config: configuration.Config, model: weights.BaseModel) -> Path:
    if config.tokenizer_name is None:
        return model.folder / "tokenizer"
    return weights.find_tokenizer(config.tokenizer_name, config.revision)


def _training_prompts(
    config: configuration.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: weights.BaseModel,
) -> Int32[np.ndarray, "P L"]:
    """Token ids of every template with the placeholder in it."""
    if config.num_vectors > 1 and config.placeholder_token.lower() != (
        config.placeholder_token
    ):
        _log.warning(
            "placeholder_token: diffusers finds only the first vector of a word with "
            "capitals; %s would keep all %d",
            config.placeholder_token.lower(),
            config.num_vectors,
        )
    tokenize = tokens.PromptTokenizer(
        tokenizer,
        model.text_encoder.config.vocab_size,
        {config.placeholder_token: config.num_vectors},
    )
    if tokenize.length > model.text_encoder.config.max_position_embeddings:
        raise UserError(
            f"the tokenizer makes {tokenize.length} tokens, the text encoder takes "
            f"{model.text_encoder.config.max_position_embeddings}; use the tokenizer "
            "and text encoder of one model"
        )
    templates = prompt_templates(config.learnable_property, config.template_file)
    return tokenize(
        [template.replace("{}", config.placeholder_token) for template in templates]
    )


def _initial_rows(
    config: configuration.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: weights.BaseModel,
) -> Callable[[np.ndarray], np.ndarray]:
    """Checks the initializer; the rows follow when the table has been loaded."""
    if config.initializer_embedding is not None:
        rows = export.load_embedding(config.initializer_embedding).rows
        wanted = (config.num_vectors, model.text_encoder.config.hidden_size)
        if rows.shape != wanted:
            raise UserError(
                f"initializer_embedding: expected {wanted[0]} vectors of width "
                f"{wanted[1]} (num_vectors, the model's width), found {rows.shape[0]} "
                f"of {rows.shape[1]}; set num_vectors, or use a file for this model"
            )
        return lambda table: rows
    ids = None
    if config.initializer_token is not None:
        ids = tokens.initializer_ids(tokenizer, config.initializer_token)
    return lambda table: tokens.initial_rows(
        table, ids, config.num_vectors, config.initializer_jitter, config.seed
    )


def encode_pictures(
    model: weights.BaseModel,
    params: weights.Params,
    images: UInt8[np.ndarray, "N H W 3"],
    flip: bool,
    batch_size: int,
    progress: bool,
) -> Float32[np.ndarray, "N F h w two_c"]:
    """VAE moments of every picture and, with `flip`, of its mirror image (F = 2)."""
    encode = jax.jit(
        lambda params, pixels: model.vae.apply(
            {"params": params}, pixels, method="encode"
        )
    )
    batch_size = min(batch_size, len(images) * (1 + flip))
    return data.encode_pictures(
        images, lambda pixels: encode(params, pixels), batch_size, flip, progress
    )
