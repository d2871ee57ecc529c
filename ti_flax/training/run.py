"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ti_flax.checkpoints import output_dir, store
from ti_flax.config import run_config
from ti_flax.data.folder import Pictures, encode_in_batches, read_pictures
from ti_flax.diffusion.process import Schedule
from ti_flax.formats import find
from ti_flax.generation import previews
from ti_flax.models import attention, base_model
from ti_flax.publishing import provenance, results
from ti_flax.reports import report, trackers
from ti_flax.runtime import atomic, hosts, process, sharding
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.runtime.signals import StopSignals
from ti_flax.step import abstract, remat, train_step
from ti_flax.text import known_words
from ti_flax.text.templates import prompt_templates
from ti_flax.text.tokenizer import (
    PromptTokenizer,
    initial_rows,
    initializer_ids,
    load_tokenizer,
    warn_of_unused_pieces,
)
from ti_flax.training import divergence, loop, validation

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)

ENCODE_BATCH_SIZE = 4


class Inputs(NamedTuple):
    """All that a run reads and checks before its weights."""

    pictures: Pictures
    mesh: jax.sharding.Mesh
    model: base_model.BaseModel
    schedule: Schedule
    tokenizer: "transformers.CLIPTokenizer"
    prompts: Int32[np.ndarray, "P L"]
    # The initial rows [K, D], given the vocabulary's table [V, D].
    initial_rows: Callable[[np.ndarray], np.ndarray]
    previews: previews.Previews | None

    def fingerprints(self) -> dict[str, str]:
        """Of what a checkpoint must be gone on with, by the key that says where it is.

        Reads the weights' files.
        """
        return {
            "pretrained_model_name_or_path": self.model.fingerprint(),
            "train_data_dir": store.fingerprint(self.pictures.images),
            "template_file": store.fingerprint(self.prompts),
        }


class Resident(NamedTuple):
    """What lies on the devices during a run."""

    # Of `text_encoder` and `unet`; with previews, of `vae` what decodes.
    params: Mapping[str, base_model.Params]
    bank: train_step.Bank
    initial_rows: Float32[np.ndarray, "K D"]
    # 99 % of the vocabulary's rows are shorter.
    high_norm: float


