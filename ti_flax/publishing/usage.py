"""How other programs read a learned word, for the model card and the report."""

import json
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from ti_flax.config.run_config import Config
from ti_flax.formats import find
from ti_flax.hub import ids
from ti_flax.text.embedding import LDM_WIDTH, SD1_WIDTH, SD2_WIDTH

# diffusers' LDMTextToImagePipeline has no load_textual_inversion. A table may have more
# rows than there are words, which the new ones follow.
_LDM_LOADING = """\
[(token, rows)] = safetensors.torch.load_file({file}).items()
table, words = pipeline.bert.get_input_embeddings().weight, len(pipeline.tokenizer)
table.data = torch.cat([table.data[:words], rows])
names = [token, *(f"{{token}}_{{i}}" for i in range(1, len(rows)))]
pipeline.tokenizer.add_tokens(names)
pipeline(["a photo of " + " ".join(names)], guidance_scale=6).images[0]"""

# Without eos_token_id transformers pools the text at the word, not at its end.
_SDXL_LOADING = """\
for end in ("", "_2"):
    pipeline.load_textual_inversion(
        {source},
        weight_name=f"learned_embeds{{end}}.safetensors",
        tokenizer=getattr(pipeline, f"tokenizer{{end}}"),
        text_encoder=getattr(pipeline, f"text_encoder{{end}}"),
    )
pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
"""


def loading(widths: Sequence[int], source: str, prompt: str, pictures: str = "") -> str:
    """The lines by which a pipeline of diffusers learns the word, and draws it.

    Args:
        widths: of the text encoders' rows.
        source: the folder or repository that has the word; empty for the current one.
        prompt: to be drawn.
        pictures: further arguments of the pipeline.
    """
    if list(widths) == [LDM_WIDTH]:
        file = str(PurePosixPath(source, find.SAFETENSORS_NAME))
        return _LDM_LOADING.format(file=quoted(file))
    place = quoted(source or "this repository or folder")
    drawing = f"pipeline({quoted(prompt)}{pictures}).images[0]"
    if len(widths) == 1:
        return f"pipeline.load_textual_inversion({place})\n{drawing}"
    return _SDXL_LOADING.format(source=place) + drawing


def in_diffusers(
    config: Config, pipeline: str, widths: Sequence[int], prompt: str
) -> str:
    """The lines that draw a prompt with what a run leaves.

    `pipeline` is the class, `widths` are those of the text encoders' rows.
    """
    model = config.pretrained_model_name_or_path
    opens = "from_single_file" if ids.names_one_file(model) else "from_pretrained"
    # An inpainting pipeline wants what it paints on.
    pictures = ", image=picture, mask_image=mask" if "Inpaint" in pipeline else ""
    lines = loading(widths, str(config.output_dir), prompt, pictures)
    return f"pipeline = {pipeline}.{opens}({quoted(model)})\n{lines}"


def file_for_others(widths: Collection[int]) -> str | None:
    """The file that AUTOMATIC1111, Forge and ComfyUI read; None where none of them do.

    `widths` are those of the text encoders' rows.
    """
    if len(widths) > 1:
        return find.SDXL_NAME
    return find.SAFETENSORS_NAME if {*widths} <= {SD1_WIDTH, SD2_WIDTH} else None


def quoted(text: str) -> str:
    """A text as Python reads it."""
    return json.dumps(text, ensure_ascii=False)
