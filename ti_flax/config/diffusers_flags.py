"""Flags of other trainers that are no keys here: diffusers' `textual_inversion.py` and
`textual_inversion_sdxl.py` (and the Flax variant), and those for pictures of the class,
as DreamBooth and kohya have them.
"""

from ti_flax.config.foreign_names import Foreign, Ignored

_CLASS = (
    "prompts of class pictures lack the new word, so the gradient to its vectors is "
    "zero and nothing is learned from them"
)

# Flag: why there is nothing to set.
NO_MEANING = {
    "repeats": "each step draws its pictures at random, so a data set has no length "
    "to stretch; max_train_steps sets the length of a run",
    "num_train_epochs": "a run has no epochs; max_train_steps sets its length",
    "validation_epochs": "a run has no epochs; validation_steps says how often",
    "dataloader_num_workers": "pictures are encoded once and then stay on the device; "
    "no loader runs during training",
    "allow_tf32": "it switches PyTorch's CUDA kernels; here mixed_precision chooses "
    "between bfloat16 and float32",
    "enable_xformers_memory_efficient_attention": "xformers is a PyTorch library; XLA "
    "compiles the attention here",
    "local_rank": "one process drives all devices of its host",
    "no_safe_serialization": "learned_embeds is always written both as .safetensors "
    "and as .bin",
    "save_steps": "learned_embeds is written with each checkpoint; checkpointing_steps "
    "says how often",
    "use_auth_token": "the Hub token comes from `hf auth login` or from HF_TOKEN",
    "use_8bit_adam": "the optimizer holds the moments of the learned rows alone, a few "
    "kilobytes",
    "dataset_repeats": "each step draws its pictures at random; sub-folders N_NAME, or "
    "N:PATH of subsets, say which count more often than others",
    "with_prior_preservation": _CLASS,
    "prior_loss_weight": _CLASS,
    "num_class_images": _CLASS,
    "class_prompt": _CLASS,
    "class_data_dir": _CLASS,
    "reg_data_dir": _CLASS,
}

NAMES: dict[str, Foreign] = {
    name: Ignored(reason) for name, reason in NO_MEANING.items()
}
