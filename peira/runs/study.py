"""A study behind a claim: measured setting by setting, resumable, published beside its script."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from peira.evaluation.statistics import paired_difference, ratio_interval, stratified_bootstrap_interval
from peira.versions import machine, versions

RESAMPLES = 4_000


def root_mean_square(errors: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.mean(np.square(errors), axis=axis))


def rmse(errors: np.ndarray) -> dict:
    """Root mean square over data sets, with a 95 % bootstrap interval, and the bias."""
    interval = stratified_bootstrap_interval(
        errors, root_mean_square, rng=np.random.default_rng(0), resamples=RESAMPLES
    )
    return {
        "rmse": float(root_mean_square(errors)),
        "interval": [float(limit) for limit in interval],
        "bias": float(errors.mean()),
    }


def rmse_difference(errors: np.ndarray, baseline: np.ndarray) -> dict:
    """RMSE less that of the baseline on the same data sets, with a 95 % interval that redraws data sets in pairs."""
    found = paired_difference(
        errors, baseline, root_mean_square, rng=np.random.default_rng(0), resamples=RESAMPLES
    )
    return {"difference": found.estimate, "interval": found.interval}


def rmse_ratio(errors: np.ndarray, baseline: np.ndarray) -> dict:
    """RMSE divided by that of the baseline on the same data sets, with a paired 95 % interval."""
    found = ratio_interval(
        np.abs(errors),
        np.abs(baseline),
        root_mean_square,
        rng=np.random.default_rng(0),
        resamples=RESAMPLES,
    )
    return {"ratio": found.estimate, "interval": found.interval}


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


def measured(path: Path, labels: Iterable[str], measure: Callable[[str], dict]) -> dict[str, dict]:
    """`measure` of every label, kept line by line in `path` as they come: a study cut off goes on from there."""
    found = kept(path)
    labels = list(labels)
    began = time.monotonic()
    with path.open("a") as lines:
        for place, label in enumerate(labels):
            if label in found:
                continue
            found[label] = measure(label)
            lines.write(json.dumps([label, found[label]]) + "\n")
            lines.flush()
            print(
                f"{place + 1}/{len(labels)} {label} ({time.monotonic() - began:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return {label: found[label] for label in labels}


def publish(
    script: Path, arguments: str, document: dict, page: Callable[[dict], str], *, finished: bool = True
) -> None:
    """Write the .json and the .md beside a script of `results/` and print the page.

    What `measured` kept is removed when the study is finished; until then it stays beside the script and goes into the
    repository with it, so that whoever goes on measures only what is missing.
    """
    document = {
        "command": f"python results/{script.parent.name}/{script.name}{arguments}",
        **document,
        "versions": versions(),
        "machine": machine(),
    }
    script.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    footer = "Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    text = "\n".join([page(document), "", footer, ""])
    script.with_suffix(".md").write_text(text)
    if finished:
        partial(script).unlink(missing_ok=True)
    print(text)


def kept(path: Path) -> dict[str, dict]:
    """What a study has measured so far, by label."""
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}


def partial(script: Path) -> Path:
    """Where a study keeps what it has measured so far."""
    return script.with_suffix(".partial.jsonl")


def verdicts(accepted: Mapping[str, bool]) -> list[str]:
    """One line of Markdown for each acceptance figure."""
    return [f"- {what}: {'met' if met else 'not met'}" for what, met in accepted.items()]
