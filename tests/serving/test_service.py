"""The service over HTTP: idempotent, late and early outcomes, hot swap, metrics, full disk, two of them."""

import shutil
import time

import judges
import pytest
from live_service import CONTEXT, calling, make_folder, serving

from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.serving.database import open_database
from peira.serving.options import Options


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "served")


def save_policy(place, version: int, kind: str = "uniform") -> None:
    DecisionPolicy(None, ExplorerConfig(kind=kind), id=f"p{version}", version=version).save(place)


def logged(folder, url=None):
    database = open_database(url, folder)
    try:
        return database.matured(9e15, 0.0, 10**6)
    finally:
        database.close()


def test_the_same_event_id_again_is_the_same_decision(folder):
    with serving(folder) as service, calling(service) as caller:
        first = caller.decide(event_id="e1")
        assert first.status == 200
        assert first.body["action"] == ["a", "b", "c"][first.body["index"]]
        assert first.body["propensity"] == pytest.approx(1 / 3)
        assert caller.decide(event_id="e1") == first
        assert caller.decide(event_id="e1", context={"country": "NL", "amount": 12.5}) == first
        for changed in ({"actions": ["a", "b"]}, {"context": {**CONTEXT, "amount": 1.0}}):
            refused = caller.decide(event_id="e1", **changed)
            assert refused.status == 409 and "was decided with other" in refused.body["error"]
        unnamed = {caller.decide().body["event_id"] for _ in range(5)}
        assert len(unnamed) == 5
    # Also after a restart, and where another policy decides by then.
    save_policy(folder / "policy", 7)
    with serving(folder) as service, calling(service) as caller:
        assert caller.decide(event_id="e1") == first
        assert caller.decide(event_id="e2").body["policy_version"] == 7
    decisions, _ = logged(folder)
    assert sorted(row.event_id for row in decisions) == sorted([*unnamed, "e1", "e2"])


def test_outcomes_are_idempotent_and_two_different_ones_are_both_kept(folder):
    with serving(folder) as service, calling(service) as caller:
        caller.decide(event_id="e1")
        stored, known = {"event_id": "e1", "status": "stored"}, {"event_id": "e1", "status": "known"}
        assert caller.outcome(event_id="e1", reward=1) == (200, stored)
        assert caller.outcome(event_id="e1", reward=1.0) == (200, known)
        assert caller.outcome(event_id="e1", reward=0.5, source="bank") == (200, stored)
        assert caller.outcome(event_id="e1", reward=1, outcome_id="second") == (200, stored)
        assert caller.outcome(event_id="e1", reward=0, outcome_id="second") == (200, known)
        assert caller.outcome(event_id="e2", reward=1).status == 404
    _, outcomes = logged(folder)
    assert sorted((of.reward, of.source) for of in outcomes) == [
        (0.5, "bank"),
        (1.0, "caller"),
        (1.0, "caller"),
    ]


def test_an_outcome_after_the_window_is_accepted_as_late(folder):
    with serving(folder, Options(window=0.05)) as service, calling(service) as caller:
        caller.decide(event_id="e1")
        time.sleep(0.1)
        late = caller.outcome(event_id="e1", reward=1)
        assert late == (202, {"event_id": "e1", "status": "late", "late": True})
        assert caller.outcome(event_id="e1", reward=1).body["status"] == "known"
        assert caller.metric('peira_outcomes_total{status="late"}') == 1
        assert caller.metric("peira_reward_mean") == 0
    database = open_database(None, folder)
    assert database.counts() == {"decisions": 1, "outcomes": 0, "corrections": 1}
    database.close()


def test_an_outcome_older_than_its_decision_is_kept_and_flagged(folder):
    with serving(folder) as service, calling(service) as caller:
        caller.decide(event_id="e1")
        early = caller.outcome(event_id="e1", reward=1, time=time.time() - 3600)
        assert early == (200, {"event_id": "e1", "status": "stored", "before_decision": True})
    _, outcomes = logged(folder)
    assert len(outcomes) == 1


def test_a_clock_that_goes_back_disturbs_nothing(folder, monkeypatch):
    clock = [2_000_000.0]
    with serving(folder, Options(window=100)) as service, calling(service) as caller:
        monkeypatch.setattr("peira.serving.recorder.time.time", lambda: clock[0])
        for number in range(4):
            assert caller.decide(event_id=f"e{number}").status == 200
            clock[0] -= 50
        # Now is 200 seconds before the first decision.
        assert [caller.outcome(event_id=f"e{number}", reward=1).body["status"] for number in range(4)] == [
            "stored"
        ] * 4
        monkeypatch.undo()
    decisions, outcomes = logged(folder)
    assert [row.event_id for row in decisions] == ["e0", "e1", "e2", "e3"]
    assert [row.timestamp for row in decisions] == [2_000_000.0, 1_999_950.0, 1_999_900.0, 1_999_850.0]
    assert len(outcomes) == 4


