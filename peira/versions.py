"""What a result depends on besides its settings."""

import importlib.metadata
import os
import platform
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


def machine() -> dict[str, Any]:
    """What kind of machine a result was measured on."""
    return {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
