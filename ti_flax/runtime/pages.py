"""HTML pages of one file each: their templates, and the pictures inside them."""

import base64
import functools
import io

import jinja2
from PIL import Image

_JPEG_QUALITY = 85


@functools.cache
def template(package: str, name: str) -> jinja2.Template:
    """A template of a package, in which every value is escaped and none is missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def data_uri(image: Image.Image, side: int) -> str:
    """A picture inside the page, at most `side` pixels on its longer side."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
