"""Pictures for the docs are small, and still what they were."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from docs.screenshots import LARGEST, small


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_picture_of_few_colours_keeps_them():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:, :] = (200, 17, 17)
    image = Image.open(io.BytesIO(small(png(pixels))))
    assert (image.mode, image.size) == ("P", (30, 20))
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_a_picture_of_many_colours_gets_fewer_until_it_is_small():
    steps = np.add.outer(np.arange(900), np.arange(900)) % 256
    noise = np.random.default_rng(7).integers(0, 40, (900, 900))
    grey = ((steps + noise) % 256).astype(np.uint8)
    picture = png(np.dstack([grey, grey, grey]))
    assert len(small(picture)) < len(picture)
    assert len(small(png(np.dstack([steps.astype(np.uint8)] * 3)))) <= LARGEST
