"""Comparisons with a small stand-in for `peira run`: what is run, reused, resumed, refused and reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from peira.runs.compare import ComparisonFailed, compare, markdown, table, to_json

# Writes what a real run writes. `--learning-rate` is a setting, `--break-at SEED:ROW`, `--wait-at ROW` and
# `--deaf` (to Ctrl-C) are faults; a resumed run is not handed them again.
STAND_IN = """
import argparse, json, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("recipe", nargs="?")
parser.add_argument("--resume")
for option in ("--env", "--out", "--learning-rate", "--break-at", "--wait-at"):
    parser.add_argument(option)
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--steps", type=int)
parser.add_argument("--updates", type=int)
parser.add_argument("--seed", type=int)
asked = parser.parse_args()
if asked.deaf:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

out = Path(asked.resume or asked.out)
call = {"pid": os.getpid(), "argv": sys.argv[1:], "omp": os.environ.get("OMP_NUM_THREADS")}
with (out.parent.parent / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
if asked.resume:
    config = json.loads((out / "config.yaml").read_text())
else:
    config = {"recipe": asked.recipe, "env": asked.env, "seed": asked.seed}
    config |= {"updates": asked.updates} if asked.updates else {"steps": asked.steps}
    config["learning_rate"] = float(asked.learning_rate or 3e-4)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(json.dumps(config))

metrics = out / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
level = {"props": 20, "ppo": 10}[config["recipe"]] + config["seed"]
print(f"{config['recipe']} seed {config['seed']} starts", file=sys.stderr)
try:
    for row in range(done + 1, 6):
        if asked.break_at == f"{config['seed']}:{row}":
            raise FloatingPointError(f"reward is nan at row {row}")
        line = {"iteration": row, "staleness": 0.5, "real_steps": row * config.get("steps", 0) // 5}
        line |= {"updates": row * config["updates"] // 5} if "updates" in config else {}
        line |= {"sampling_error": 0.1 / row, "wall_seconds": row}
        if row % 2:
            line["evaluation_return"] = level * row / 5
        with metrics.open("a") as file:
            file.write(json.dumps(line) + "\\n")
        while asked.wait_at == str(row):
            time.sleep(0.02)
except KeyboardInterrupt:
    (out / "checkpoint").write_text(str(row))
    sys.exit(130)
summary = config | {"score": level, "score_interval": [level, level], "policy_hash": "", "out": str(out)}
summary["ledger"] = {"real_steps": config.get("steps", 0), "dreamed_steps": 0, "wall_seconds": 5.0}
summary["versions"] = {"torch": "2.13.0"}
(out / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> list[str]:
    script = tmp_path_factory.mktemp("program") / "stand_in.py"
    script.write_text(STAND_IN)
    return [sys.executable, "-S", str(script)]


@pytest.fixture(scope="module")
def run_comparison(stand_in):
    """Compare with a budget of 1 000 steps into `folder/out`; what it printed is then in `.printed`."""

    def run(
        folder, arms=None, *, seeds=2, steps=1000, env="Hopper-v5", jobs=2, on_terminal=False, unit="steps"
    ) -> dict:
        arms = {"props": [], "ppo": []} if arms is None else arms
        console = Console(file=StringIO(), width=100, force_terminal=on_terminal)
        settings = {"env": env, "steps": steps, "seeds": seeds, "jobs": jobs, "out": folder / "out"}
        settings["unit"] = unit
        try:
            return compare(arms, **settings, console=console, program=stand_in)
        finally:
            run.printed = console.file.getvalue()

    return run


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory, run_comparison) -> tuple[Path, dict, str]:
    """PROPS and PPO with two seeds each: their folder, the result, and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = run_comparison(folder)
    return folder, result, run_comparison.printed


@pytest.fixture
def finished(tmp_path, finished_once) -> Path:
    """A copy of the finished comparison to go on with."""
    shutil.copytree(finished_once[0] / "out", tmp_path / "out")
    (tmp_path / "out/runs/calls.jsonl").unlink()
    return tmp_path


@pytest.fixture
def result(finished_once) -> dict:
    return finished_once[1]


def calls(folder: Path) -> list[dict]:
    """The arguments and the thread limit of every run that was started, in order."""
    path = folder / "out/runs/calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_arm_runs_with_every_seed_and_the_same_budget(tmp_path, run_comparison):
    run_comparison(tmp_path, {"props": ["--learning-rate", "1e-3"], "ppo": []}, jobs=1)
    folder = str(tmp_path / "out/runs")
    same = ["--env", "Hopper-v5", "--steps", "1000"]
    assert [call["argv"] for call in calls(tmp_path)] == [
        ["run", "props", *same, "--seed", "0", "--out", f"{folder}/props/seed-0", "--learning-rate", "1e-3"],
        ["run", "ppo", *same, "--seed", "0", "--out", f"{folder}/ppo/seed-0"],
        ["run", "props", *same, "--seed", "1", "--out", f"{folder}/props/seed-1", "--learning-rate", "1e-3"],
        ["run", "ppo", *same, "--seed", "1", "--out", f"{folder}/ppo/seed-1"],
    ]


def test_recipes_that_learn_from_a_log_are_compared_on_updates(tmp_path, run_comparison):
    result = run_comparison(tmp_path, seeds=1, steps=500, unit="updates")
    assert calls(tmp_path)[0]["argv"][4:6] == ["--updates", "500"]
    assert (result["unit"], result["arms"]["ppo"]["curve"]["steps"]) == ("updates", [100, 300, 500])
    assert (tmp_path / "out/compare.md").read_text().startswith("# props, ppo on Hopper-v5, 500 updates\n")
    with pytest.raises(ValueError, match=r"updates: .* ran with 500, this comparison asks for 600"):
        run_comparison(tmp_path, seeds=1, steps=600, unit="updates")


def test_runs_beside_one_another_get_one_thread_each(finished_once):
    assert [call["omp"] for call in calls(finished_once[0])] == ["1"] * 4


def test_the_result_says_what_the_runs_say(finished_once, result):
    out = finished_once[0] / "out"
    assert result == json.loads((out / "compare.json").read_text())
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*")), "no unfinished file is left"
    assert result["versions"] == {"torch": "2.13.0"}
    assert (result["env"], result["steps"], result["seeds"]) == ("Hopper-v5", 1000, 2)


def test_scores_areas_and_ledger_of_an_arm(result):
    props = result["arms"]["props"]
    assert props["seeds"] == [0, 1]
    assert props["per_seed"] == [20, 21]
    assert (props["score_iqm"], props["interval"]) == (20.5, [20, 21])
    # Evaluated at 200, 600 and 1 000 steps, where the return is 1/5, 3/5 and 5/5 of its end: 3/5 on average.
    assert result["auc_steps"] == [200, 1000]
    assert props["auc_per_seed"] == pytest.approx([12, 12.6])
    assert props["ledger"] == pytest.approx(
        {
            "real_steps": 1000,
            "dreamed_steps": 0,
            "wall_seconds": 5,
            "staleness": 0.5,
            "sampling_error": 0.1 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5,
        }
    )


def test_curves_of_an_arm(result):
    props = result["arms"]["props"]
    assert props["curve"]["steps"] == [200, 600, 1000]
    assert props["curve"]["iqm"] == pytest.approx([4.1, 12.3, 20.5])
    assert props["curve"]["low"] == pytest.approx([4, 12, 20])
    assert props["ledger_curves"]["sampling_error"]["iqm"] == pytest.approx(
        [0.1 / row for row in range(1, 6)]
    )


def test_every_ordered_pair_is_compared(result):
    assert list(result["pairs"]) == ["props-ppo", "ppo-props"]
    pair = result["pairs"]["props-ppo"]
    assert (pair["difference"], pair["interval"]) == (10, [10, 10])
    assert (pair["probability_of_improvement"], pair["probability_of_improvement_interval"]) == (1, [1, 1])
    assert pair["auc"]["difference"] == pytest.approx(6)
    assert pair["auc"]["ratio"] == pytest.approx(20.5 / 10.5)
    assert pair["auc"]["ratio_interval"] == pytest.approx([21 / 11, 2])
    assert result["pairs"]["ppo-props"]["difference"] == -10


def test_one_seed_has_no_intervals_and_the_page_says_so(finished, run_comparison):
    result = run_comparison(finished, seeds=1)
    pair = result["pairs"]["props-ppo"]
    assert result["arms"]["props"]["interval"] is None
    assert result["arms"]["props"]["curve"]["low"] is None
    assert (
        pair["interval"]
        is pair["probability_of_improvement_interval"]
        is pair["auc"]["ratio_interval"]
        is None
    )
    assert "No interval with fewer than 2 seeds" in markdown(result)
    assert "[" not in markdown(result).split("## Experience ledger")[0]


def test_finished_runs_are_reused_and_the_files_stay_the_same(finished, run_comparison):
    before = {name: (finished / "out" / name).read_bytes() for name in ("compare.json", "compare.md")}
    run_comparison(finished)
    assert calls(finished) == []
    assert before == {name: (finished / "out" / name).read_bytes() for name in before}
    assert "4 of 4 runs were finished before" in run_comparison.printed


def test_seeds_can_be_added_later(finished, run_comparison):
    result = run_comparison(finished, seeds=3)
    assert result["arms"]["ppo"]["per_seed"] == [10, 11, 12]
    assert len(calls(finished)) == 2


def test_a_half_finished_run_is_resumed(finished, run_comparison):
    folder = finished / "out/runs/ppo/seed-0"
    (folder / "summary.json").unlink()
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:2]))
    result = run_comparison(finished)
    assert [call["argv"] for call in calls(finished)] == [["run", "--resume", str(folder)]]
    assert result["arms"]["ppo"]["per_seed"] == [10, 11]
    assert (folder / "metrics.jsonl").read_text() == "".join(rows)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"env": "Walker2d-v5"},
            r"env: .*props.seed-0 ran with Hopper-v5, this comparison asks for Walker2d-v5; "
            r"ask for Hopper-v5 or choose another --out",
        ),
        ({"steps": 2000}, r"steps: .* ran with 1000, this comparison asks for 2000"),
        (
            {"arms": {"props": ["--learning-rate", "0.01"]}},
            r"arguments: .* ran with none, this comparison asks for --learning-rate 0.01",
        ),
    ],
)
def test_runs_with_other_settings_are_refused_and_left_alone(finished, run_comparison, asked, message):
    before = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*")}
    with pytest.raises(ValueError, match=message) as refusal:
        run_comparison(finished, seeds=3, **asked)
    assert "\n" not in str(refusal.value)
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*")}


@pytest.fixture
def made_by_hand(tmp_path) -> Path:
    """A finished run that no comparison started, so only its `config.yaml` tells its settings."""
    run = tmp_path / "out/runs/ppo/seed-0"
    run.mkdir(parents=True)
    config = {"env": "Hopper-v5", "steps": 1000, "learning_rate": 3e-4, "sizes": [64, 64], "anneal": True}
    (run / "config.yaml").write_text(json.dumps({"recipe": "ppo", "config": config}))
    (run / "summary.json").write_text(json.dumps({"score": 7.0, "ledger": {}, "versions": {}}))
    (run / "metrics.jsonl").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "1e-3"], r"learning_rate: .* ran with 0.0003, this comparison asks for 1e-3"),
        (["--learning-rate=1e-3"], r"learning_rate: .* ran with 0.0003, this comparison asks for 1e-3"),
        (["--sizes", "64", "32"], r"sizes: .* ran with 64 64, this comparison asks for 64 32"),
        (["--no-anneal"], r"anneal: .* ran with True, this comparison asks for False"),
    ],
)
def test_a_run_made_by_hand_must_have_the_settings(made_by_hand, run_comparison, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_comparison(made_by_hand, {"ppo": arguments}, seeds=1)


def test_a_run_made_by_hand_with_the_settings_is_reused(made_by_hand, run_comparison):
    arguments = ["--learning-rate=3e-4", "--sizes", "64", "64", "--anneal"]
    result = run_comparison(made_by_hand, {"ppo": arguments}, seeds=1)
    assert result["arms"]["ppo"]["per_seed"] == [7.0]
    assert result["arms"]["ppo"]["auc_iqm"] is result["arms"]["ppo"]["curve"] is None


def test_a_failing_run_is_named_with_what_it_said_and_the_others_finish(tmp_path, run_comparison):
    with pytest.raises(ComparisonFailed) as failure:
        run_comparison(tmp_path, {"props": ["--break-at", "0:3"], "ppo": []})
    message = str(failure.value)
    assert message.startswith("props seed 0 failed with exit code 1; the end of ")
    assert message.endswith("FloatingPointError: reward is nan at row 3")
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert result["arms"]["props"]["seeds"] == result["pairs"]["props-ppo"]["seeds"] == [1]
    assert result["arms"]["ppo"]["seeds"] == [0, 1]
    assert "Unfinished: 3 of 4 runs" in (tmp_path / "out/compare.md").read_text()


def test_a_failure_shows_only_its_own_attempt(tmp_path, run_comparison):
    log = tmp_path / "out/runs/props/seed-0/stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("of an earlier attempt\n")
    with pytest.raises(ComparisonFailed) as failure:
        run_comparison(tmp_path, {"props": ["--break-at", "0:1"]}, seeds=1)
    assert "props seed 0 starts" in str(failure.value)
    assert "earlier attempt" not in str(failure.value)
    assert log.read_text().startswith("of an earlier attempt\nprops seed 0 starts\n")


def test_when_all_fail_there_is_a_result_without_numbers(tmp_path, run_comparison):
    broken = ["--break-at", "0:1"]
    with pytest.raises(ComparisonFailed) as failure:
        run_comparison(tmp_path, {"props": broken, "ppo": broken}, seeds=1)
    assert "props seed 0 failed" in str(failure.value)
    assert "ppo seed 0 failed" in str(failure.value)
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert result["arms"]["props"]["score_iqm"] is None
    assert result["pairs"]["props-ppo"]["difference"] is None


def test_a_run_without_a_finite_score_is_a_failure(finished, run_comparison):
    summary = finished / "out/runs/ppo/seed-0/summary.json"
    summary.write_text(summary.read_text().replace('"score": 10', '"score": NaN'))
    with pytest.raises(ValueError, match="expected a finite score, got nan; delete the run's folder"):
        run_comparison(finished)


def start_and_wait(folder: Path, arms: dict[str, list[str]], program: list[str]) -> subprocess.Popen:
    """A comparison in a process of its own, whose first runs have reached the row at which they wait."""
    script = f"""
from rich.console import Console
from peira.runs.compare import compare
compare({arms!r}, env="Hopper-v5", steps=1000, seeds=2, out={str(folder / "out")!r}, jobs=2,
        console=Console(stderr=True), program={program!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    metrics = [folder / f"out/runs/{arm}/seed-0/metrics.jsonl" for arm in arms]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text().count("\n") == 3 for path in metrics):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_reaches_the_runs_and_the_comparison_can_go_on(tmp_path, stand_in, run_comparison):
    waiting = {"props": ["--wait-at", "3"], "ppo": ["--wait-at", "3"]}
    process = start_and_wait(tmp_path, waiting, stand_in)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Stopping 2 of the runs" in said
    assert said.rstrip().endswith("KeyboardInterrupt")
    checkpoints = [tmp_path / f"out/runs/{arm}/seed-0/checkpoint" for arm in waiting]
    assert [checkpoint.read_text() for checkpoint in checkpoints] == ["3", "3"]
    assert len(calls(tmp_path)) == 2, "nothing is started after Ctrl-C"
    assert run_comparison(tmp_path, waiting, seeds=1)["arms"]["props"]["per_seed"] == [20]


def test_a_second_ctrl_c_kills_runs_that_do_not_stop(tmp_path, stand_in):
    deaf = ["--wait-at", "3", "--deaf"]
    process = start_and_wait(tmp_path, {"props": deaf, "ppo": deaf}, stand_in)
    process.send_signal(signal.SIGINT)
    assert "Stopping 2 of the runs" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130)
    for call in calls(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(call["pid"], 0)


def test_plain_lines_in_a_pipe(finished_once):
    assert "[4/4]" in finished_once[2]
    assert "props seed 0 finished with a score of 20" in finished_once[2]
    assert "\x1b" not in finished_once[2]


def test_bars_on_a_terminal(finished, run_comparison):
    (finished / "out/runs/ppo/seed-1/summary.json").unlink()
    run_comparison(finished, on_terminal=True)
    assert "all runs" in run_comparison.printed
    assert "ppo seed 1 finished with a score of 11" in run_comparison.printed


def test_table_and_page_show_scores_pairs_and_ledger(result):
    console = Console(file=StringIO(), width=100)
    console.print(table(result))
    shown = console.file.getvalue()
    for text in ("20.5 [20, 21]", "props − ppo", "sampling error", "the interquartile mean is the mean"):
        assert text in shown
        assert text in markdown(result)
    # Nothing was dreamed by any arm, so there is no row for it.
    assert "dreamed" not in shown


def test_json_keeps_a_list_of_numbers_on_one_line():
    result = {
        "command": "peira --sizes [\n1, 2]",
        "curve": [1.5, -2e-07, None],
        "none": [],
        "arms": [{"a": 1}],
    }
    text = to_json(result)
    assert json.loads(text) == result
    assert '"curve": [1.5, -2e-07, null]' in text


@pytest.mark.parametrize("field", ["steps", "seeds", "jobs"])
def test_a_budget_below_one_is_refused(tmp_path, run_comparison, field):
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
        run_comparison(tmp_path, **{field: 0})
    assert not (tmp_path / "out").exists()
