"""Runs that an experiment needs: started, taken up again, or read."""

import json
import subprocess
import sys
from pathlib import Path


def trained(folder: Path, arguments: list[str]) -> dict:
    """The summary of the run in this folder; there, `peira run` with these arguments unless it has begun or ended."""
    if not (folder / "summary.json").exists():
        order = [sys.executable, "-m", "peira", "run"]
        if (folder / "config.yaml").exists():
            order += ["--resume", str(folder)]
        else:
            order += [*arguments, "--out", str(folder)]
        subprocess.run(order, check=True)
    return json.loads((folder / "summary.json").read_text())