def train_concepts(
    config: run_config.Config, progress: bool = True
) -> list[find.Embedding]:
    """Trains what `config` describes, writes `output_dir`, returns what was learned.

    Everything a user may have got wrong is checked before weights are read. Of several
    processes, the first writes.

    Raises:
        UserError: what to mend, in one line.
        Stopped: SIGTERM or SIGINT came; the run goes on from its last checkpoint.
    """
    phases = process.Phases("Python and imports")
    process.keep_compiled(config.compilation_cache_dir)
    trackers.check(config.report_to)
    if jax.process_index() == 0:
        results.check(config)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        warnings = stack.enter_context(report.heard_warnings())
        folder, found = None, None
        if jax.process_index() == 0:
            folder = stack.enter_context(output_dir.RunFolder(config))
            found = folder.found
        inputs = read_inputs(config)
        phases.end("checks")
        if folder is not None:
            fingerprints = inputs.fingerprints()
        if found is not None:
            store.check_fingerprints(found, fingerprints)
        _log.info("reading %s", inputs.model.folder)
        recipe = make_recipe(config, inputs.model, inputs.schedule, inputs.mesh)
        train_steps = train_step.compile_train_steps(
            recipe, abstract_arguments(config, inputs, recipe)
        )
        resident = load(config, inputs, progress and folder is not None)
        phases.end("weights and pictures")
        rows = {"text_encoder": jnp.asarray(resident.initial_rows)[None]}
        state = train_step.init_state(rows, recipe.optimizer)
        start, state = store.restore(found, state)
        state = sharding.replicate(state, inputs.mesh)
        steps = range(start, max(start, config.max_train_steps))

        stack.enter_context(
            atomic.one_line_errors(
                "output_dir",
                "what was saved before is whole; make room, then run again with "
                "resume_from_checkpoint latest",
            )
        )
        save = write = _ignore
        if folder is not None:
            folder.create()
            write = functools.partial(_export, config, inputs, fingerprints)
            checkpoints = stack.enter_context(
                store.Checkpoints(
                    store.folder_of(config),
                    config.checkpoints_total_limit,
                    store.describe(config, fingerprints),
                )
            )
            save = checkpoints.save
        run_report = stack.enter_context(
            report.Report(
                config,
                steps,
                progress and folder is not None,
                inputs.pictures.images,
                warnings,
            )
        )
        look = validation.compile_look(
            validation.Run(
                params=resident.params,
                bank=resident.bank,
                recipe=recipe,
                initial_rows=resident.initial_rows,
                tokenizer=inputs.tokenizer,
                previews=inputs.previews,
                output_dir=config.output_dir,
            ),
            run_report,
        )

        def keep(done: int, state: train_step.State) -> None:
            save(done, state)
            write(done, state)

        run_watch = divergence.Watch(start, resident.high_norm)
        signals.defer()
        phases.end("initial rows, checkpoint, report")
        if start == 0:
            look(0, state)
            phases.end("look before training")
        frozen = {name: resident.params[name] for name in ("text_encoder", "unet")}

        def take(
            state: train_step.State, count: int
        ) -> tuple[train_step.State, train_step.Metrics]:
            result = train_steps(state, frozen, resident.bank, count)
            if config.profile_startup and not phases.logged:
                jax.block_until_ready(result)
                phases.end("rest of the compilation, first step")
                phases.log()
            return result

        done, state = loop.run(
            take,
            state,
            steps,
            config.examples_per_step,
            [
                loop.Event(config.validation_steps, look),
                # Last: of a step that is saved, nothing is left to do.
                loop.Event(config.checkpointing_steps, keep),
            ],
            run_report,
            run_watch.add,
            lambda: run_watch.diverged or signals.wanted(),
        )
        if run_watch.diverged or start == steps.stop:  # nothing was left to train
            write(done, state)
        elif start < done < steps.stop:
            keep(done, state)
    if run_watch.diverged:
        raise UserError(run_watch.explanation())
    if done < steps.stop:
        raise Stopped(
            f"{signals.name}: {done} of {steps.stop} steps are saved in "
            f"{config.output_dir}; resume_from_checkpoint latest goes on"
        )
    _log.info("wrote %s", config.output_dir)
    learned = _learned(config, state)
    if folder is not None:
        results.finish(config, inputs.model, inputs.tokenizer, learned)
    return [learned]


def read_inputs(config: run_config.Config) -> Inputs:
    """Reads pictures, the model's settings and prompts, and checks them.

    Raises:
        UserError: what to mend; in every process, when they differ.
    """
    pictures = read_pictures(
        config.train_data_dir, config.resolution, config.center_crop
    )
    for note in pictures.notes:
        _log.warning("train_data_dir: %s", note)
    hosts.check_equal("config", run_config.dump_yaml(config).splitlines())
    hosts.check_equal("train_data_dir", pictures.fingerprints())
    mesh = sharding.make_mesh(fsdp=config.fsdp)
    sharding.warn_of_padding(config.train_batch_size, mesh)
    model = base_model.open_model(
        config.pretrained_model_name_or_path,
        config.revision,
        config.variant,
        base_model.unet_dtype(config.mixed_precision),
        attention.make_plan(config.attention, mesh),
    )
    if config.resolution % model.vae.config.downscale:
        raise UserError(
            f"resolution: {config.resolution} is not a multiple of "
            f"{model.vae.config.downscale}, the pixels of a latent of this model"
        )
    schedule = Schedule.from_json(model.scheduler)
    tokenizer = load_tokenizer(_tokenizer_folder(config, model))
    tokenize = _prompt_tokenizer(config, tokenizer, model)
    templates = prompt_templates(config.learnable_property, config.template_file)
    shown = None
    if config.validation_prompt:
        shown = previews.Previews(config, model, tokenize, mesh)
    return Inputs(
        pictures=pictures,
        mesh=mesh,
        model=model,
        schedule=schedule,
        tokenizer=tokenizer,
        prompts=tokenize(
            [t.replace("{}", config.placeholder_token) for t in templates]
        ),
        initial_rows=_initial_rows(config, tokenizer, model),
        previews=shown,
    )


