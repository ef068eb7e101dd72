"""Small JPEG pictures: frames of an environment, or observations that are pictures themselves. Pillow is imported here alone
of the report, so that one file decides how a picture is stored."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import missing_library
from limbeck.reporting.video import CannotDraw, Picture, shrink

WIDTH, QUALITY = 300, 78  # pixels at most; of a JPEG, 0..95


def jpeg(picture: Picture, width: int = WIDTH) -> bytes:
    """The picture [H, W, 3] as a small JPEG; the same pixels give the same bytes. Raises CannotDraw without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise CannotDraw(str(missing_library("Pillow", "report", "pictures in the report"))) from error
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shrink(picture, width))).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


def of_observation(obs: NDArray[Any], shape: tuple[int, ...] | None = None) -> Picture | None:
    """The observation as [H, W, 3] where it is a picture: [H, W], or 1, 3 or 4 channels last or first; None elsewhere.

    Several channels that are no colours (a stack of four frames) show the last one. Numbers are spread to 0..255.

    >>> of_observation(np.zeros((84, 84, 1), np.uint8)).shape, of_observation(np.zeros(8))
    ((84, 84, 3), None)
    """
    data = np.asarray(obs, np.float64).reshape(shape or np.shape(obs))
    if data.ndim == 3 and data.shape[0] in (1, 3, 4) and data.shape[0] < min(data.shape[1:]):
        data = np.moveaxis(data, 0, -1)
    if data.ndim == 3 and data.shape[2] != 3:
        data = data[:, :, -1]
    if data.ndim not in (2, 3) or min(data.shape[:2]) < 5:
        return None
    low, high = float(data.min()), float(data.max())
    if np.asarray(obs).dtype == np.uint8:
        low, high = 0.0, 255.0
    grey = (255 * (data - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)
