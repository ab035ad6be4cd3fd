"""Checkpoints: nested state as JSON and safetensors in a folder that is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from peira.experience.disk import sync

KEPT = 2
"""Checkpoints that stay: the newest, and one before it."""


def save_tree(tree: Any, folder: Path) -> None:
    """Write nested dicts and lists of tensors, arrays, numbers, strings and None to `folder`, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}

    def skeleton(node: Any) -> Any:
        if isinstance(node, dict):
            return {"dict": [[key, skeleton(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"list": [skeleton(value) for value in node]}
        if isinstance(node, torch.Tensor | np.ndarray):
            name = str(len(tensors))
            array = isinstance(node, np.ndarray)
            tensor = torch.from_numpy(np.asarray(node, order="C")) if array else node.detach()
            # A copy: safetensors refuses tensors that share memory, as views of one flat vector do.
            tensors[name] = tensor.clone().contiguous()
            return {"array" if array else "tensor": name}
        if isinstance(node, np.generic):
            return node.item()
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(
            f"a checkpoint holds tensors, arrays, numbers, text, lists and dicts, not {type(node)}"
        )

    text = json.dumps(skeleton(tree))
    written, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    for leftover in (written, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    written.mkdir(parents=True)
    (written / "state.json").write_text(text)
    save_file(tensors, written / "state.safetensors")
    for path in (written / "state.json", written / "state.safetensors", written):
        sync(path)
    # Out of the way first: a folder being removed bit by bit would be there half.
    if folder.exists():
        folder.rename(replaced)
    written.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def load_tree(folder: Path) -> Any:
    """What `save_tree` wrote, with the same types (tuples come back as lists)."""
    tensors = load_file(folder / "state.safetensors")

    def rebuild(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, value),) = node.items()
        if kind == "dict":
            return {key: rebuild(entry) for key, entry in value}
        if kind == "list":
            return [rebuild(entry) for entry in value]
        return tensors[value].numpy() if kind == "array" else tensors[value]

    return rebuild(json.loads((folder / "state.json").read_text()))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest iteration under `folder`, if there is one."""
    numbered = [path for path in folder.glob("*") if path.name.isdigit()]
    return max(numbered, key=lambda path: int(path.name), default=None)


def drop_old(folder: Path) -> None:
    """Remove all but the `KEPT` newest checkpoints."""
    numbered = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda path: int(path.name))
    for path in numbered[:-KEPT]:
        shutil.rmtree(path)
