"""Reading any safetensors file: arrays and metadata."""

from __future__ import annotations

import numpy as np

from limbeck import storage
from limbeck.contracts import Array
from limbeck.errors import InputError, printable
from limbeck.teachers.files import File


def looks_like(content: bytes) -> bool:
    """Whether the content begins as safetensors does: a header length that fits, then a JSON table."""
    length = int.from_bytes(content[:8], "little")
    return content[8:9] == b"{" and 2 <= length <= len(content)


def read(file: File) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata."""
    try:
        return storage.parse_safetensors(np.frombuffer(file.content, np.uint8), file.name)
    except RecursionError as error:
        raise too_deep(file) from error


def too_deep(file: File) -> InputError:
    return InputError(f"{printable(file.name)} describes itself in a nest too deep to read. Export the policy again.")