def test_a_decision_that_was_not_applied_is_marked(folder):
    with serving(folder) as service, calling(service) as caller:
        caller.decide(event_id="e1")
        assert caller.outcome(event_id="e1", applied=False).status == 200
    decisions, outcomes = logged(folder)
    assert decisions[0].applied == 0 and not outcomes


def test_a_candidate_takes_over_when_the_gate_agrees(folder):
    save_policy(folder / "candidates" / "next", 3)
    with serving(folder, judge=judges.agree) as service, calling(service) as caller:
        assert caller.ask("GET", "/policy").body["policy_version"] == 0
        answer = caller.ask("POST", "/policy", {"candidate": "next", "since": 5})
        assert answer.status == 200 and answer.body["policy_version"] == 3
        assert answer.body["reasons"] == ["next is better since 5"]
        assert caller.decide().body["policy_version"] == 3
        assert caller.metric("peira_policy_version") == 3
        assert caller.metric('peira_policy_swaps_total{result="passed"}') == 1
    with serving(folder) as service, calling(service) as caller:
        assert caller.decide().body["policy_version"] == 3


def test_a_candidate_that_the_gate_refuses_does_not_decide_unless_forced(folder):
    save_policy(folder / "candidates" / "next", 3)
    with serving(folder, judge=judges.refuse) as service, calling(service) as caller:
        refused = caller.ask("POST", "/policy", {"candidate": "next"})
        assert refused == (409, {"error": "gate: worse by 0.1; too few rows"})
        assert caller.decide().body["policy_version"] == 0
        forced = caller.ask("POST", "/policy", {"candidate": "next", "force": True})
        assert forced.status == 200 and forced.body["reasons"] == ["forced"]
        assert caller.decide().body["policy_version"] == 3


def test_a_gate_that_dies_leaves_the_old_policy(folder):
    save_policy(folder / "candidates" / "next", 3)
    with serving(folder, judge=judges.die) as service, calling(service) as caller:
        refused = caller.ask("POST", "/policy", {"candidate": "next"})
        assert refused.status == 503 and refused.body["error"].startswith("gate: ")
        assert caller.decide().body["policy_version"] == 0


def test_one_candidate_is_judged_at_a_time(folder):
    from concurrent.futures import ThreadPoolExecutor

    save_policy(folder / "candidates" / "next", 3)

    def propose(_: int) -> int:
        with calling(service) as caller:
            return caller.ask("POST", "/policy", {"candidate": "next"}).status

    with serving(folder, judge=judges.agree) as service, ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(propose, range(3))) == [200, 409, 409]


BAD_CANDIDATES = {
    "not there": ({"candidate": "nothing"}, 404, "candidate: there is no folder candidates/nothing"),
    "outside": ({"candidate": "../policy"}, 422, "candidate: expected the name of a folder in candidates/"),
    "hidden": ({"candidate": ".."}, 422, "candidate: expected the name of a folder in candidates/"),
    "damaged": ({"candidate": "damaged", "force": True}, 422, "policy: "),
    "same version": (
        {"candidate": "other", "force": True},
        422,
        "candidate: it has version 1 as the policy in force",
    ),
    "force of a text": (
        {"candidate": "other", "force": "yes"},
        422,
        "force: expected true or false, got 'yes'",
    ),
    "no candidate": ({}, 422, "candidate: expected a value, got nothing"),
}


def test_a_bad_candidate_leaves_the_old_policy(folder):
    save_policy(folder / "policy", 1)
    save_policy(folder / "candidates" / "other", 1, "greedy")
    save_policy(folder / "candidates" / "damaged", 2)
    about = folder / "candidates" / "damaged" / "policy.json"
    about.write_text(about.read_text().replace('"version": 2', '"version": 9'))
    with serving(folder) as service, calling(service) as caller:
        for body, status, error in BAD_CANDIDATES.values():
            refused = caller.ask("POST", "/policy", body)
            assert (refused.status, refused.body["error"][: len(error)]) == (status, error)
            assert caller.decide().body["policy_version"] == 1


