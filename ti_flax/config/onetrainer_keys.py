"""Names of OneTrainer's configuration, for a training of the kind Embedding.

As Nerogar/OneTrainer has them (23df383, August 2026): those of `TrainConfig`, and of
its embedding and concepts.
"""

from ti_flax.config.foreign_names import (
    Foreign,
    Made,
    Refused,
    chosen,
    ignored,
    renamed,
    switched,
)

_WHOLE = "docs/coming-from.md has OneTrainer's names, one by one; its file is not read"
_LOSS = "docs/losses.md has the losses that are"
_NOISE = "docs/losses.md has the kinds of noise that are"
_SCALE = "learning_rate is that of the step, whatever its batch; leave it out"


_MADE: dict[str, Foreign] = {
    **renamed(
        {
            "base_model_name": "pretrained_model_name_or_path",
            "placeholder": "placeholder_token",
            "token_count": "num_vectors",
            "initial_embedding_text": "initializer_token",
            "embedding_learning_rate": "learning_rate",
            "learning_rate_warmup_steps": "lr_warmup_steps",
            "learning_rate_cycles": "lr_num_cycles",
            "batch_size": "train_batch_size",
            "clip_grad_norm": "max_grad_norm",
            "aspect_ratio_bucketing": "enable_bucket",
            "masked_training": "masked_loss",
            "offset_noise_weight": "noise_offset",
            "enable_random_flip": "random_flip",
            "enable_tag_shuffling": "shuffle_caption",
            "tag_delimiter": "caption_separator",
            "keep_tags_count": "keep_tokens",
            "prompt_path": "template_file",
        }
    ),
    "preserve_embedding_norm": switched(hold_row_norm="median"),
    "force_v_prediction": switched(prediction_type="v_prediction"),
    "force_epsilon_prediction": switched(prediction_type="epsilon"),
    "rescale_noise_scheduler_to_zero_terminal_snr": switched(
        rescale_betas_zero_snr="true", prediction_type="v_prediction"
    ),
    "continue_last_backup": switched(resume_from_checkpoint="latest"),
    "train_dtype": chosen(
        {
            "float_16": {"mixed_precision": "fp16"},
            "bfloat_16": {"mixed_precision": "bf16"},
            "float_32": {"mixed_precision": "no"},
            "tfloat_32": {"mixed_precision": "no"},
        },
        "mixed_precision says it",
    ),
    "learning_rate_scheduler": chosen(
        {
            "constant": {"lr_scheduler": "constant_with_warmup"},
            "linear": {"lr_scheduler": "linear"},
            "cosine": {"lr_scheduler": "cosine"},
            "cosine_with_hard_restarts": {"lr_scheduler": "cosine_with_restarts"},
        },
        "lr_scheduler has the courses that are",
    ),
    "loss_weight_fn": chosen(
        {"constant": {}, "debiased_estimation": {"debiased_estimation_loss": "true"}},
        "for min_snr_gamma write snr_gamma with the loss weight strength",
    ),
    # Means nothing without its function.
    "loss_weight_strength": Made(lambda value: {}),
    "prompt_source": chosen(
        {
            "sample": {"caption_source": "txt"},
            "filename": {"caption_source": "filename"},
            "concept": {"caption_source": "none"},
        },
        "caption_source says it",
    ),
    "tensorboard": chosen(
        {
            "true": {"report_to": "tensorboard"},
            "false": {"report_to": "none"},
        },
        "report_to says it",
    ),
}

_IGNORED = ignored(
    {
        "embedding_weight_dtype output_dtype fallback_train_dtype": "vectors, their "
        "moments and their files are float32",
        "latent_caching clear_cache_before_training cache_dir dataloader_threads "
        "only_cache": "pictures are encoded once and then stay on the device",
        "train_device temp_device multi_gpu device_indexes": "JAX finds the devices",
        "workspace_dir output_model_destination output_model_format "
        "save_filename_prefix": "output_dir has everything of a run",
        "backup_after backup_after_unit save_every save_every_unit "
        "backup_before_save": "checkpointing_steps says how often",
        "rolling_backup rolling_backup_count": "checkpoints_total_limit says how many "
        "are kept",
        "sample_after sample_after_unit": "validation_steps says how often",
        "samples sample_definition_file_name": "validation_prompt has the prompts",
        "attention_mechanism": "attention says it, and finds the best by itself",
        "compile": "XLA compiles every step",
        "validation validate_after validate_after_unit": "no pictures are set aside; "
        "the loss on a fixed set shows how a run goes",
    }
)

_REFUSED: dict[str, Foreign] = {
    "__version": Refused(_WHOLE),
    "training_method": Refused(_WHOLE),
    "embedding": Refused("write placeholder_token, num_vectors and initializer_token"),
    "additional_embeddings": Refused("concepts has several words, each by itself"),
    "concept_file_name": Refused("write train_data_dir and subsets"),
    "epochs": Refused("a run has no epochs; write max_train_steps"),
    "learning_rate_scaler": Refused(_SCALE, ("none",)),
    "loss_scaler": Refused(_SCALE, ("none",)),
    "learning_rate_min_factor": Refused("lr_scheduler goes down to 0", (0,)),
    "mse_strength": Refused(_LOSS, (1,)),
    "mae_strength": Refused(_LOSS, (0,)),
    "log_cosh_strength": Refused(_LOSS, (0,)),
    "huber_strength": Refused(_LOSS, (0,)),
    "perturbation_noise_weight": Refused(_NOISE, (0,)),
    "generalized_offset_noise": Refused(_NOISE),
    "timestep_distribution": Refused(
        "timestep_bias_strategy draws some timesteps more often", ("uniform",)
    ),
    "min_noising_strength": Refused("write min_timestep, 1000 times as much", (0,)),
    "max_noising_strength": Refused("write max_timestep, 1000 times as much", (1,)),
    "text_encoder_layer_skip": Refused(
        "words are learned for the layer that the model reads", (0,)
    ),
    "tag_dropout_enable": Refused("write caption_tag_dropout_rate"),
    "dropout_probability": Refused("write caption_dropout_rate", (0,)),
    "masked_prior_preservation_weight": Refused(_LOSS, (0,)),
}

NAMES: dict[str, Foreign] = {**_MADE, **_IGNORED, **_REFUSED}
