"""The durable store of experience: one Lance dataset, append-only, safe once `append` has returned."""

import errno
import fcntl
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import write_fragments
from lance.optimize import Compaction

from peira.experience.disk import sync
from peira.experience.episode import Episode, episodes_to_table, split_episodes
from peira.experience.schema import ANNOTATION, OPTIONAL, VOCABULARY, Source, first_not_finite, validate

DIRECTORY = "experience.lance"
_MANIFEST_MAGIC = b"LANC"
_CONFLICT_RETRIES = 20
# Below this many rows a look-up by episode id reads faster without an index than the index costs to keep.
_ID_INDEX_ROWS = 100_000


class StoreError(OSError):
    """The store could not do what was asked; what it acknowledged before is intact."""


class Store:
    """Episodes on disk or in an object store.

    A `Store` reads the version it was opened at, or last appended to; `refresh` moves it to the newest.
    Several processes may append to one store at once.
    """

    def __init__(self, path: str, mode: Literal["r", "a"], dataset: LanceDataset | None):
        self.path = path
        self.mode = mode
        self._local = "://" not in path
        self._dataset = dataset
        self._known_ids: set[str] = set()
        self._known_fragments: set[int] = set()

    @classmethod
    def open(cls, path_or_url: str | os.PathLike, mode: Literal["r", "a"] = "r") -> "Store":
        """Open the store at a path or URL, or the one in a run's folder.

        "r" reads what exists, "a" also appends and makes the store at the first append. Raises StoreError
        where there is nothing to read.
        """
        if mode not in ("r", "a"):
            raise ValueError(f"mode: expected 'r' or 'a', came {mode!r}; 'r' reads, 'a' reads and appends")
        path = os.fspath(path_or_url).removeprefix("file://").rstrip("/")
        if not path.endswith(".lance"):
            path = f"{path}/{DIRECTORY}"
        store = cls(path, mode, None)
        store._dataset = store._open_newest()
        if store._dataset is None and mode == "r":
            raise StoreError(
                f"{path}: no store here; give a folder that holds {DIRECTORY}, or import into it first"
            )
        return store

    # -- writing -------------------------------------------------------------------------------------------

    def append(self, episodes: Sequence[Episode] | pa.Table, skip_existing: bool = False) -> int:
        """Append whole episodes and return their number once they are safe on disk; all of them or none.

        `skip_existing` leaves out episodes whose id the store has, which makes an append safe to repeat.
        Raises ValueError for rows that are not legal steps or do not fit the store's columns, StoreError
        where the disk refuses.
        """
        self._check_writable()
        table = episodes if isinstance(episodes, pa.Table) else episodes_to_table(episodes)
        table = validate(table)
        if skip_existing and self._dataset is not None:
            self.refresh()
            present = pa.array(
                self._episode_ids() & set(table["episode_id"].unique().to_pylist()), pa.string()
            )
            table = table.filter(pc.invert(pc.is_in(table["episode_id"], value_set=present)))
        if table.num_rows == 0:
            return 0
        with self._writing():
            if self._dataset is None:
                self._create(table.schema)
            table = self._fit(table)
            # The rows must be on disk before a manifest can name them: Lance itself never calls fsync.
            fragments = write_fragments(table, self._dataset, mode="append")
            self._sync_data(fragments)
            self._commit_rows(fragments)
        return pc.count_distinct(table["episode_id"]).as_py()

    def annotate(self, name: str, values: pa.Table | pa.Array | np.ndarray, replace: bool = False) -> int:
        """Add the column `name` to rows that exist, and return how many rows got a value.

        `values` is one entry a row in the order of `read()`, or a table of `episode_id`, `step` and `name`
        for some of the rows; rows without a value are null. Rows appended later start as null and may be
        filled by another call. Raises ValueError for a column of the step itself, for a key that the store
        lacks, and for a row that already has a value unless `replace`.
        """
        self._check_writable()
        if name in VOCABULARY or (name in self.schema.names and not _is_annotation(self.schema.field(name))):
            raise ValueError(f"{name}: this column says what happened; annotate under a name of its own")
        if not isinstance(values, pa.Table):
            values = values if isinstance(values, pa.Array | pa.ChunkedArray) else _entries(values)
            if len(values) != len(self):
                raise ValueError(
                    f"{name}: expected one entry for each of {len(self)} rows, came {len(values)}; "
                    "or give a table of episode_id, step and the value"
                )
            values = self._read(columns=["episode_id", "step"]).append_column(name, values)
        missing = {"episode_id", "step", name} - set(values.column_names)
        if missing:
            raise ValueError(
                f"{name}: the table lacks {sorted(missing)[0]}; give the columns episode_id, step and {name}"
            )
        with self._writing():
            for _ in range(_CONFLICT_RETRIES):
                self.refresh()
                try:
                    return self._annotate(name, values, replace)
                except CommitConflictError:
                    continue
        raise StoreError(f"{self.path}: others kept writing while {name!r} was added; try again")

    def create_index(self, column: str, threshold: int = 100_000, metric: str = "l2") -> bool:
        """Index a vector column for `nearest` if the store has at least `threshold` rows, and say whether.

        The index partitions the vectors and compares exactly inside the nearest partitions (IVF_FLAT).
        """
        self._check_writable()
        if len(self) < threshold:
            return False
        with self._writing():
            self.refresh()
            self._dataset.create_index(column, "IVF_FLAT", metric=metric, replace=True)
            self._sync_tree("_indices")
            self._sync_manifest()
        return True

    def compact(self, keep: timedelta = timedelta(hours=1)) -> dict[str, int]:
        """Merge small files, bring indices up to date and drop versions that were replaced more than `keep`
        ago.

        Readers which opened or refreshed within `keep` go on reading; writers are never disturbed.
        """
        self._check_writable()
        with self._writing():
            self.refresh()
            if len(self) >= _ID_INDEX_ROWS and not any(
                index.field_names == ["episode_id"] for index in self._dataset.describe_indices()
            ):
                self._dataset.create_scalar_index("episode_id", "BTREE")
            # Lance never merges a file that an index covers with one that it does not: indices come first.
            self._dataset.optimize.optimize_indices()
            self._sync_tree("_indices")
            self.refresh()
            for _ in range(_CONFLICT_RETRIES):
                plan = Compaction.plan(self._dataset, {})
                rewrites = [task.execute(self._dataset) for task in plan.tasks]
                for rewrite in rewrites:
                    self._sync_data(rewrite.new_fragments)
                try:
                    merged = Compaction.commit(self._dataset, rewrites) if rewrites else None
                    break
                except CommitConflictError:
                    self.refresh()
            else:
                raise StoreError(f"{self.path}: others kept rewriting the same files; compact again later")
            self._sync_tree("_indices")
            self.refresh()
            self._sync_manifest()
            dropped = self._drop_versions(keep)
        return {
            "files_removed": merged.files_removed if merged else 0,
            "files_added": merged.files_added if merged else 0,
            "versions_removed": dropped,
            "bytes": self._bytes(),
        }

    # -- reading -------------------------------------------------------------------------------------------

    def refresh(self) -> "Store":
        """Move to the newest version."""
        if self._dataset is None:
            self._dataset = self._open_newest()
        else:
            self._dataset.checkout_latest()
        return self

    def __len__(self) -> int:
        """Number of steps."""
        return 0 if self._dataset is None else self._dataset.count_rows()

    @property
    def schema(self) -> pa.Schema:
        """Columns and their types, annotations last."""
        return self._snapshot().schema

    @property
    def annotations(self) -> list[str]:
        """Names of the columns that were added later."""
        return [field.name for field in self.schema if _is_annotation(field)]

    @property
    def version(self) -> int:
        """The version being read; 0 before the first append."""
        return 0 if self._dataset is None else self._dataset.version

    @property
    def versions(self) -> list[dict[str, Any]]:
        """Every version that can still be read: its number, time and rows."""
        if self._dataset is None:
            return []
        return [
            {
                "version": entry["version"],
                "at": entry["timestamp"].astimezone(UTC),
                "steps": int(entry["metadata"]["total_rows"]),
            }
            for entry in self._dataset.versions()
        ]

    def read(
        self,
        *,
        episode_ids: Iterable[str] | None = None,
        source: str | Iterable[str] | None = None,
        policy_version: int | range | None = None,
        task_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Rows that match every filter, in the order in which they were appended.

        `since` is inclusive, `until` exclusive, a `range` of policy versions is as in Python.
        """
        where = _where(episode_ids, source, policy_version, task_id, since, until)
        return self._read(where=where, columns=columns, limit=limit)

    def episodes(
        self,
        *,
        episode_ids: Iterable[str] | None = None,
        source: str | Iterable[str] | None = None,
        policy_version: int | range | None = None,
        task_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Episode]:
        """Whole episodes with at least one row that matches every filter; `limit` counts episodes."""
        if episode_ids is not None and (source, policy_version, task_id, since, until) == (None,) * 5:
            ids = pa.array([episode_ids] if isinstance(episode_ids, str) else list(episode_ids), pa.string())
        else:
            where = _where(episode_ids, source, policy_version, task_id, since, until)
            ids = self._read(where=where, columns=["episode_id"])["episode_id"].unique()
        if limit is not None:
            ids = ids.slice(0, limit)
        if columns is not None:
            columns = [*dict.fromkeys(["episode_id", "step", "reward", *columns])]
        for start in range(0, len(ids), 256):
            chosen = ids.slice(start, 256).to_pylist()
            yield from split_episodes(self._read(where=_where(chosen), columns=columns))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, some thousands at a time."""
        yield from self._snapshot().to_batches(
            columns=None if columns is None else list(columns), scan_in_order=True
        )

    def take(self, row_indices: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows at these positions of `read()`, in the order asked for."""
        rows = pa.array(np.asarray(row_indices, np.int64))
        return self._snapshot().take(rows, columns=None if columns is None else list(columns))

    def nearest(
        self,
        column: str,
        query: np.ndarray,
        k: int,
        *,
        source: str | Iterable[str] | None = None,
        task_id: str | None = None,
        policy_version: int | range | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """The `k` rows whose vector is closest to `query`, nearest first, with their `_distance` (L2
        squared).

        Exact unless `create_index` has indexed the column. Filters apply before the search.
        """
        dataset = self._snapshot()
        type_ = dataset.schema.field(column).type if column in dataset.schema.names else None
        if type_ is None or not pa.types.is_fixed_size_list(type_):
            raise ValueError(
                f"{column}: expected a column of fixed-size vectors, came {type_ or 'no such column'}"
            )
        query = np.asarray(query, np.float32)
        if query.shape != (type_.list_size,):
            raise ValueError(f"query: expected shape ({type_.list_size},) as in {column}, came {query.shape}")
        return dataset.to_table(
            columns=None if columns is None else [*columns, "_distance"],
            filter=_where(None, source, policy_version, task_id),
            nearest={"column": column, "q": query, "k": k},
            prefilter=True,
        )

    def stats(self) -> dict[str, Any]:
        """Episodes and steps by source, policy version and task; bytes; quantiles of the return."""
        if len(self) == 0:
            return {"path": self.path, "version": self.version, "episodes": 0, "steps": 0, "bytes": 0}
        by = [name for name in ("source", "policy_version", "task_id") if name in self.schema.names]
        table = self._read(columns=["episode_id", "reward", *by])
        table = table.set_column(2, "source", table["source"].cast(pa.string()))
        returns = table.group_by("episode_id").aggregate([("reward", "sum")])["reward_sum"]
        result: dict[str, Any] = {
            "path": self.path,
            "version": self.version,
            "episodes": len(returns),
            "steps": table.num_rows,
            "bytes": self._bytes(),
            "columns": {field.name: str(field.type) for field in self.schema},
            "annotations": self.annotations,
        }
        for name in by:
            groups = table.group_by(name).aggregate([("episode_id", "count_distinct"), ([], "count_all")])
            result[f"by_{name}"] = {
                str(row[name]): {"episodes": row["episode_id_count_distinct"], "steps": row["count_all"]}
                for row in groups.sort_by(name).to_pylist()
            }
        quantiles = (0.0, 0.25, 0.5, 0.75, 1.0)
        values = pc.quantile(returns, q=list(quantiles)).to_pylist()
        result["return_quantiles"] = dict(zip(map(str, quantiles), values, strict=True))
        return result

    def verify(self) -> dict[str, Any]:
        """Check every row, and report what is wrong, an empty list of `problems` if nothing is.

        An episode has the steps 0 … n-1 exactly once and ends terminated, truncated or with an error; numbers
        are finite; a synthetic step carries no propensity.
        """
        if len(self) == 0:
            return {"path": self.path, "version": self.version, "episodes": 0, "steps": 0, "problems": []}
        names = set(self.schema.names)
        optional = [name for name in ("error", "behaviour_log_prob", "propensity") if name in names]
        columns = ["episode_id", "step", "terminated", "truncated", "source", "reward", *optional]
        table = self._read(columns=columns)
        ids = table["episode_id"].combine_chunks().dictionary_encode()
        problems = [*_broken_episodes(table, ids), *_broken_provenance(table)]
        if table["reward"].null_count:
            unexplained = table["reward"].is_null().to_numpy()
            if "error" in names:
                unexplained &= table["error"].is_null().to_numpy()
            problems += [
                f"reward: row {row} is null without an error" for row in np.flatnonzero(unexplained)[:10]
            ]
        start = 0
        blocks = [name for name in ("observation", "action", "final_observation") if name in names]
        for batch in self.batches(blocks):
            for name in blocks:
                row = first_not_finite(pa.chunked_array([batch[name]]))
                if row is not None:
                    problems.append(f"{name}: row {start + row} is not finite")
            start += batch.num_rows
        for name in ("reward", *optional):
            row = first_not_finite(table[name])
            if row is not None:
                problems.append(f"{name}: row {row} is not finite")
        return {
            "path": self.path,
            "version": self.version,
            "episodes": len(ids.dictionary),
            "steps": table.num_rows,
            "problems": problems,
        }

    # -- inside --------------------------------------------------------------------------------------------

    def _read(
        self, where: str | None = None, columns: Sequence[str] | None = None, limit: int | None = None
    ) -> pa.Table:
        dataset = self._snapshot()
        for name in columns or ():
            if name not in dataset.schema.names:
                raise ValueError(
                    f"columns: {name!r} is not in {self.path}; it has {', '.join(dataset.schema.names)}"
                )
        try:
            return dataset.to_table(
                columns=None if columns is None else list(columns),
                filter=where,
                limit=limit,
                scan_in_order=True,
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: cannot filter by {where}: {_first_line(error)}") from error

    def _snapshot(self) -> LanceDataset:
        if self._dataset is None:
            raise StoreError(f"{self.path}: holds no experience yet; append to it or refresh first")
        return self._dataset

    def _check_writable(self) -> None:
        if self.mode != "a":
            raise StoreError(f"{self.path}: opened to read; open it with mode='a' to write")

    def _episode_ids(self) -> set[str]:
        """Ids in the store; only fragments not seen before are read."""
        fresh = [
            part for part in self._dataset.get_fragments() if part.fragment_id not in self._known_fragments
        ]
        if fresh:
            table = self._dataset.scanner(
                columns=["episode_id"], filter="step = 0", fragments=fresh
            ).to_table()
            self._known_ids.update(table["episode_id"].to_pylist())
            self._known_fragments.update(part.fragment_id for part in fresh)
        return self._known_ids

    def _create(self, schema: pa.Schema) -> None:
        """Make the dataset, empty; of two processes that try at once one makes it and both go on with it."""
        if not self._local:
            self._dataset = self._open_newest() or lance.write_dataset(schema.empty_table(), self.path)
            return
        Path(self.path).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._dataset = self._open_newest()
            if self._dataset is None:
                self._dataset = lance.write_dataset(schema.empty_table(), self.path)
                self._sync_manifest()
                for folder in (Path(self.path), *Path(self.path).resolve().parents[:2]):
                    sync(folder)
        finally:
            os.close(descriptor)

    def _fit(self, table: pa.Table) -> pa.Table:
        """The table in the store's order; a column of the vocabulary that the store lacks is added to it."""
        schema = self.schema
        late = [field for field in table.schema if field.name not in schema.names]
        strange = [field.name for field in late if field.name not in OPTIONAL and not _is_annotation(field)]
        if strange:
            name = strange[0]
            raise ValueError(
                f"{name}: {self.path} has no such column; annotate the rows with it, or write to a store "
                f"of its own"
            )
        for field in table.schema:
            if field.name in schema.names and schema.field(field.name).type != field.type:
                raise ValueError(
                    f"{field.name}: expected {schema.field(field.name).type} as in {self.path}, came "
                    f"{field.type}; "
                    "cast the column or write to a store of its own"
                )
            if field.name in schema.names and _is_annotation(schema.field(field.name)) > _is_annotation(
                field
            ):
                raise ValueError(
                    f"{field.name}: is an annotation of {self.path}; append the steps, then annotate them"
                )
        if late:
            self._add_columns(late)
        order = [name for name in self.schema.names if name in table.column_names]
        return table.select(order)

    def _add_columns(self, late: list[pa.Field]) -> None:
        for _ in range(_CONFLICT_RETRIES):
            self.refresh()
            absent = [field for field in late if field.name not in self.schema.names]
            if not absent:
                return
            try:
                self._dataset.add_columns(pa.schema(absent))
                self._sync_manifest()
                return
            except CommitConflictError:
                continue
        raise StoreError(f"{self.path}: others kept writing while {late[0].name!r} was added; append again")

    def _annotate(self, name: str, values: pa.Table, replace: bool) -> int:
        keys = self._dataset.scanner(
            columns=["episode_id", "step"], with_row_id=True, scan_in_order=True
        ).to_table()
        entries = values[name].combine_chunks()
        given = np.flatnonzero(entries.is_valid().to_numpy(zero_copy_only=False))
        rows = _match(keys, values.take(pa.array(given)), self.path)
        entries = entries.take(pa.array(given))
        if name not in self.schema.names:
            self._add_annotation(name, rows, entries)
            return len(rows)
        known = self.schema.field(name).type
        if known != entries.type:
            raise ValueError(
                f"{name}: expected {known} as annotated before, came {entries.type}; cast the column"
            )
        if not replace:
            taken = self._read(columns=[name])[name].is_valid().to_numpy()[rows]
            if taken.any():
                row = int(rows[np.argmax(taken)])
                raise ValueError(
                    f"{name}: {int(taken.sum())} rows have a value already (first: episode "
                    f"{keys['episode_id'][row]}, "
                    f"step {keys['step'][row]}); pass replace=True to overwrite them"
                )
        self._replace_annotation(name, keys["_rowid"].to_numpy()[rows], entries)
        return len(rows)

    def _add_annotation(self, name: str, rows: np.ndarray, entries: pa.Array) -> None:
        position = np.full(len(self), -1, np.int64)
        position[rows] = np.arange(len(rows))
        column = entries.take(pa.array(position, mask=position < 0))
        schema = pa.schema([pa.field(name, entries.type, metadata=ANNOTATION)])
        start, changed, merged = 0, [], None
        for part in self._dataset.get_fragments():
            length = part.count_rows()
            batch = pa.record_batch([column.slice(start, length)], schema=schema)
            metadata, merged = part.merge_columns(pa.RecordBatchReader.from_batches(schema, [batch]))
            changed.append(metadata)
            start += length
        self._sync_data(changed)
        self._commit(LanceOperation.Merge(changed, merged))

    def _replace_annotation(self, name: str, row_ids: np.ndarray, entries: pa.Array) -> None:
        changed, field_ids = [], set()
        home = row_ids >> 32
        for part in self._dataset.get_fragments():
            here = np.flatnonzero(home == part.fragment_id)
            if here.size:
                update = pa.table({"_rowid": pa.array(row_ids[here]), name: entries.take(pa.array(here))})
                metadata, touched = part.update_columns(update)
                changed.append(metadata)
                field_ids.update(touched)
        self._sync_data(changed)
        self._commit(LanceOperation.Update(updated_fragments=changed, fields_modified=sorted(field_ids)))

    def _commit(self, operation: LanceOperation.BaseOperation) -> None:
        self._dataset = LanceDataset.commit(self._dataset, operation, read_version=self._dataset.version)
        self._sync_manifest()

    def _commit_rows(self, fragments: list) -> None:
        """Rows stay right whatever others wrote meanwhile, but Lance asks to try again."""
        for _ in range(_CONFLICT_RETRIES):
            try:
                self._commit(LanceOperation.Append(fragments))
                return
            except CommitConflictError:
                self.refresh()
        raise StoreError(f"{self.path}: others kept rewriting the store; append again")

    def _drop_versions(self, keep: timedelta) -> int:
        """Drop what was replaced before `keep` ago: a version's own age does not say when readers left it."""
        known = self.versions
        limit = datetime.now(UTC) - keep
        old = [entry["version"] for entry, next_ in itertools.pairwise(known) if next_["at"] < limit]
        return self._dataset.cleanup_old_versions(versions=old).old_versions if old else 0

    def _bytes(self) -> int:
        files = (file for part in self._dataset.get_fragments() for file in part.data_files())
        return sum(file.file_size_bytes or 0 for file in files)

    def _open_newest(self) -> LanceDataset | None:
        if self._local and not any(Path(self.path, "_versions").glob("*.manifest")):
            return None
        try:
            return lance.dataset(self.path)
        except (OSError, ValueError) as error:
            if not self._local:
                if "not found" in str(error).lower():
                    return None
                raise StoreError(f"{self.path}: cannot be opened: {_first_line(error)}") from error
            if self.mode == "a" and self._drop_torn_manifest():
                return self._open_newest()
            raise StoreError(f"{self.path}: cannot be opened: {_first_line(error)}") from error

    def _drop_torn_manifest(self) -> bool:
        """Remove a newest manifest that a power failure cut short; its append was never acknowledged."""
        # Version numbers count down in the file names, so the newest sorts first.
        newest = min(Path(self.path, "_versions").glob("*.manifest"))
        if newest.read_bytes().endswith(_MANIFEST_MAGIC):
            return False
        newest.unlink()
        return True

    # -- safety of local files -----------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, CommitConflictError):
            raise
        except OSError as error:
            raise StoreError(f"{self.path}: {_why(error)}; the episodes stored before are intact") from error

    def _sync_data(self, fragments: Iterable) -> None:
        if not self._local:
            return
        folder = Path(self.path, "data")
        for fragment in fragments:
            for file in fragment.files:
                sync(folder / file.path)
        sync(folder)

    def _sync_manifest(self) -> None:
        if not self._local:
            return
        folder = Path(self.path, "_versions")
        sync(folder / f"{2**64 - 1 - self._dataset.version}.manifest")
        sync(folder)

    def _sync_tree(self, name: str) -> None:
        if self._local:
            for path in (Path(self.path, name), *Path(self.path, name).rglob("*")):
                if path.exists():
                    sync(path)


def _why(error: OSError) -> str:
    text = str(error)
    if error.errno == errno.ENOSPC or "os error 28" in text or "No space left" in text:
        return "the disk is full, free some space and append again"
    if error.errno == errno.EFBIG or "os error 27" in text:
        return "a file would grow beyond the allowed size (ulimit -f), raise the limit and append again"
    return f"could not write: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(", /home/runner")[0]


def _is_annotation(field: pa.Field) -> bool:
    return bool(field.metadata) and ANNOTATION.items() <= field.metadata.items()


def _entries(values: np.ndarray) -> pa.Array:
    values = np.asarray(values)
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))


