"""What a stored number was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "numpy", "gymnasium", "stable-baselines3", "imitation", "onnxruntime", "limbeck")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, versions and date, as plain data; libraries that are absent are left out."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "load_average": [round(v, 1) for v in os.getloadavg()],  # well above 1 or so: times are not to be trusted
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": dict(_versions()),
        "date": datetime.date.today().isoformat(),
    }


def _memory_gib() -> float | None:
    total = _line("/proc/meminfo", "MemTotal")
    return round(int(total.split()[0]) / 2**20, 1) if total else None


def _line(path: str, key: str) -> str:
    """The value behind the first `key :` of a file in /proc; empty elsewhere."""
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _versions() -> list[tuple[str, str]]:
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return [(name, installed[name]) for name in LIBRARIES if name in installed]


if __name__ == "__main__":
    import json

    print(json.dumps(machine(), indent=1))
