"""Configurations of known models, for random weights of their shape."""

from typing import Any

Configs = dict[str, dict[str, Any]]


def _text_encoder(**settings: Any) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        **settings,
    }


def _unet(**settings: Any) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        **settings,
    }


def _vae(**settings: Any) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **settings,
    }


def _scheduler(**settings: Any) -> dict[str, Any]:
    return {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        **settings,
    }


SD15: Configs = {
    "text_encoder": _text_encoder(
        hidden_act="quick_gelu",
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
    ),
    "unet": _unet(attention_head_dim=8, cross_attention_dim=768, sample_size=64),
    "vae": _vae(),
    "scheduler": _scheduler(),
}

SD21: Configs = {
    "text_encoder": _text_encoder(
        hidden_act="gelu",
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=23,
    ),
    "unet": _unet(
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        sample_size=96,
        use_linear_projection=True,
    ),
    "vae": _vae(sample_size=768),
    "scheduler": _scheduler(
        _class_name="DDIMScheduler", prediction_type="v_prediction"
    ),
}

TINY: Configs = {
    "text_encoder": _text_encoder(
        vocab_size=514,
        hidden_act="quick_gelu",
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
    ),
    "unet": _unet(
        attention_head_dim=4,
        block_out_channels=[16, 32],
        cross_attention_dim=32,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    ),
    "vae": _vae(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        up_block_types=["UpDecoderBlock2D"] * 2,
    ),
    "scheduler": _scheduler(),
}

_XL_SCHEDULER = _scheduler(
    _class_name="EulerDiscreteScheduler", timestep_spacing="leading"
)
# What Playground v2.5 has in place of SDXL's; its networks are SDXL's.
PLAYGROUND: Configs = {
    "vae": {
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
        "scaling_factor": 0.5,
    },
    "scheduler": {
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "solver_order": 2,
        "solver_type": "midpoint",
    },
}
_XL_INDEX = {"force_zeros_for_empty_prompt": True}


def _text_encoder_2(**settings: Any) -> dict[str, Any]:
    return _text_encoder(
        architectures=["CLIPTextModelWithProjection"], hidden_act="gelu", **settings
    )


SDXL: Configs = {
    "text_encoder": SD15["text_encoder"],
    "text_encoder_2": _text_encoder_2(
        hidden_size=1280,
        intermediate_size=5120,
        num_attention_heads=20,
        num_hidden_layers=32,
        projection_dim=1280,
    ),
    "unet": _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        attention_head_dim=[5, 10, 20],
        block_out_channels=[320, 640, 1280],
        cross_attention_dim=2048,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
        sample_size=128,
        transformer_layers_per_block=[1, 2, 10],
        up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        use_linear_projection=True,
    ),
    "vae": _vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
    "scheduler": _XL_SCHEDULER,
    "model_index": _XL_INDEX,
}

TINY_XL: Configs = {
    "text_encoder": TINY["text_encoder"],
    "text_encoder_2": _text_encoder_2(
        vocab_size=514,
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=24,
    ),
    "unet": {
        **SDXL["unet"],
        "addition_time_embed_dim": 8,
        "attention_head_dim": [2, 4],
        "block_out_channels": [16, 32],
        "cross_attention_dim": 32 + 48,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "sample_size": 16,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae": {**TINY["vae"], "scaling_factor": 0.13025},
    "scheduler": _XL_SCHEDULER,
    "model_index": _XL_INDEX,
}

# Its files name a DDIMScheduler, with the defaults of its class.
_LDM_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
}


def _ldm_bert(**settings: Any) -> dict[str, Any]:
    return {
        "activation_function": "gelu",
        "architectures": ["LDMBertModel"],
        "encoder_attention_heads": 8,
        "max_position_embeddings": 77,
        "model_type": "ldmbert",
        "pad_token_id": 0,
        **settings,
    }


LDM: Configs = {
    "text_encoder": _ldm_bert(
        d_model=1280,
        encoder_ffn_dim=5120,
        encoder_layers=32,
        head_dim=64,
        vocab_size=30522,
    ),
    "unet": _unet(attention_head_dim=8, cross_attention_dim=1280, sample_size=32),
    "vae": _vae(sample_size=256),
    "scheduler": _LDM_SCHEDULER,
}

TINY_LDM: Configs = {
    "text_encoder": _ldm_bert(
        # A word's width tells its family.
        d_model=1280,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        encoder_layers=2,
        head_dim=8,
        vocab_size=160,
    ),
    "unet": {**TINY["unet"], "cross_attention_dim": 1280},
    "vae": TINY["vae"],
    "scheduler": _LDM_SCHEDULER,
}

SHAPES = {
    "sd15": SD15,
    "sd21": SD21,
    "sdxl": SDXL,
    "ldm": LDM,
    "tiny": TINY,
    "tiny_sdxl": TINY_XL,
    "tiny_ldm": TINY_LDM,
}