def test_a_policy_that_another_service_installed_is_taken_up_and_a_corrupt_one_is_not(folder, monkeypatch):
    monkeypatch.setattr("peira.serving.service.WATCH_SECONDS", 0.02)
    for version in (1, 2, 4):
        save_policy(folder / "candidates" / f"v{version}", version)
    shutil.copytree(folder / "candidates" / "v1", folder / "policy")

    def version_becomes(caller, version: int) -> bool:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if caller.decide().body["policy_version"] == version:
                return True
        return False

    with (
        serving(folder, judge=judges.agree) as service,
        calling(service) as caller,
        serving(folder) as other,
        calling(other) as beside,
    ):
        assert beside.decide().body["policy_version"] == 1
        assert caller.ask("POST", "/policy", {"candidate": "v2", "force": True}).status == 200
        assert version_becomes(beside, 2)
        # Somebody's disk, or hand, damages the policy in force.
        about = folder / "policy" / "policy.json"
        about.write_text(about.read_text()[:40])
        until = time.monotonic() + 10
        while beside.metric('peira_faults_total{part="policy"}') < 1:
            assert time.monotonic() < until
        assert beside.decide().body["policy_version"] == 2
        assert caller.ask("POST", "/policy", {"candidate": "v4", "force": True}).status == 200
        assert version_becomes(beside, 4)


def test_metrics_tell_what_was_decided(folder):
    DecisionPolicy(None, ExplorerConfig(kind="uniform", uniform_slice=1.0), id="u", version=2).save(
        folder / "policy"
    )
    with serving(folder) as service, calling(service) as caller:
        chosen = [
            caller.decide(event_id=f"e{number}", actions=["a", "b"]).body["action"] for number in range(20)
        ]
        caller.decide(event_id="e0", actions=["a", "b"])  # Known already: not another decision.
        caller.decide(override="c")
        caller.decide(actions=[])
        for number, reward in enumerate((1, 0, 1, 1)):
            caller.outcome(event_id=f"e{number}", reward=reward)
        for action in ("a", "b"):
            assert caller.metric(f'peira_decisions_total{{action="{action}"}}') == chosen.count(action)
        assert caller.metric("peira_overrides_total") == 1
        assert caller.metric('peira_propensity_bucket{le="0.5"}') == 20
        assert caller.metric('peira_propensity_bucket{le="0.3"}') == 0
        assert caller.metric("peira_reward_mean") == 0.75
        assert caller.metric('peira_reward_count{policy_version="2"}') == 4
        assert caller.metric("peira_uniform_slice_share") == pytest.approx(20 / 21)
        assert caller.metric('peira_requests_total{path="/decide",status="200"}') == 22
        assert caller.metric('peira_requests_total{path="/decide",status="422"}') == 1
        assert caller.metric('peira_request_seconds_count{path="/outcome"}') == 4
        assert caller.metric("peira_write_batch_count") >= 20


def test_a_full_disk_is_said_and_the_service_goes_on_when_there_is_room(folder):
    with serving(folder) as service, calling(service) as caller:
        caller.decide(event_id="before")
        connection = service._recorder._database._connected()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        big = {**CONTEXT, "note": "x" * 60_000}
        full = caller.decide(event_id="big", context=big)
        assert full.status == 507 and "database or disk is full; nothing was recorded" in full.body["error"]
        assert caller.decide(event_id="big", context=big).status == 200  # The limit went with the connection.
    decisions, _ = logged(folder)
    assert [row.event_id for row in decisions] == ["before", "big"]


def test_too_many_waiting_requests_are_refused(folder, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from peira.serving.database import SqliteDatabase

    record = SqliteDatabase.record

    def slow(*given):
        time.sleep(0.05)
        return record(*given)

    monkeypatch.setattr(SqliteDatabase, "record", slow)
    monkeypatch.setattr("peira.serving.recorder.LARGEST_BATCH", 1)
    with serving(folder, Options(most_waiting=2)) as service:

        def ask(number: int):
            with calling(service) as caller:
                return caller.decide(event_id=f"e{number}")

        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(ask, range(12)))
    refused = [reply for reply in replies if reply.status == 503]
    assert refused and refused[0].body["error"] == "queue: 2 requests are waiting already; try again later"
    answered = {reply.body["event_id"] for reply in replies if reply.status == 200}
    assert {row.event_id for row in logged(folder)[0]} == answered and len(answered) == 12 - len(refused)


def test_two_services_on_one_database_share_their_events(folder, tmp_path, url):
    second = folder if url is None else make_folder(tmp_path / "second")
    options = Options(database=url)
    with (
        serving(folder, options) as one,
        serving(second, options) as two,
        calling(one) as here,
        calling(two) as there,
    ):
        first = here.decide(event_id="shared")
        assert there.decide(event_id="shared") == first
        assert there.outcome(event_id="shared", reward=1).body["status"] == "stored"
        assert here.outcome(event_id="shared", reward=1).body["status"] == "known"
        for number in range(10):
            assert {of.decide(event_id=f"e{number}{of.port}").status for of in (here, there)} == {200}
    decisions, outcomes = logged(folder, url)
    assert len(decisions) == len({row.event_id for row in decisions}) == 21 and len(outcomes) == 1
