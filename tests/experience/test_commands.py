import io
import json

import pytest
from episodes_for_tests import make_episode
from rich.console import Console

from peira.experience import commands
from peira.experience.store import Store, StoreError


@pytest.fixture
def path(tmp_path):
    Store.open(tmp_path, mode="a").append([make_episode(n) for n in range(4)])
    return tmp_path


@pytest.mark.parametrize("command", ["show", "stats", "verify", "compact"])
def test_each_command_returns_json_and_prints_for_people(path, command):
    console = Console(file=io.StringIO(), width=200)
    result = getattr(commands, command)(path, console=console)
    assert json.loads(json.dumps(result)) == result
    assert result["path"] in console.file.getvalue()


def test_show_lists_the_newest_episodes(path):
    latest = commands.show(path, limit=2, console=Console(file=io.StringIO()))["latest"]
    assert [entry["episode_id"] for entry in latest] == [make_episode(2).id, make_episode(3).id]


def test_export_then_import_moves_the_episodes(path, tmp_path):
    console = Console(file=io.StringIO())
    assert commands.export(path, tmp_path / "log.jsonl", console=console)["episodes"] == 4
    result = commands.import_(tmp_path / "other", tmp_path / "log.jsonl", console=console)
    assert (result["episodes"], result["steps"]) == (4, 48)


def test_a_path_without_a_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no store here"):
        commands.stats(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing to compact"):
        commands.compact(tmp_path / "nothing")
