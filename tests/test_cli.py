"""What the commands print, the files they leave, and what may be relied on in them."""

import json
import os
import pty
import re
from pathlib import Path

import pytest
from command_processes import FORKED_RUNS, TINY, TINY_PROPS, Commands, Ended, metrics, summary, wait_for

from peira.experience.store import Store

PROPS = ["props", "--env", "CartPole-v1", "--steps", "700", "--batch-steps", "128", *TINY_PROPS]
PPO = ["ppo", "--env", "CartPole-v1", "--steps", "700", "--batch-steps", "128", *TINY]
LEDGER_COLUMNS = {
    "staleness",
    "effective_sample_size",
    "kl_behaviour_target",
    "sampling_error",
    "real_steps",
}
COSTS = {"real_steps", "dreamed_steps", "replayed_steps", "human_steps", "tokens", "wall_seconds"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def ran(commands) -> dict[str, tuple[Path, Ended]]:
    """A run of each recipe with --json: its folder, and what it printed."""
    runs = {}
    for arguments in (PROPS, PPO):
        folder = commands.folder / arguments[0]
        ended = commands.run("run", *arguments, "--out", folder, "--json")
        assert ended.status == 0, ended.stderr
        runs[arguments[0]] = folder, ended
    return runs


# recipes and run --------------------------------------------------------------------------------------------


def test_recipes_are_listed(commands):
    listing = commands.run("recipes")
    as_json = json.loads(commands.run("recipes", "--json").stdout)
    assert {"ppo", "props", "ppo-buffer", "ros"} <= {recipe["name"] for recipe in as_json}
    for recipe in as_json:
        assert recipe["name"] in listing.stdout
        assert recipe["summary"] in listing.stdout
        assert recipe["source"] in listing.stdout


def test_the_version_is_that_of_the_package(commands):
    from importlib.metadata import version

    assert commands.run("--version").stdout == f"{version('peira')}\n"


@pytest.mark.parametrize("recipe", ["props", "ppo"])
def test_json_is_one_object_on_stdout_and_the_same_as_the_summary(ran, recipe):
    folder, ended = ran[recipe]
    assert ended.stdout.count("\n") == 1
    printed = json.loads(ended.stdout)
    assert printed == summary(folder)
    wanted = {"recipe", "env", "steps", "seed", "score", "score_interval", "ledger", "policy_hash", "out"}
    assert wanted <= set(printed)
    assert set(printed["ledger"]) >= COSTS | LEDGER_COLUMNS
    assert [printed[name] for name in ("recipe", "env", "steps", "seed")] == [recipe, "CartPole-v1", 700, 0]
    assert printed["out"] == str(folder)
    low, high = printed["score_interval"]
    assert low <= printed["score"] <= high
    assert len(printed["policy_hash"]) == 64
    assert {"torch", "peira", "gymnasium", "envpool"} <= set(printed["versions"])


@pytest.mark.parametrize("recipe", ["props", "ppo"])
def test_a_run_leaves_all_its_files(ran, recipe):
    folder, _ = ran[recipe]
    expected = {"config.yaml", "metrics.jsonl", "tensorboard", "experience.lance", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == expected | {"summary.json", "policy", "curve.png"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["5"]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any(path.name.startswith("events.out.tfevents") for path in (folder / "tensorboard").iterdir())
    assert {path.name for path in (folder / "policy").iterdir()} == {"policy.json", "policy.safetensors"}
    assert f"recipe: {recipe}\n" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("recipe", ["props", "ppo"])
def test_every_line_of_the_metrics_has_the_ledger(ran, recipe):
    rows = metrics(ran[recipe][0])
    assert len(rows) == 5
    for row in rows:
        assert set(row) >= LEDGER_COLUMNS
        assert all(isinstance(row[name], int | float) for name in LEDGER_COLUMNS)
        assert 0 < row["effective_sample_size"] <= 1 + 1e-6
        assert row["sampling_error"] >= 0
        assert row["kl_behaviour_target"] >= 0
    if recipe == "ppo":
        assert {row["staleness"] for row in rows} == {0}
    else:
        # From the second batch on half of the window is one version old.
        assert [row["staleness"] for row in rows] == [0, 0.5, 0.5, 0.5, 0.5]
        assert rows[-1]["share_replayed"] == 0.5


@pytest.mark.parametrize("recipe", ["props", "ppo"])
def test_the_budget_is_never_exceeded(ran, recipe):
    folder, ended = ran[recipe]
    # 700 steps hold five batches of 128; a sixth would exceed them.
    assert [row["real_steps"] for row in metrics(folder)] == [128, 256, 384, 512, 640]
    assert json.loads(ended.stdout)["ledger"]["real_steps"] == 640
    assert len(Store.open(folder / "experience.lance")) <= 640


def test_a_seed_decides_everything(commands, ran):
    for arguments in (PROPS, PPO):
        folder, _ = ran[arguments[0]]
        same, other = commands.folder / f"{arguments[0]}-same", commands.folder / f"{arguments[0]}-other"
        assert commands.run("run", *arguments, "--seed", "0", "--out", same).status == 0
        assert commands.run("run", *arguments, "--seed=1", "--out", other).status == 0
        assert metrics(same) == metrics(folder)
        assert summary(same)["policy_hash"] == summary(folder)["policy_hash"]
        assert metrics(other) != metrics(folder)
        assert summary(other)["policy_hash"] != summary(folder)["policy_hash"]


def test_a_store_is_not_kept_where_none_is_wanted(commands, tmp_path):
    ended = commands.run("run", *PPO, "--no-store", "--out", tmp_path / "run")
    assert ended.status == 0
    assert not (tmp_path / "run" / "experience.lance").exists()


def test_without_out_the_folder_names_recipe_environment_and_seed(commands):
    ended = commands.run("run", *PPO, "--seed", "7", "--json")
    out = json.loads(ended.stdout)["out"]
    assert re.fullmatch(r"runs/ppo-CartPole-v1-seed7-\d{8}-\d{6}", out)
    assert (commands.folder / out / "summary.json").exists()


def test_a_finished_run_is_not_run_again(commands, ran):
    folder, first = ran["ppo"]
    before = (folder / "metrics.jsonl").read_text()
    ended = commands.run("run", "--resume", folder, "--json")
    assert (ended.status, ended.stdout) == (0, first.stdout)
    assert ended.stderr == f"{folder} is finished; nothing to do\n"
    assert (folder / "metrics.jsonl").read_text() == before


def test_settings_that_are_the_same_may_be_repeated_when_resuming(commands, ran):
    folder, _ = ran["ppo"]
    ended = commands.run("run", "ppo", "--resume", folder, "--steps", "700", "--hidden", "8", "--out", folder)
    assert ended.status == 0


# What people see --------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines(commands, tmp_path):
    ended = commands.run("run", *PPO, "--out", tmp_path / "run")
    assert ended.stdout == ""
    progress, score, files = ended.stderr.splitlines()
    assert re.fullmatch(r"ppo CartPole-v1 seed 0: 640/700 steps, return [\d.]+, \d+ s", progress)
    assert re.fullmatch(
        r"score [\d.]+ \[[\d.]+, [\d.]+\] over 2 fresh episodes, 640 real steps, \d+ s", score
    )
    assert files == f"{tmp_path}/run: summary.json, metrics.jsonl, curve.png, policy/, experience.lance"
    assert "\x1b" not in ended.stderr


def test_a_terminal_shows_a_progress_bar(commands, tmp_path):
    ours, theirs = pty.openpty()
    command = commands.start(
        "run", *PPO, "--out", tmp_path / "run", terminal=os.ttyname(theirs), environment={"TERM": "xterm"}
    )
    wait_for(tmp_path / "run" / "config.yaml")  # It has opened its side by now: ours may go.
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # The other side is closed: the command has ended.
        pass
    assert command.wait().status == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "━" in text
    assert "ppo CartPole-v1 seed 0" in text
    assert "640/700 steps" in text
    assert "score" in text


# compare ----------------------------------------------------------------------------------------------------


def compare(commands: Commands, out: Path, seeds: int) -> Ended:
    tiny = [*TINY, "--props.behaviour-interval", "64", "--props.behaviour-epochs", "1"]
    # `retained` is a setting of PROPS only: given for all, it goes to the arm that has it.
    tiny += ["--props.behaviour-minibatches", "2", "--ppo.learning-rate", "1e-3", "--retained", "3"]
    budget = ["--steps", "512", "--batch-steps", "128", "--seeds", seeds, "--jobs", "2"]
    return commands.run(
        *["compare", "props", "ppo", "--env", "CartPole-v1", *budget, *tiny, "--out", out, "--json"],
        first=FORKED_RUNS,
    )


def test_a_comparison_reports_arms_and_pairs_and_grows_with_more_seeds(commands, tmp_path):
    out = tmp_path / "comparison"
    first = compare(commands, out, 1)
    assert first.status == 0, first.stderr
    alone = json.loads(first.stdout)
    of_first = {path: path.stat().st_mtime_ns for path in out.rglob("seed-0/summary.json")}
    assert len(of_first) == 2

    ended = compare(commands, out, 2)
    assert ended.status == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result == json.loads((out / "compare.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in of_first} == of_first  # What was done stays.
    assert "2 of 4 runs were finished before and are reused\n" in ended.stderr

    assert set(result["arms"]) == {"props", "ppo"}
    for name, arm in result["arms"].items():
        scores = [summary(out / "runs" / name / f"seed-{seed}")["score"] for seed in (0, 1)]
        assert arm["per_seed"] == scores
        assert arm["per_seed"][0] == alone["arms"][name]["per_seed"][0]
        assert arm["score_iqm"] == pytest.approx(sum(scores) / 2)
        assert arm["interval"][0] <= arm["score_iqm"] <= arm["interval"][1]
        assert len(arm["auc_per_seed"]) == 2
        assert arm["ledger"]["real_steps"] == 512
    pair = result["pairs"]["props-ppo"]
    for part in (pair, pair["auc"]):
        assert set(part) >= {"difference", "interval", "probability_of_improvement"}
        assert part["interval"][0] <= part["difference"] <= part["interval"][1]
        assert 0 <= part["probability_of_improvement"] <= 1
    props, ppo = result["arms"]["props"], result["arms"]["ppo"]
    assert pair["difference"] == pytest.approx(props["score_iqm"] - ppo["score_iqm"])
    assert pair["auc"]["difference"] == pytest.approx(props["auc_iqm"] - ppo["auc_iqm"])

    config = (out / "runs" / "props" / "seed-0" / "config.yaml").read_text()
    assert "retained: 3\n" in config
    assert "retained" not in (out / "runs" / "ppo" / "seed-0" / "config.yaml").read_text()
    assert (out / "compare.md").exists()
    assert (out / "compare.png").exists()

    # The same command again runs nothing and says the same.
    again = compare(commands, out, 2)
    assert again.stdout.replace("\n", "") == ended.stdout.replace("\n", "")
    assert "4 of 4 runs were finished before and are reused\n" in again.stderr


def test_one_recipe_is_compared_with_itself_under_other_settings(commands, tmp_path):
    out = tmp_path / "twins"
    budget = ["--steps", "256", "--batch-steps", "128", "--seeds", "1", "--jobs", "1"]
    settings = ["--learning-rate", "1e-3", "--slow.learning-rate", "1e-4"]
    arms = ["fast=ppo", "slow=ppo", "--env", "CartPole-v1"]
    ended = commands.run(
        *["compare", *arms, *budget, *TINY, *settings, "--out", out, "--json"], first=FORKED_RUNS
    )
    assert ended.status == 0, ended.stderr
    assert set(json.loads(ended.stdout)["arms"]) == {"fast", "slow"}
    configs = {
        name: (out / "runs" / name / "seed-0" / "config.yaml").read_text() for name in ("fast", "slow")
    }
    assert all("recipe: ppo\n" in config for config in configs.values())
    assert "learning_rate: 0.001\n" in configs["fast"]
    assert "learning_rate: 0.0001\n" in configs["slow"]


# store ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(ran) -> Path:
    return ran["props"][0] / "experience.lance"


def test_a_runs_store_can_be_looked_at(commands, store):
    count = Store.open(store).verify()["episodes"]
    shown = json.loads(commands.run("store", "show", store, "--limit", "2", "--json").stdout)
    assert len(shown["latest"]) == 2
    assert {"observation", "behaviour_log_prob", "policy_version", "source"} <= set(shown["columns"])
    stats = json.loads(commands.run("store", "stats", "--json", store).stdout)
    assert (stats["episodes"], stats["steps"]) == (count, len(Store.open(store)))
    verified = json.loads(commands.run("store", "verify", store, "--json").stdout)
    assert (verified["episodes"], verified["problems"]) == (count, [])
    for action in ("show", "stats", "verify"):
        for_people = commands.run("store", action, store)
        assert for_people.status == 0
        assert str(shown["steps"]) in for_people.stdout
        assert not for_people.stdout.startswith("{")


def test_a_runs_store_can_be_taken_elsewhere_and_compacted(commands, store, tmp_path):
    count = Store.open(store).verify()["episodes"]
    for name in ("episodes.parquet", "episodes.jsonl"):
        written = json.loads(commands.run("store", "export", store, tmp_path / name, "--json").stdout)
        assert written["episodes"] == count
        copy = tmp_path / f"copy of {name}"
        for expected in (count, 0):  # A second time they are there already.
            read = json.loads(commands.run("store", "import", copy, tmp_path / name, "--json").stdout)
            assert read["episodes"] == expected
        for_people = commands.run("store", "compact", copy)
        assert for_people.status == 0
        assert "bytes" in for_people.stdout
        compacted = commands.run("store", "compact", copy, "--json")
        assert json.loads(compacted.stdout)["path"].startswith(str(copy))
        verified = json.loads(commands.run("store", "verify", copy, "--json").stdout)
        assert (verified["episodes"], verified["problems"]) == (count, [])


def test_a_damaged_store_is_found_out_with_status_1(commands, store, tmp_path):
    from peira.experience.commands import export, import_

    export(store, tmp_path / "episodes.parquet")
    import_(tmp_path / "copy", tmp_path / "episodes.parquet")
    (part,) = (tmp_path / "copy" / "experience.lance" / "data").iterdir()
    part.unlink()
    ended = commands.run("store", "verify", tmp_path / "copy", "--json")
    assert ended.status == 1
    assert ended.stderr.startswith("peira: ")
    assert "Traceback" not in ended.stderr
