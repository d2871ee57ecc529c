"""A tiny random model of latent diffusion with BERT; PyTorch is not needed.

Its weights are drawn from their names, as those of sdxl_models.
"""

import copy
from pathlib import Path

import jax
import numpy as np
import sdxl_models

from ti_flax.models import families, known, random_model
from ti_flax.models.torch_params import param_shapes, save_params, torch_key
from ti_flax.runtime import atomic

WIDTH = 32


def configs() -> known.Configs:
    """Three layers, whose heads are narrower together than the text is."""
    made = copy.deepcopy(known.TINY_LDM)
    made["text_encoder"].update(d_model=WIDTH, encoder_layers=3)
    made["unet"].update(cross_attention_dim=WIDTH)
    return made


def write(folder: Path) -> None:
    """Writes a folder of bert, unet, vqvae, tokenizer and scheduler."""
    own = configs()
    family = families.make_family(own)
    for part, module in family.parts.items():
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, part=part: sdxl_models.draw(
                part, torch_key(path), leaf.shape
            ),
            param_shapes(module),
        )
        place = folder / {"text_encoder": "bert", "vae": "vqvae"}.get(part, part)
        save_params(place, own[part], params, np.dtype(np.float32))
    atomic.write_json(folder / "scheduler" / "scheduler_config.json", own["scheduler"])
    random_model.write_tokenizer(folder / "tokenizer", "bert")
    atomic.write_json(
        folder / "model_index.json",
        {
            "_class_name": "LDMTextToImagePipeline",
            "bert": ["latent_diffusion", "LDMBertModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "tokenizer": ["transformers", "BertTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vqvae": ["diffusers", "AutoencoderKL"],
        },
    )
