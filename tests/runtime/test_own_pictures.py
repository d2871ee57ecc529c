"""A picture is ours by its comment, or as earlier versions wrote it, by its form."""

import numpy as np
import pytest
from PIL import Image

from ti_flax.runtime import own_pictures


def draw(size):
    return Image.fromarray(np.full((*size[::-1], 3), 99, np.uint8))


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (8, 24)])
def test_what_a_run_writes_it_knows_again(tmp_path, size):
    path = tmp_path / "0.jpeg"
    own_pictures.save(draw(size), path)
    assert own_pictures.is_ours(path)
    with Image.open(path) as image:
        assert image.size == size


@pytest.mark.parametrize(
    ("write", "ours"),
    [
        (lambda path: draw((8, 8)).save(path), True),
        (lambda path: draw((16, 8)).save(path), False),
        (lambda path: draw((16, 8)).save(path, comment=b"holiday"), False),
        (lambda path: path.write_bytes(b"ti_flax"), False),
        (lambda path: path.mkdir(), False),
    ],
)
def test_what_a_person_put_there_is_not(tmp_path, write, ours):
    path = tmp_path / "0.jpeg"
    write(path)
    assert own_pictures.is_ours(path) == ours
