"""Windows over pictures in numpy: what convolutions and pools of real and of whole numbers read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.contracts import Floats


def patches(
    x: Floats,
    size: tuple[int, int],
    kernel: Sequence[int],
    stride: tuple[int, int],
    layout: str,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Floats:
    """[B, rows, columns, kh kw channels] the windows of flat pictures [B, inputs], zeros where they leave a picture.

    kernel: height, width, channels; layout: hwc or chw, of the flat pictures. A window has its channels last.
    """
    (height, width), (kh, kw, channels) = size, kernel
    if layout == "chw":
        image = np.ascontiguousarray(x.reshape(len(x), channels, height, width).transpose(0, 2, 3, 1))
    else:
        image = x.reshape(len(x), height, width, channels)
    seen = sliding(padded(image, padding, 0.0), (kh, kw), stride)
    return seen.transpose(0, 1, 2, 4, 5, 3).reshape(*seen.shape[:3], kh * kw * channels)


def sliding(image: Floats, window: tuple[int, int], stride: tuple[int, int]) -> Floats:
    """[B, rows, columns, channels, kh, kw] the windows of pictures [B, height, width, channels], not copied."""
    seen = np.lib.stride_tricks.sliding_window_view(image, window, axis=(1, 2))
    return seen[:, :: stride[0], :: stride[1]]


def padded(image: Floats, padding: tuple[int, int, int, int], value: float) -> Floats:
    """Pictures [B, height, width, channels] with `value` around them; padding: top, bottom, left, right."""
    top, bottom, left, right = padding
    if not any(padding):
        return image
    return np.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=np.float32(value))
