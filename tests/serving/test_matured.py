"""Decisions move into the store once, whatever is killed in between; the gate reads those that have matured."""

import time

import numpy as np
import pytest
from live_service import SCHEMA, calling, make_folder, serving
from logged_rows import outcome

from peira.evaluation.off_policy.evaluate import evaluate
from peira.experience.decision_formats import read_decisions
from peira.experience.decision_steps import steps_to_decisions
from peira.experience.decisions import LoggedDecisions
from peira.experience.store import Store
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.policies.oracles.make import make_oracle
from peira.serving.database import SqliteDatabase, open_database
from peira.serving.deployment import decide, policy_in_force
from peira.serving.matured import compact, judge
from peira.serving.options import Options
from peira.serving.requests import DecideRequest

OPTIONS = Options(window=100.0)


def fill(folder, rows: int = 60, age: float = 500.0, best: str | None = None, prefix: str = "e") -> None:
    """Uniform decisions of some age; every third has no outcome; `best` succeeds nine times in ten, others once."""
    rng = np.random.default_rng(rows)
    decided = time.time() - age
    asked = [
        DecideRequest(
            f"{prefix}{n}",
            True,
            {"amount": float(rng.normal()), "country": "NL"},
            ("a", "b", "c"),
            None,
            None,
            None,
            1,
        )
        for n in range(rows)
    ]
    decisions = decide(policy_in_force(folder, SCHEMA), SCHEMA, asked, 3, decided)
    outcomes = [
        outcome(row.event_id, float(rng.random() < (0.9 if row.action == best else 0.1)), decided + 50)
        for number, row in enumerate(decisions)
        if best is not None or number % 3
    ]
    database = open_database(None, folder)
    database.record(decisions, outcomes, OPTIONS.window)
    database.close()


def record_late(folder, event_id: str, reward: float) -> None:
    database = open_database(None, folder)
    assert (
        database.record([], [outcome(event_id, reward, time.time())], OPTIONS.window).outcomes[0].status
        == "late"
    )
    database.close()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "served")


def test_matured_decisions_move_once_and_late_outcomes_change_nothing(folder):
    fill(folder, 60)
    fill(folder, 10, age=20.0, prefix="young")
    assert compact(folder, OPTIONS) == 60
    before = Store.open(folder).read()
    assert before.num_rows == 60
    record_late(folder, "e0", 1.0)
    assert compact(folder, OPTIONS) == 0
    assert Store.open(folder).read().equals(before)
    rows = steps_to_decisions(before, SCHEMA)
    database = open_database(None, folder)
    logged, outcomes = database.matured(time.time() - 100, 0.0, 100)
    assert database.counts()["corrections"] == 1
    database.close()
    reward = {of.event_id: of.reward for of in outcomes}
    assert before["episode_id"].to_pylist() == [row.event_id for row in logged]
    assert rows.reward.tolist() == [reward.get(row.event_id, 0.0) for row in logged]
    assert np.count_nonzero([row.event_id not in reward for row in logged]) == 20
    assert rows.propensity.tolist() == [row.propensity for row in logged]
    assert [SCHEMA.actions[code] for code in rows.action] == [row.action for row in logged]


def test_the_store_is_read_by_evaluate_and_as_a_log_of_decisions(folder):
    fill(folder, 300, best="b")
    compact(folder, OPTIONS)
    report = evaluate(
        folder / "experience.lance",
        {"always b": np.tile([0.0, 1.0, 0.0], (300, 1))},
        estimators=("snipw",),
        resamples=100,
    )
    estimate = report["candidates"]["always b"]["estimates"]["snipw"]
    assert estimate["value"] == pytest.approx(0.9, abs=0.12)
    rows, schema = read_decisions(folder / "experience.lance")
    assert schema == SCHEMA and len(rows) == 300
    assert rows.reward[rows.action == 1].mean() == pytest.approx(estimate["value"])


