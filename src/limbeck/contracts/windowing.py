"""How many windows fit over a picture, and what is wrong with those that do not."""

from __future__ import annotations

from collections.abc import Sequence

Padding = tuple[int, int, int, int]  # top, bottom, left, right
NO_PADDING: Padding = (0, 0, 0, 0)


def windows(
    size: tuple[int, int], window: Sequence[int], stride: tuple[int, int], padding: Padding = NO_PADDING
) -> tuple[int, int]:
    """How many windows fit, down and across.

    >>> windows((84, 84), (8, 8), (4, 4))
    (20, 20)
    """
    height, width = _padded(size, padding)
    return (height - int(window[0])) // stride[0] + 1, (width - int(window[1])) // stride[1] + 1


def window_problem(
    size: tuple[int, int], window: Sequence[int], stride: tuple[int, int], padding: Padding = NO_PADDING
) -> str:
    """What is wrong with windows; empty: nothing.

    >>> window_problem((5, 4), (5, 4), (1, 1)), window_problem((5, 4), (5, 5), (1, 1))
    ('', 'a window of (5, 5) over (5, 4)')
    """
    window = tuple(int(side) for side in window)
    if min(*size, *window, *stride) < 1 or min(padding) < 0 or max(*size, *window, *stride, *padding) > 2**16:
        return f"windows of {window} with stride {stride} and padding {padding} over {size}"
    height, width = _padded(size, padding)
    return "" if window[0] <= height and window[1] <= width else f"a window of {window} over {size}"


def _padded(size: tuple[int, int], padding: Padding) -> tuple[int, int]:
    return size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]
