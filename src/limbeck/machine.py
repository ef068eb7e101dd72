"""What ran where: versions and the machine, kept beside every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("limbeck", "torch", "numpy", "gymnasium", "scipy", "safetensors", "onnxruntime", "stable-baselines3")


def versions() -> dict[str, str]:
    """Installed versions of what shapes a result; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, str | int]:
    """Processor, cores, memory in bytes, system. No host name, no user name, no paths."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "memory_bytes": pages, "system": f"{platform.system()} {platform.machine()}"}  # fmt: skip


@contextmanager
def steady(threads: int) -> Iterator[None]:
    """Fixed threads while a run computes: `threads` for torch, one for numpy's BLAS; what was set before comes back.

    A matrix product split over another number of threads rounds differently, so the count is part of a run's identity.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