STEPS = {
    "before the append": ("peira.serving.matured.Store.append", False),
    "after the append": ("peira.serving.matured.Store.append", True),
    "before it is said to be written": ("peira.serving.database.Database.written", False),
    "after it is said to be written": ("peira.serving.database.Database.written", True),
    "before the drop": ("peira.serving.database.Database.drop", False),
}


@pytest.mark.parametrize(("function", "after"), STEPS.values(), ids=STEPS)
def test_a_compaction_that_dies_loses_and_doubles_nothing(folder, monkeypatch, function, after):
    class Death(BaseException):
        pass

    fill(folder)
    module, _, name = function.rpartition(".")
    owner = {"Store": Store, "Database": SqliteDatabase.__mro__[1]}[module.rpartition(".")[2]]
    true = getattr(owner, name)

    def deadly(*arguments, **named):
        if after:
            true(*arguments, **named)
        raise Death

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(owner, name, deadly)
        compact(folder, OPTIONS)
    # Meanwhile an outcome comes for a row of the claim: it must not depend on the death whether it counts.
    record_late(folder, "e0", 1.0)
    fill(folder, 5, prefix="more")
    compact(folder, OPTIONS)
    steps = Store.open(folder).read()
    ids = steps["episode_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 65
    assert steps["reward"].to_pylist()[ids.index("e0")] == 0.0
    assert compact(folder, OPTIONS) == 0


def test_only_one_compaction_of_a_folder_runs(folder):
    import fcntl

    fill(folder)
    with (folder / ".compaction.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compact(folder, OPTIONS) == 0
    assert compact(folder, OPTIONS) == 60


def test_what_was_moved_long_ago_leaves_the_database(folder):
    fill(folder, 20, age=10 * 86_400)
    fill(folder, 20, prefix="new")
    assert compact(folder, Options(window=100.0, keep_days=5)) == 40
    database = open_database(None, folder)
    assert database.counts()["decisions"] == 20
    database.close()
    assert Store.open(folder).read().num_rows == 40


def test_the_service_compacts_by_itself(folder):
    fill(folder)
    with serving(folder, Options(window=100.0, compact_minutes=0.001)) as service, calling(service) as caller:
        until = time.monotonic() + 30
        while caller.metric("peira_compacted_decisions_total") < 60:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_gate_lets_a_better_policy_pass_and_refuses_a_worse_one(folder):
    fill(folder, 3000, best="b")
    rng = np.random.default_rng(0)
    choices = SCHEMA.encode([{"amount": 0.0, "country": "NL"}] * 3000, [["a", "b", "c"]] * 3000)
    column = rng.integers(3, size=3000)
    for name, best, version in (("better", 1, 1), ("worse", 0, 2)):
        rows = LoggedDecisions(
            choices=choices,
            column=column,
            propensity=np.full(3000, 1 / 3),
            reward=(column == best).astype(float),
            pmf=np.full((3000, 3), 1 / 3),
            generation=np.zeros(3000, np.int64),
            time=np.arange(3000.0),
            uniform=np.ones(3000, bool),
            cluster=np.arange(3000),
        )
        explorer = ExplorerConfig(kind="squarecb", gamma=50.0)
        oracle = make_oracle("ridge", SCHEMA, 0).fit(rows)
        policy = DecisionPolicy.deploy(oracle, explorer, choices, 3000, name, version)
        policy.save(folder / "candidates" / name)
    refused = judge(folder, OPTIONS, "worse", 0.0)
    assert not refused.passed and refused.reasons[0].startswith("the difference is known to be above -")
    unseen = judge(folder, OPTIONS, "better", time.time())
    assert unseen.reasons == ["there is no matured decision to compare on"]
    with serving(folder, OPTIONS) as service, calling(service) as caller:
        passed = caller.ask("POST", "/policy", {"candidate": "better", "since": 0})
        assert passed.status == 200 and passed.body["reasons"][0].startswith("better by at least 0.")
        actions = [caller.decide().body["action"] for _ in range(60)]
    assert actions.count("b") > 40