def abstract_arguments(
    config: run_config.Config, inputs: Inputs, recipe: train_step.Recipe
) -> tuple[train_step.State, dict[str, base_model.Params], train_step.Bank]:
    """Shapes and places of what a dispatch takes, known before weights are read."""
    everywhere, config_ = sharding.replicated(recipe.mesh), inputs.model.vae.config
    side = config.resolution // config_.downscale
    views = len(inputs.pictures.images), 1 + config.random_flip
    moments = jax.ShapeDtypeStruct(
        (*views, side, side, 2 * config_.latent_channels), jnp.float32
    )
    shape = (1, config.num_vectors, recipe.text_encoder.config.hidden_size)
    rows = {"text_encoder": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(
        lambda rows: train_step.init_state(rows, recipe.optimizer), rows
    )
    bank = jax.eval_shape(
        lambda moments, rows: make_bank(config, moments, inputs.prompts, rows, 0.0),
        moments,
        jax.ShapeDtypeStruct(shape[1:], jnp.float32),
    )
    state, bank = abstract.abstract((state, bank), everywhere)
    return state, abstract.frozen_shapes(recipe), bank


def load(config: run_config.Config, inputs: Inputs, progress: bool) -> Resident:
    """Reads the weights, encodes the pictures and puts all on the devices.

    The VAE stays there only as far as previews need it.
    """
    model, mesh = inputs.model, inputs.mesh
    vae_params = model.load("vae")
    moments = encode_pictures(
        model,
        vae_params,
        inputs.pictures.images,
        config.random_flip,
        ENCODE_BATCH_SIZE,
        progress,
    )
    layout = functools.partial(sharding.over_fsdp, mesh)
    params = {name: model.load(name, layout) for name in ("text_encoder", "unet")}
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    if inputs.previews is not None:
        decoder = previews.decoder_params(vae_params)
        params["vae"] = sharding.replicate(decoder, mesh)
    hosts.meet()
    whole_table = sharding.whole(table)
    rows = inputs.initial_rows(whole_table)
    median_norm, high_norm = divergence.vocabulary_norms(whole_table)
    norm = median_norm if config.hold_row_norm == "median" else high_norm
    bank = make_bank(config, moments, inputs.prompts, rows, norm)
    return Resident(
        params=params,
        bank=sharding.replicate(bank, mesh),
        initial_rows=rows,
        high_norm=high_norm,
    )


def _learned(config: run_config.Config, state: train_step.State) -> find.Embedding:
    rows = np.asarray(state.rows["text_encoder"])[0]
    return find.Embedding(config.placeholder_token, rows)


def _export(
    config: run_config.Config,
    inputs: Inputs,
    fingerprints: Mapping[str, str],
    done: int,
    state: train_step.State,
) -> None:
    """Writes what was learned in `done` steps for other programs."""
    about = provenance.of_run(config, inputs.model.scheduler, fingerprints, done)
    learned = _learned(config, state)._replace(provenance=about)
    results.write(config, learned, inputs.pictures.images)


def _ignore(done: int, state: train_step.State) -> None:
    """What a process does that does not write."""


def make_recipe(
    config: run_config.Config,
    model: base_model.BaseModel,
    schedule: Schedule,
    mesh: jax.sharding.Mesh,
) -> train_step.Recipe:
    """The step that the configuration describes."""
    learning_rate = train_step.learning_rate_schedule(
        config.lr_scheduler,
        config.peak_learning_rate,
        config.lr_warmup_steps,
        config.max_train_steps,
        config.lr_num_cycles,
        config.lr_power,
    )
    optimizer = train_step.adamw(
        learning_rate,
        config.adam_beta1,
        config.adam_beta2,
        config.adam_epsilon,
        config.adam_weight_decay,
        config.max_grad_norm,
    )
    return train_step.Recipe(
        text_encoder=model.text_encoder,
        unet=model.unet.clone(remat=remat.needs_remat(config, model, mesh)),
        scaling_factor=model.vae.config.scaling_factor,
        schedule=schedule,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mesh=mesh,
        hold=config.hold_row_norm
        and train_step.Hold(config.hold_row_norm, config.row_decay),
    )


def make_bank(
    config: run_config.Config,
    moments: np.ndarray | jax.Array,
    prompts: np.ndarray,
    rows: np.ndarray | jax.Array,
    norm: float,
) -> train_step.Bank:
    """One concept's pictures, prompts, initial rows and length as slot 0 of 1."""
    return train_step.Bank(
        keys=jax.random.key(config.seed)[None],
        moments=jnp.asarray(moments)[None],
        num_pictures=jnp.array([len(moments)], jnp.int32),
        prompts=jnp.asarray(prompts)[None],
        num_prompts=jnp.array([len(prompts)], jnp.int32),
        row_mask=jnp.ones((1, len(rows)), bool),
        max_train_steps=jnp.array([config.max_train_steps], jnp.int32),
        initial={"text_encoder": jnp.asarray(rows)[None]},
        norm=jnp.array([norm], jnp.float32),
    )


def _tokenizer_folder(config: run_config.Config, model: base_model.BaseModel) -> Path:
    if config.tokenizer_name is None:
        return model.folder / "tokenizer"
    return base_model.find_tokenizer(config.tokenizer_name, config.revision)


def _prompt_tokenizer(
    config: run_config.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: base_model.BaseModel,
) -> PromptTokenizer:
    """Reads prompts with the placeholder in them for the model's text encoder."""
    tokenize = PromptTokenizer(
        tokenizer,
        model.text_encoder.config.vocab_size,
        {config.placeholder_token: config.num_vectors},
    )
    found_whole = known_words.normal_form(tokenizer, config.placeholder_token)
    if config.num_vectors > 1 and found_whole != config.placeholder_token:
        _log.warning(
            "placeholder_token: diffusers finds only the first vector of %a; %r, its "
            "form of small and composed letters, would keep all %d",
            config.placeholder_token,
            found_whole,
            config.num_vectors,
        )
    if tokenize.length > model.text_encoder.config.max_position_embeddings:
        raise UserError(
            f"the tokenizer makes {tokenize.length} tokens, the text encoder takes "
            f"{model.text_encoder.config.max_position_embeddings}; use the tokenizer "
            "and text encoder of one model"
        )
    return tokenize


def _initial_rows(
    config: run_config.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: base_model.BaseModel,
) -> Callable[[np.ndarray], np.ndarray]:
    """Checks the initializer; the rows follow when the table has been loaded."""
    if config.initializer_embedding is not None:
        width = model.text_encoder.config.hidden_size
        rows = find.load_for_model(
            config.initializer_embedding, width, "initializer_embedding"
        ).rows
        if len(rows) != config.num_vectors:
            raise UserError(
                f"initializer_embedding: expected {config.num_vectors} vectors "
                f"(num_vectors), found {len(rows)}; set num_vectors to {len(rows)}"
            )
        return lambda table: rows
    ids = None
    if config.initializer_token is not None:
        ids = initializer_ids(tokenizer, config.initializer_token)
        warn_of_unused_pieces(tokenizer, config.initializer_token, config.num_vectors)
    return lambda table: initial_rows(
        table, ids, config.num_vectors, config.initializer_jitter, config.seed
    )


def jit_encode(model: base_model.BaseModel) -> jax.stages.Wrapped:
    """The jitted (params of the VAE, pixels) to moments."""
    return jax.jit(
        lambda params, pixels: model.vae.apply(
            {"params": params}, pixels, method="encode"
        )
    )


def encode_pictures(
    model: base_model.BaseModel,
    params: base_model.Params,
    images: UInt8[np.ndarray, "N H W 3"],
    flip: bool,
    batch_size: int,
    progress: bool,
) -> Float32[np.ndarray, "N F h w two_c"]:
    """VAE moments of every picture and, with `flip`, of its mirror image (F = 2)."""
    encode = jit_encode(model)
    batch_size = min(batch_size, len(images) * (1 + flip))
    return encode_in_batches(
        images, lambda pixels: encode(params, pixels), batch_size, flip, progress
    )
