"""SFT, GRPO and ARPO from the command line to the policy on disk; resumed after a kill they come to the same policy."""

import json
import signal

import pytest
import torch
from command_processes import Commands, metrics, until_killed_in
from command_processes import summary as summary_of

from peira.experience.store import Store
from peira.policies.lm.model import load_language_policy

SMALL = ["--env", "texthouse-brief", "--num-envs", "16", "--evaluation-episodes", "8", "--no-compiled"]
GROUPS = ["--groups", "2", "--group-size", "4", "--evaluations", "2", "--tasks", "4"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def peira(commands):
    """Runs a recipe to its end; its summary."""

    def run(*arguments):
        ended = commands.run("run", *arguments, "--json")
        assert ended.status == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


@pytest.fixture(scope="module")
def warm(commands, peira):
    folder = commands.folder / "warm"
    summary = peira(
        "sft", *SMALL, "--steps", "1300", "--evaluations", "1", "--updates", "30", "--out", str(folder)
    )
    return folder, summary


def test_sft_writes_a_model_that_transformers_loads(warm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, summary = warm
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    ours = load_language_policy(str(folder / "policy"))
    messages = [{"role": "user", "content": "see shelf1 task take mug put shelf"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == ours.renderer.first(messages)
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
    positions = torch.arange(len(ids))[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.tensor([ids])).logits, ours.logits(torch.tensor([ids]), positions, mask)
        )
    assert ours.version > 0
    assert summary["ledger"]["real_steps"] <= 1300


def test_demonstrations_are_stored_with_their_tokens_and_without_propensity(warm):
    folder, summary = warm
    rows = Store.open(folder / "experience.lance").read()
    assert len(rows) == summary["ledger"]["real_steps"]
    assert set(rows["source"].to_pylist()) == {"human"}
    assert "behaviour_log_prob" not in rows.column_names
    assert all(rows["action_tokens"].to_pylist())


def test_arpo_keeps_a_whole_ledger(warm, peira, tmp_path):
    model = ["--model", str(warm[0] / "policy")]
    summary = peira("arpo", *SMALL, *GROUPS, *model, "--steps", "800", "--out", str(tmp_path / "run"))
    assert 0 < summary["ledger"]["real_steps"] <= 800
    assert summary["ledger"]["tokens"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["fresh_episodes"] == 8
        assert 0 <= row["dead_groups_after_replay"] <= row["dead_groups"] <= 1
        assert {
            "success",
            "parse_failures",
            "environment_errors",
            "trained_tokens",
            "staleness",
        } <= row.keys()
        assert row["effective_sample_size"] == pytest.approx(1.0, abs=0.05) or row["replayed_episodes"]
    stored = Store.open(tmp_path / "run" / "experience.lance").read()
    assert len(stored) == summary["ledger"]["real_steps"]
    lengths = [len(entry) for entry in stored["action_tokens"].to_pylist()]
    assert lengths == [len(entry) for entry in stored["behaviour_log_prob"].to_pylist()]


def test_arpo_without_replay_is_grpo(warm, peira, tmp_path):
    shared = [*SMALL, *GROUPS, "--model", str(warm[0] / "policy"), "--steps", "500", "--no-store"]
    grpo = peira("grpo", *shared, "--out", str(tmp_path / "grpo"))
    arpo = peira("arpo", *shared, "--no-replay", "--out", str(tmp_path / "arpo"))
    assert grpo["policy_hash"] == arpo["policy_hash"]
    assert grpo["score"] == arpo["score"]


@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("peira.policies.lm.sampler:choose", 150),  # while it generates
        ("peira.recipes.grpo:clipped_loss", 3),  # between the two steps of an update
        ("peira.experience.success_replay:Splice", 2),  # between replay and update
    ],
)
def test_a_killed_run_comes_to_the_same_policy(warm, peira, commands, tmp_path, moment, call):
    model = ["--model", str(warm[0] / "policy")]
    order = ["arpo", *SMALL, *GROUPS, *model, "--steps", "800", "--checkpoint-seconds", "0"]
    order += ["--kl-coefficient", "0.02"]
    whole = commands.folder / "whole"
    if not (whole / "summary.json").exists():
        peira(*order, "--out", str(whole))
    folder = tmp_path / "killed"
    killed = commands.run("run", *order, "--out", str(folder), first=until_killed_in(moment, call=call))
    assert killed.status == -signal.SIGKILL
    peira("--resume", str(folder))
    assert summary_of(folder)["policy_hash"] == summary_of(whole)["policy_hash"]
    assert metrics(folder) == metrics(whole)
    stored = Store.open(folder / "experience.lance").read()
    assert len(stored) == summary_of(folder)["ledger"]["real_steps"]
