"""What a report and a model card tell of other programs fits the model."""

import ast
from pathlib import Path

import pytest

from ti_flax.config.run_config import Config
from ti_flax.models import families, known
from ti_flax.publishing import usage

SD1, SDXL, LDM = (known.SHAPES[name] for name in ("sd15", "sdxl", "ldm"))
INPAINTING = SD1 | {"unet": {**SD1["unet"], "in_channels": 9}}


def lines(configs, model="some/model"):
    family = families.make_family(configs)
    config = Config(
        pretrained_model_name_or_path=model,
        train_data_dir=Path("pictures"),
        placeholder_token="<toy>",
        output_dir=Path('my "words"', "out"),
    )
    widths = [encoder.width for encoder in family.text_encoders]
    text = usage.in_diffusers(config, family.pipeline, widths, "a <toy>")
    ast.parse(text)
    return text


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (SD1, ["StableDiffusionPipeline.from_pretrained", "load_textual_inversion("]),
        (
            SDXL,
            [
                "StableDiffusionXLPipeline.from_pretrained",
                "text_encoder_2.text_model.eos_token_id",
            ],
        ),
        (
            LDM,
            [
                "LDMTextToImagePipeline.from_pretrained",
                "pipeline.bert",
                "out/learned_embeds.safetensors",
            ],
        ),
        (
            INPAINTING,
            ["StableDiffusionInpaintPipeline", "image=picture, mask_image=mask"],
        ),
    ],
)
def test_a_pipeline_of_the_models_kind_is_named(configs, expected):
    text = lines(configs)
    for each in expected:
        assert each in text
    # The folder as Python reads it.
    assert 'my \\"words\\"/out' in text


def test_a_model_in_one_file_is_opened_as_one():
    for name in ("a b.safetensors", "model.ckpt"):
        assert f'Pipeline.from_single_file("{name}")' in lines(SD1, name)


@pytest.mark.parametrize(
    ("widths", "file"),
    [
        ([768], "learned_embeds.safetensors"),
        ([1024], "learned_embeds.safetensors"),
        ([768, 1280], "learned_embeds_sdxl.safetensors"),
        ([1280], None),
        ([128], None),
    ],
)
def test_other_programs_read_words_of_published_models(widths, file):
    assert usage.file_for_others(widths) == file
