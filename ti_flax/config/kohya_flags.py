"""Flags of kohya's `train_textual_inversion.py` and `sdxl_train_textual_inversion.py`.

As kohya-ss/sd-scripts has them (48d368f, February 2026), without those that are keys
here under the same name.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ti_flax.config import dataset_options
from ti_flax.config.fields import is_adamw
from ti_flax.config.foreign_names import (
    Foreign,
    Ignored,
    Keys,
    Made,
    Refused,
    chosen,
    ignored,
    renamed,
    switched,
)
from ti_flax.runtime.errors import shown

_OPTIMIZER = "optimizer has those that are"
_COURSE = (
    "lr_scheduler, lr_warmup_steps, lr_decay_steps, lr_num_cycles and lr_power say all "
    "of the learning rate's course"
)


def _optimizer(name: Any) -> Keys:
    if name == "":
        return {}
    if is_adamw(name):
        return {"optimizer": "adamw"}
    raise ValueError(f"expected AdamW, found {shown(name)}; {_OPTIMIZER}")


def _optimizer_args(given: Any) -> Keys:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"expected texts such as weight_decay=0.01, found {shown(given)}"
        )
    keys: Keys = {}
    for text in " ".join(texts).split():
        name, _, value = text.partition("=")
        keys |= _argument(name, value.strip("()[]").split(","))
    return keys


def _argument(name: str, values: list[str]) -> Keys:
    match name, values:
        case "weight_decay", [decay]:
            return {"adam_weight_decay": decay}
        case "eps", [epsilon]:
            return {"adam_epsilon": epsilon}
        case "betas", [first, second]:
            return {"adam_beta1": first, "adam_beta2": second}
    raise ValueError(
        f"expected weight_decay, eps or betas, found {shown(name)}; {_OPTIMIZER}"
    )


def _caption_extension(ending: Any) -> Keys:
    if ending not in dataset_options.SOURCES:
        raise ValueError(
            f"expected .txt or .caption, found {shown(ending)}; rename the captions"
        )
    return {"caption_source": dataset_options.SOURCES[ending]}


def _repository(name: Any) -> Keys:
    return {"hub_model_id": name, "push_to_hub": "true"}


_SAME: Mapping[str, Foreign] = {
    **renamed(
        {
            "token_string": "placeholder_token",
            "init_word": "initializer_token",
            "num_vectors_per_token": "num_vectors",
            "weights": "initializer_embedding",
            "flip_aug": "random_flip",
            "zero_terminal_snr": "rescale_betas_zero_snr",
            "lr_scheduler_num_cycles": "lr_num_cycles",
            "lr_scheduler_power": "lr_power",
            "save_every_n_steps": "checkpointing_steps",
            "sample_every_n_steps": "validation_steps",
            "log_with": "report_to",
            "huggingface_token": "hub_token",
        }
    ),
    "use_object_template": switched(caption_source="none", learnable_property="object"),
    "use_style_template": switched(caption_source="none", learnable_property="style"),
    "caption_extension": Made(_caption_extension),
    "caption_extention": Made(_caption_extension),  # sic
    "optimizer_type": Made(_optimizer),
    "optimizer_args": Made(_optimizer_args),
    "huggingface_repo_id": Made(_repository),
    "huggingface_repo_visibility": chosen(
        {
            "public": {"hub_private_repo": "false"},
            "private": {"hub_private_repo": "true"},
        },
        "hub_private_repo says the same",
    ),
}

_IGNORED = ignored(
    {
        "v2": "the model's own files say it",
        "output_name": "everything of a run, file names too, comes from output_dir; "
        "`convert --to comfyui` names a file after the word",
        "save_model_as use_safetensors": "learned_embeds is written both as "
        ".safetensors and as .bin; `convert` writes the others",
        "save_precision full_fp16 full_bf16 fp16_master_weights_and_gradients": "the "
        "vectors, their moments and their files are float32",
        "fp8_base": "frozen weights are bfloat16 or float32, as mixed_precision says",
        "no_half_vae": "pictures are encoded in float32",
        "vae_batch_size": "pictures are encoded once, before training",
        "xformers sdpa mem_eff_attn": "attention says it, and finds the best by itself",
        "torch_compile dynamo_backend": "XLA compiles every step",
        "lowram highvram fused_backward_pass deepspeed zero_stage "
        "offload_optimizer_device offload_optimizer_nvme_path offload_param_device "
        "offload_param_nvme_path zero3_init_flag zero3_save_16bit_model": "what spares "
        "memory is gradient_checkpointing, gradient_accumulation_steps and fsdp",
        "max_data_loader_n_workers persistent_data_loader_workers": "no loader runs "
        "during training",
        "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk": "the word is "
        "learned in the text encoder, whose outputs differ in every step",
        "disable_mmap_load_safetensors": "no key says how files of weights are read",
        "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph": "JAX joins the "
        "processes; initialization_timeout is how long they wait for each other",
        "tokenizer_cache_dir": "HF_HOME says where downloads are kept",
        "save_every_n_epochs save_n_epoch_ratio": "a run has no epochs; "
        "checkpointing_steps says how often",
        "save_last_n_epochs save_last_n_epochs_state save_last_n_steps "
        "save_last_n_steps_state": "checkpoints_total_limit says how many are kept",
        "save_state save_state_on_train_end": "every checkpoint has all that resuming "
        "needs",
        "sample_every_n_epochs": "a run has no epochs; validation_steps says how often",
        "sample_at_first": "previews are made before the first step, too",
        "sample_prompts": "validation_prompt has the prompts themselves",
        "sample_sampler": "previews have the model's own sampler",
        "huggingface_repo_type huggingface_path_in_repo save_state_to_huggingface "
        "async_upload": "the concept's own files are uploaded, at the end",
        "wandb_api_key": "`wandb login` or WANDB_API_KEY says it",
        "wandb_run_name log_tracker_name log_tracker_config": "WANDB_NAME and "
        "WANDB_PROJECT say it",
        "log_prefix log_config": "output_dir has all numbers, config.yaml every key",
        "console_log_level console_log_file console_log_simple": "the console has a "
        "line for each thing to know; the shell can keep them",
        "output_config": "--print_config shows every key as YAML",
        "metadata_title metadata_author metadata_description metadata_license "
        "metadata_tags metadata_usage_hint metadata_thumbnail metadata_merged_from "
        "metadata_trigger_phrase metadata_preprocessor "
        "metadata_is_negative_embedding": "a file says where it comes from by itself; "
        "license is for its README.md",
    }
)

_EVERY_STEP = "the same in every step; leave it out"

_REFUSED: Mapping[str, Foreign] = {
    "max_train_epochs": Refused("a run has no epochs; write max_train_steps"),
    "in_json": Refused("write caption_source json, with the file in train_data_dir"),
    "resume": Refused("write resume_from_checkpoint latest, or a checkpoint's folder"),
    "resume_from_huggingface": Refused("give resume_from_checkpoint a local folder"),
    "config_file": Refused("write its keys as YAML, for --config"),
    "dataset_class": Refused("pictures come from train_data_dir or dataset_config"),
    "use_lion_optimizer": Refused(_OPTIMIZER),
    "lr_scheduler_type": Refused(_COURSE),
    "lr_scheduler_args": Refused(_COURSE),
    "lr_scheduler_timescale": Refused(_COURSE, (0,)),
    "lr_scheduler_min_lr_ratio": Refused(_COURSE, (0,)),
    "clip_skip": Refused("words are learned for the layer that the model reads", (1,)),
    "noise_offset_random_strength": Refused(f"noise_offset is {_EVERY_STEP}"),
    "adaptive_noise_scale": Refused(f"noise_offset is {_EVERY_STEP}", (0,)),
    "ip_noise_gamma_random_strength": Refused(f"ip_noise_gamma is {_EVERY_STEP}"),
    "v_pred_like_loss": Refused("docs/losses.md has the losses that are", (0,)),
    "huber_scale": Refused("huber_c is the threshold; leave it out", (1,)),
    "weighted_captions": Refused("captions are read as they are, without weights"),
}


def _of_datasets() -> Iterable[tuple[str, Foreign]]:
    """Those that dataset.toml has, too."""
    for name, (option, reason) in dataset_options.NO_MEANING.items():
        yield name, Ignored(reason, (option.default,))


NAMES: dict[str, Foreign] = {
    **dict(_of_datasets()),
    **_SAME,
    **_IGNORED,
    **_REFUSED,
}
