"""What `peira store …` does: each returns a JSON-able dict and prints it for people."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peira.experience.exchange import export as export_store
from peira.experience.exchange import import_into
from peira.experience.store import Store


def show(path: str | os.PathLike, limit: int = 5, console: Console | None = None) -> dict[str, Any]:
    """The store's columns, versions and its `limit` newest episodes."""
    store = Store.open(path)
    if len(store) == 0:
        result: dict[str, Any] = {"path": store.path, "version": store.version, "steps": 0, "latest": []}
        _print(result, console)
        return result
    count = len(store)
    ids = store.take(range(max(0, count - 10_000), count), columns=["episode_id"])["episode_id"].unique()
    latest = store.episodes(episode_ids=ids.to_pylist()[-limit:] if limit else [])
    result = {
        "path": store.path,
        "version": store.version,
        "versions": len(store.versions),
        "steps": count,
        "columns": {field.name: str(field.type) for field in store.schema},
        "annotations": store.annotations,
        "latest": [
            {
                "episode_id": episode.id,
                "steps": len(episode),
                "return": episode.return_,
                "source": episode.source,
                "policy_id": episode.policy_id,
                "policy_version": episode.policy_version,
                "task_id": episode.task_id,
                "error": episode.error,
            }
            for episode in latest
        ],
    }
    _print(result, console)
    return result


def stats(path: str | os.PathLike, console: Console | None = None) -> dict[str, Any]:
    """Counts by source, policy version and task, bytes, and quantiles of the return."""
    result = Store.open(path).stats()
    _print(result, console)
    return result


def import_(
    path: str | os.PathLike,
    source_file: str | os.PathLike,
    format: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Add the episodes of a file or folder to the store, leaving out those it has."""
    store = Store.open(path, mode="a")
    added = import_into(store, source_file, format)
    result = {"path": store.path, "imported": str(source_file), "episodes": added, "steps": len(store)}
    _print(result, console)
    return result


def export(
    path: str | os.PathLike,
    target: str | os.PathLike,
    format: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the store's episodes to a file or folder."""
    store = Store.open(path)
    written = export_store(store, target, format)
    result = {"path": store.path, "target": str(Path(target)), "episodes": written, "steps": len(store)}
    _print(result, console)
    return result


def verify(path: str | os.PathLike, console: Console | None = None) -> dict[str, Any]:
    """Check every row; `problems` is empty if the store is sound."""
    result = Store.open(path).verify()
    _print(result, console)
    return result


def compact(path: str | os.PathLike, console: Console | None = None) -> dict[str, Any]:
    """Merge small files and drop versions that nobody reads."""
    store = Store.open(path, mode="a")
    if len(store) == 0:
        raise ValueError(f"{store.path}: holds no experience; nothing to compact")
    result = {"path": store.path, **store.compact()}
    _print(result, console)
    return result


def _print(result: Mapping[str, Any], console: Console | None) -> None:
    console = console or Console()
    facts = Table(show_header=False, box=None)
    for name, value in result.items():
        if isinstance(value, Mapping):
            value = "\n".join(f"{key}: {_compact(entry)}" for key, entry in value.items())
        elif isinstance(value, list):
            value = "\n".join(map(_compact, value)) or "none"
        facts.add_row(name, str(value))
    console.print(facts)


def _compact(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return ", ".join(f"{key} {value}" for key, value in entry.items() if value is not None)
    return str(entry)