def _match(keys: pa.Table, wanted: pa.Table, path: str) -> np.ndarray:
    """Row of `keys` for each (episode_id, step) of `wanted`."""
    ids = keys["episode_id"].unique()
    known = _combined_key(keys, ids)
    asked = _combined_key(wanted, ids)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], asked).clip(max=max(len(known) - 1, 0))
    rows = order[place] if len(known) else np.zeros(len(asked), np.int64)
    strange = np.flatnonzero(known[rows] != asked) if len(known) else np.arange(len(asked))
    if strange.size:
        row = int(strange[0])
        raise ValueError(
            f"episode_id, step: {wanted['episode_id'][row]}, {wanted['step'][row]} is not in {path}; "
            "annotate rows that exist"
        )
    if len(np.unique(rows)) != len(rows):
        raise ValueError("episode_id, step: a row comes twice in the annotation; give each row once")
    return rows


def _combined_key(table: pa.Table, ids: pa.Array) -> np.ndarray:
    code = pc.index_in(table["episode_id"], value_set=ids).fill_null(-1).to_numpy().astype(np.int64)
    return (code << 32) + table["step"].to_numpy()


def _where(
    episode_ids: Iterable[str] | None = None,
    source: str | Iterable[str] | None = None,
    policy_version: int | range | None = None,
    task_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> str | None:
    terms = []
    if episode_ids is not None:
        ids = [episode_ids] if isinstance(episode_ids, str) else list(episode_ids)
        terms.append(f"episode_id IN ({', '.join(map(_quoted, ids))})" if ids else "false")
    if source is not None:
        sources = [source] if isinstance(source, str) else list(source)
        for name in sources:
            if name not in list(Source):
                raise ValueError(f"source: {name!r} is none of {', '.join(Source)}")
        terms.append(
            f"({' OR '.join(f'source = {_quoted(name)}' for name in sources)})" if sources else "false"
        )
    if isinstance(policy_version, range):
        if policy_version.step != 1:
            raise ValueError(f"policy_version: expected a range of step 1, came {policy_version}")
        terms.append(f"policy_version >= {policy_version.start} AND policy_version < {policy_version.stop}")
    elif policy_version is not None:
        terms.append(f"policy_version = {int(policy_version)}")
    if task_id is not None:
        terms.append(f"task_id = {_quoted(task_id)}")
    if since is not None:
        terms.append(f"created_at >= {_instant(since)}")
    if until is not None:
        terms.append(f"created_at < {_instant(until)}")
    return " AND ".join(terms) or None


def _quoted(text: str) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def _instant(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError(f"since, until: {at} has no time zone; give datetime.now(UTC) or the like")
    return f"timestamp '{at.astimezone(UTC).strftime('%Y-%m-%d %H:%M:%S.%f')}+00:00'"


def _broken_episodes(table: pa.Table, ids: pa.DictionaryArray) -> list[str]:
    code, step = ids.indices.to_numpy(), table["step"].to_numpy()
    order = np.lexsort((step, code))
    code, step = code[order], step[order]
    first = np.flatnonzero(np.diff(code, prepend=-1))
    last = np.append(first[1:], len(code)) - 1
    expected = np.arange(len(code)) - np.repeat(first, last - first + 1)
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    if "error" in table.column_names:
        ended |= table["error"].is_valid().to_numpy()
    ended = ended[order]
    inside = ended.copy()
    inside[last] = False
    twice = (code[1:] == code[:-1]) & (step[1:] == step[:-1])
    findings = (
        (code[1:][twice], "its id or a step comes twice"),
        (code[step != expected], "its steps are not 0, 1, 2, … without a gap"),
        (code[last[~ended[last]]], "it does not end in terminated, truncated or an error"),
        (code[inside], "it goes on after its end"),
    )
    return [
        f"episode {ids.dictionary[int(episode)]}: {what}"
        for episodes, what in findings
        for episode in np.unique(episodes)
    ]


def _broken_provenance(table: pa.Table) -> list[str]:
    source = table["source"].cast(pa.string())
    problems = []
    strange = pc.invert(pc.is_in(source, value_set=pa.array([name.value for name in Source])))
    for row in np.flatnonzero(strange.to_numpy())[:10]:
        problems.append(f"source: row {row} holds {source[int(row)]}")
    synthetic = pc.is_in(source, value_set=pa.array(["dreamed", "guided"]))
    for name in ("behaviour_log_prob", "propensity"):
        if name in table.column_names:
            wrong = pc.and_(synthetic, table[name].is_valid()).to_numpy()
            problems += [f"{name}: synthetic row {row} carries one" for row in np.flatnonzero(wrong)[:10]]
    return problems
