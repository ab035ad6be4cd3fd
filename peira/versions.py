"""What a result depends on besides its settings."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("peira", "torch", "numpy", "gymnasium", "envpool", "mujoco", "transformers", "pylance", "scipy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> dict[str, str]:
    """What Linux says of the first processor, such as its vendor_id and model name; elsewhere nothing."""
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return {}
    lines = about.read_text().split("\n\n", 1)[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def machine() -> dict[str, Any]:
    """What kind of machine a result was measured on."""
    model = processor().get("model name", platform.machine())
    return {"system": platform.platform(), "processor": model, "cores": os.cpu_count()}
