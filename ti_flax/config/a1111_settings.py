"""Names of AUTOMATIC1111's Train tab, as its `settings-*.json` and its API have them.

As stable-diffusion-webui 1.10 writes them; the labels of the tab are in
docs/coming-from.md.
"""

from typing import Any

from ti_flax.config.foreign_names import (
    Foreign,
    Keys,
    Made,
    Refused,
    chosen,
    ignored,
    renamed,
)
from ti_flax.runtime.errors import shown


def _rate(text: Any) -> Keys:
    if "," in str(text) or ":" in str(text):
        raise ValueError(
            f"expected one number, found {shown(text)}; lr_scheduler gives the rate a "
            "course"
        )
    return {"learning_rate": text}


def _every(key: str) -> Made:
    """Steps between two of something, of which 0 makes none."""
    return Made(lambda steps: {} if str(steps) == "0" else {key: steps})


NAMES: dict[str, Foreign] = {
    **renamed(
        {
            "embedding_name": "placeholder_token",
            "initialization_text": "initializer_token",
            "init_text": "initializer_token",
            "data_root": "train_data_dir",
            "log_directory": "output_dir",
            "training_width": "resolution",
            "training_height": "resolution",
            "gradient_step": "gradient_accumulation_steps",
            "steps": "max_train_steps",
            "shuffle_tags": "shuffle_caption",
            "tag_drop_out": "caption_tag_dropout_rate",
            "preview_prompt": "validation_prompt",
        }
    ),
    "learn_rate": Made(_rate),
    "create_image_every": _every("validation_steps"),
    "save_embedding_every": _every("checkpointing_steps"),
    "clip_grad_mode": chosen(
        {"disabled": {}},
        "write max_grad_norm with the norm; single values are not clipped",
    ),
    # Means nothing without its mode.
    "clip_grad_value": Made(lambda value: {}),
    **ignored(
        {
            "model_name model_hash": "set pretrained_model_name_or_path to the model",
            "datetime num_of_dataset_images initial_step": "it is a note of a run",
            "latent_sampling_method": "a latent is drawn anew in each step, as random "
            "has it",
            "save_image_with_stored_embedding": "`convert --to a1111-png` writes such "
            "a picture",
            "preview_from_txt2img preview_negative_prompt preview_steps "
            "preview_sampler_index preview_sampler_name preview_cfg_scale preview_seed "
            "preview_width preview_height": "previews are of validation_prompt, by the "
            "model's own scheduler",
        }
    ),
    "overwrite_old": Refused("write overwrite_output_dir"),
    "varsize": Refused("enable_bucket learns from tall and wide pictures"),
    "use_weight": Refused("write masked_loss with alpha_mask and unmasked_weight 0"),
}
