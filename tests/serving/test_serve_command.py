"""What a person types and forgets: settings, tokens, folders; each fault is one line."""

import os
import stat

import pytest
from live_service import make_folder
from rich.console import Console

from peira.serving.command import serve
from peira.serving.options import Options
from peira.serving.tokens import Tokens, read_tokens

QUIET = Console(quiet=True)
BAD = {
    "port": ({"port": 70_000}, "port: expected 0 to 65535, got 70000"),
    "window": ({"window": 0.0}, "window: expected more than 0 seconds, got 0.0"),
    "default_reward": ({"default_reward": 2.0}, "default_reward: expected a number from 0 to 1"),
    "database": ({"database": "mysql://x"}, "database: expected postgresql://"),
    "confidence": ({"confidence": 1.0}, "confidence: expected a number between 0.5 and 1"),
    "most_actions": ({"most_actions": 0}, "most_actions: expected at least 1, got 0"),
    "demo_seconds": ({"demo_seconds": 5.0}, "demo_seconds: it ends a demonstration; add --demo"),
}


@pytest.mark.parametrize(("given", "error"), BAD.values(), ids=BAD)
def test_a_setting_out_of_range_is_named(given, error):
    with pytest.raises(ValueError, match=error):
        Options(**given)


def test_a_folder_without_schema_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"schema.json is not there; write one, such as \{.*or add --demo"):
        serve(tmp_path, Options(port=0), QUIET)
    with pytest.raises(ValueError, match=r"folder: .* is not there; make it"):
        serve(tmp_path / "nothing", Options(port=0), QUIET)


def test_a_damaged_policy_keeps_the_service_from_starting_and_is_named(tmp_path):
    (make_folder(tmp_path) / "policy").mkdir()
    with pytest.raises(ValueError, match=r"policy: .*policy.json cannot be read"):
        serve(tmp_path, Options(port=0), QUIET)


def test_a_token_is_made_that_only_its_owner_reads(tmp_path, monkeypatch):
    monkeypatch.delenv("PEIRA_TOKEN", raising=False)
    tokens, origin = read_tokens(tmp_path, None)
    assert origin == str(tmp_path / "token")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    made = (tmp_path / "token").read_text().strip()
    assert len(made) > 30
    assert read_tokens(tmp_path, None)[0] == tokens
    assert tokens.role(f"Bearer {made}".encode()) == tokens.role(f"bearer {made}".encode()) == "operator"
    for wrong in (made, f"Basic {made}", f"Bearer {made}x", "Bearer ", ""):
        assert tokens.role(wrong.encode()) is None
    assert made not in repr(tokens)


def test_tokens_have_roles_and_the_environment_gives_one(tmp_path, monkeypatch):
    listed = tmp_path / "tokens"
    listed.write_text("# who may ask\ncaller first-token-of-shop\noperator token-of-the-team\n\n")
    tokens, _ = read_tokens(tmp_path, listed)
    assert [tokens.role(f"Bearer {of}".encode()) for of in ("first-token-of-shop", "token-of-the-team")] == [
        "caller",
        "operator",
    ]
    monkeypatch.setenv("PEIRA_TOKEN", "token-of-the-environment")
    tokens, origin = read_tokens(tmp_path, None)
    assert origin == "PEIRA_TOKEN" and tokens.role(b"Bearer token-of-the-environment") == "operator"
    assert not (tmp_path / "token").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "tokens: expected at least one, got none"),
        ("short", "tokens: expected at least 16 ASCII characters, got 5"),
        ("admin a-token-that-is-long", "tokens: expected a role of caller or operator, got 'admin'"),
        ("caller a b", "token_file: line 1 of .*: expected ROLE TOKEN, got 3 words"),
    ],
)
def test_a_fault_in_the_token_file_is_named_and_shows_no_token(tmp_path, text, error):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ValueError, match=error) as caught:
        read_tokens(tmp_path, tmp_path / "tokens")
    assert "a-token-that-is-long" not in str(caught.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"token_file: .*tokens cannot be read \(FileNotFoundError\)"):
        read_tokens(tmp_path, tmp_path / "tokens")


def test_no_role_is_made_up():
    with pytest.raises(ValueError, match="expected a role"):
        Tokens((("root", os.urandom(8).hex().encode()),))
