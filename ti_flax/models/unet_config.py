"""What tells one UNet2DConditionModel from another."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ti_flax.runtime.errors import UserError
from ti_flax.runtime.json_settings import Settings

# Settings that all supported models leave at one value. Another value means another
# family (class-conditional, image variations, pixel space...), not a variation.
_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# The refiner is told an aesthetic score in place of the crop's size.
_REFINER_SIZES = 5
REFINER = (
    "SDXL's refiner, which goes on from the base model's pictures and makes none of "
    "text alone; give SDXL's base model, whose words for text_encoder_2 the refiner "
    "reads, too"
)
_INSTEAD = "use a Stable Diffusion 1.x, 2.x or SDXL model"
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MID = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}
_DEPTHS = "transformer_layers_per_block"
_MOST_LAYERS, _MOST_DEPTH = 16, 64

# Transformer blocks after each residual block of a level; 0 where none attends.
Depths = tuple[tuple[int, ...], ...]


class UNetConfig(NamedTuple):
    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_depths: Depths
    # Transformer blocks of the middle block; 0: one residual block alone (SSD-1B,
    # Vega), None: there is no middle block (KOALA-700M).
    mid_depth: int | None
    up_depths: Depths
    heads: tuple[int, ...]
    layers_per_block: int
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    flip_sin_to_cos: bool
    freq_shift: int
    # Width of the sinusoids of one size, and of the pooled text with those of all six;
    # None where neither is told.
    size_width: int | None = None
    added_width: int | None = None
    # Width of the sinusoids of the guidance scale; None where it is not told.
    guidance_width: int | None = None

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Reads `unet/config.json`.

        Raises `UserError` for a setting outside the supported families.
        """
        settings = Settings("unet", config, _INSTEAD)
        settings.of_class("UNet2DConditionModel")
        settings.fixed(_FIXED)
        if settings.has("num_class_embeds"):
            raise UserError(
                "unet: num_class_embeds says that this is no text-to-image model: of "
                "the published ones Stable Diffusion's x4 upscaler has it, which "
                f"enlarges pictures; {_INSTEAD}"
            )
        widths = settings.integers("block_out_channels", 4, 8192)
        blocks = len(widths)
        layers = settings.integer("layers_per_block", 1, _MOST_LAYERS, 2)
        down, mid, up = _read_depths(settings, config, blocks, layers)
        # attention_head_dim is the NUMBER of heads in these files (diffusers#2011).
        named = settings.has("num_attention_heads")
        heads = "num_attention_heads" if named else "attention_head_dim"
        size_width, added_width = _read_added(settings)
        read = cls(
            in_channels=settings.integer("in_channels", 1, 64, 4),
            out_channels=settings.integer("out_channels", 1, 64, 4),
            block_out_channels=widths,
            down_depths=down,
            mid_depth=mid,
            up_depths=up,
            heads=settings.integers(heads, 1, 1024, blocks, 8),
            layers_per_block=layers,
            cross_attention_dim=settings.integer("cross_attention_dim", 1, 16384),
            norm_num_groups=settings.integer("norm_num_groups", 1, 1024, 32),
            norm_eps=settings.number("norm_eps", 0, 1, 1e-5),
            use_linear_projection=settings.flag("use_linear_projection", False),
            flip_sin_to_cos=settings.flag("flip_sin_to_cos", True),
            freq_shift=settings.integer("freq_shift", 0, 1, 0),
            size_width=size_width,
            added_width=added_width,
            guidance_width=_read_guidance(settings),
        )
        settings.divides("norm_num_groups", read.norm_num_groups, widths)
        for i, width in enumerate(widths):
            middle = i == blocks - 1 and bool(mid)
            if middle or any(down[i]) or any(up[-1 - i]):
                settings.divides(heads, read.heads[i], (width,))
        return read


def is_refiner(config: Mapping[str, Any]) -> bool:
    """Whether pooled text and context are of one text encoder, with five sizes told."""
    context, added, size = (
        config.get(key)
        for key in (
            "cross_attention_dim",
            "projection_class_embeddings_input_dim",
            "addition_time_embed_dim",
        )
    )
    # A stranger's settings may be of any type.
    if not all(type(number) is int for number in (context, added, size)):
        return False
    return added == context + _REFINER_SIZES * size


def read_sample_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents that the UNet was trained on; a number is both.

    Raises `UserError` for what is neither.
    """
    settings = Settings("unet", config, _INSTEAD)
    # Stable Diffusion 1.x, whose oldest files lack it, was trained on 64.
    height, width = settings.integers("sample_size", 1, 1024, 2, 64)
    return height, width


def _read_added(settings: Settings) -> tuple[int | None, int | None]:
    """`size_width` and `added_width`."""
    if not settings.has("addition_embed_type"):
        return None, None
    settings.fixed({"addition_embed_type": "text_time"})
    return (
        settings.integer("addition_time_embed_dim", 2, 4096),
        settings.integer("projection_class_embeddings_input_dim", 1, 65536),
    )


def _read_guidance(settings: Settings) -> int | None:
    key = "time_cond_proj_dim"
    return settings.integer(key, 4, 4096) if settings.has(key) else None


def _read_depths(
    settings: Settings, config: Mapping[str, Any], blocks: int, layers: int
) -> tuple[Depths, int | None, Depths]:
    """Transformer blocks on the way down, in the middle and on the way up."""
    down = settings.choices("down_block_types", _DOWN, blocks)
    up = settings.choices("up_block_types", _UP, blocks)
    depths = settings.nested_integers(
        _DEPTHS, 0, _MOST_DEPTH, (layers,) * blocks, default=1
    )
    if settings.has(f"reverse_{_DEPTHS}"):
        up_depths = settings.nested_integers(
            f"reverse_{_DEPTHS}", 0, _MOST_DEPTH, (layers + 1,) * blocks
        )
    else:
        up_depths = tuple((own[-1],) * (layers + 1) for own in reversed(depths))
    return (
        _where(down, _DOWN, depths),
        _read_middle(settings, config, depths[-1][-1]),
        _where(up, _UP, up_depths),
    )


def _where(types: Sequence[str], attends: Mapping[str, bool], depths: Depths) -> Depths:
    """The depths of the levels whose blocks attend; 0 at the others."""
    return tuple(
        own if attends[kind] else (0,) * len(own)
        for kind, own in zip(types, depths, strict=True)
    )


def _read_middle(
    settings: Settings, config: Mapping[str, Any], depth: int
) -> int | None:
    key = "mid_block_type"
    if key in config and config[key] is None:
        return None
    attends = _MID[settings.choice(key, _MID, "UNetMidBlock2DCrossAttn")]
    return depth if attends else 0
