"""Our preprocessing against the pixels that Hugging Face's CLIP preprocessing made of the golden images."""

from pathlib import Path

import numpy as np
import pytest
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image

from fromage.networks.towers import preprocess_image

GOLDEN = Path(__file__).parent / "golden" / "opt_k1"


@pytest.mark.parametrize("number", range(16))
def test_pixels_equal_the_published_ones(number: int) -> None:
    """At most one grey level apart, and that seldom: a processor without AVX2 may round a resized value the other way."""
    image = Image.open(GOLDEN / f"img_{number:03d}.png")
    pixels = preprocess_image(image, (32, 32), OPENAI_DATASET_MEAN, OPENAI_DATASET_STD).numpy()
    expected = np.load(GOLDEN / "arrays.npz", allow_pickle=False)["pixel_values"][number]
    levels = np.abs(pixels - expected) * np.array(OPENAI_DATASET_STD)[:, None, None] * 255  # (3, 32, 32)
    assert levels.max() < 1.001
    assert (levels > 0.5).mean() < 0.02
