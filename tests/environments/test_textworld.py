"""TextWorld's games: what is read, what is refused, who wins, and a cache that no half-written file gets out of."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from peira.environments.text import SeparateTextEnvs
from peira.environments.textworld import TextWorldGame, compiled

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEIRA_CACHE", str(folder))
        yield folder


def game(**settings):
    return TextWorldGame("coin-collector", **{"level": 3, "num_tasks": 1, "num_held_out": 1, **settings})


def play(world, choose):
    """Observations, rewards and how it ended."""
    observation, _ = world.reset(options={"task": world.tasks[0]})
    observations, rewards = [observation], []
    while True:
        observation, reward, terminated, truncated, _ = world.step(choose(world))
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            return observations, rewards, terminated, truncated


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.z8")}


def test_the_expert_wins_and_the_reward_comes_with_the_end(capfd):
    observations, rewards, terminated, truncated = play(game(), TextWorldGame.expert_action)
    assert rewards == [0.0, 0.0, 1.0]
    assert (terminated, truncated) == (True, False)
    assert "*** The End ***" in observations[-1]
    assert capfd.readouterr().out == ""


def test_the_expert_wins_from_wherever_a_random_walk_led():
    world, generator = game(), np.random.default_rng(0)
    for _ in range(5):
        world.reset(options={"task": world.tasks[0]})
        terminated = False
        for _ in range(6):
            _, _, terminated, _, _ = world.step(
                str(generator.choice([a for a in world.admissible() if "take" not in a]))
            )
        while not terminated:
            _, reward, terminated, _, _ = world.step(world.expert_action())
        assert reward == 1.0


def test_a_random_player_mostly_loses():
    world, generator = game(max_steps=6), np.random.default_rng(1)
    ends = [play(world, lambda world: str(generator.choice(world.admissible()))) for _ in range(30)]
    assert sum(rewards[-1] for _, rewards, _, _ in ends) < 10
    lost = [end for end in ends if end[1][-1] == 0.0]
    assert all(
        truncated and not terminated and len(rewards) == 6 for _, rewards, terminated, truncated in lost
    )


def test_the_text_is_clean_and_begins_with_what_to_do():
    world = game()
    observation, info = world.reset(options={"task": world.held_out[0]})
    assert info == {}
    objective, room, *_ = observation.split("\n")
    assert "the coin from the floor" in objective
    assert "go " not in objective  # the goal, not the way
    assert room.startswith("-= ")
    for spoilt in ("$$", ">", "  ", "\n\n", "0/1"):
        assert spoilt not in observation


def test_the_same_task_is_the_same_game():
    first, again = game(), game(num_tasks=7)
    actions = ["look", "inventory", "go north", "go south", "go east", "go west", "examine coin", "take coin"]
    texts = []
    for world in (first, again, first):
        observation, _ = world.reset(options={"task": "coin-collector/3/0"})
        texts.append([observation, *(world.step(action)[0] for action in actions)])
    assert texts[0] == texts[1] == texts[2]
    assert first.reset(options={"task": first.held_out[0]})[0] != texts[0][0]


def test_held_out_games_stay_held_out_however_many_are_trained_on():
    few, many = game(), game(num_tasks=1000, num_held_out=50)
    assert few.held_out[0] == many.held_out[0] == "coin-collector/3/1000000"
    assert not set(many.tasks) & set(many.held_out)


@pytest.mark.parametrize(
    "action", ["look", "Go  North.", "examine dragon", "take", "x coin", "l", "n", "goal"]
)
def test_what_is_in_the_grammar(action):
    world = game()
    world.reset(options={"task": world.tasks[0]})
    assert world.step(action)[-1] == {"understood": True}


@pytest.mark.parametrize(
    "action",
    [
        *(
            "",
            "dance",
            "go north now please",
            "look. look",
            "look, look",
            "look then look",
            "größe",
            "x " + "y" * 300,
        ),
        *(
            "save",
            "script",
            "restart",
            "quit",
            "print_state",
            "tw-print version",
            "look\x00",
            "Look at\n> take coin",
        ),
    ],
)
def test_what_is_not_and_changes_nothing(action, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = game()
    world.reset(options={"task": world.tasks[0]})
    before = world.step("look")[0]
    text, reward, terminated, truncated, info = world.step(action)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"understood": False})
    assert text
    assert world.step("look")[0] == before
    assert list(tmp_path.iterdir()) == []


def test_taking_the_wrong_thing_loses():
    world = TextWorldGame("treasure-hunter", level=1, num_tasks=1, num_held_out=1, max_steps=200)
    generator = np.random.default_rng(0)
    ends = [play(world, lambda world: str(generator.choice(world.admissible()))) for _ in range(8)]
    assert {(rewards[-1], terminated) for _, rewards, terminated, _ in ends} == {(0.0, True), (1.0, True)}
    lost = next(observations for observations, rewards, _, _ in ends if rewards[-1] == 0.0)
    assert "*** You lost! ***" in lost[-1]


def test_a_compiled_game_is_used_again(cache):
    game().reset(options={"task": "coin-collector/3/0"})
    before = files(cache)
    world = game()
    world.prepare(world.tasks)
    world.reset(options={"task": world.tasks[0]})
    assert files(cache) == before
    assert [path.name for path in before if path.name.endswith("-3-0.z8")] == ["coin-collector-3-0.z8"]


@pytest.mark.parametrize("suffix", [".z8", ".json", ".sha256"])
def test_a_half_written_file_is_not_used(suffix):
    file = compiled("coin-collector/3/0")
    whole = file.read_bytes(), json.loads(file.with_suffix(".json").read_text())
    damaged = file.with_suffix(suffix)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    (file.parent / ".coin-collector-3-0.part").mkdir()  # as a process leaves it that was killed meanwhile
    world = game()
    assert play(world, TextWorldGame.expert_action)[1][-1] == 1.0
    assert (len(file.read_bytes()), json.loads(file.with_suffix(".json").read_text())) == (
        len(whole[0]),
        whole[1],
    )
    assert not (file.parent / ".coin-collector-3-0.part").exists()


def test_two_processes_at_once_compile_a_game_once(tmp_path):
    code = (
        "from peira.environments import textworld as t\n"
        "compile, count = t._compile, []\n"
        "t._compile = lambda *a: (count.append(1), compile(*a))\n"
        "w = t.TextWorldGame(level=1, num_tasks=1)\n"
        "w.reset(options={'task': w.tasks[0]})\n"
        "print(len(count))"
    )
    environment = {**os.environ, "PEIRA_CACHE": str(tmp_path)}
    pair = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate()[0] for process in pair) == ["0\n", "1\n"]


def test_side_by_side_with_a_time_limit():
    worlds = SeparateTextEnvs("textworld", game, 2, timeout=60.0)
    worlds.reset([0, 1], [worlds.tasks[0]] * 2)
    for _ in range(3):
        first, second = worlds.step([0, 1], worlds.expert([0, 1]))
    assert first == second
    assert (first.reward, first.terminated, first.understood, first.error) == (1.0, True, True, None)
    worlds.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "chess"}, r"kind: expected one of coin-collector, treasure-hunter, got 'chess'"),
        ({"level": 151}, r"level: coin-collector has levels 1 to 150 or 201 to 233, got 151"),
        ({"num_tasks": 0}, r"num_tasks: expected 1 to 1000000, got 0"),
        ({"max_steps": 0}, r"max_steps: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TextWorldGame(**settings)


def test_an_unknown_task_and_a_step_too_many_are_refused():
    world = game()
    with pytest.raises(ValueError, match=r"task: 'coin-collector/3/5' is none of coin-collector/3/0"):
        world.reset(options={"task": "coin-collector/3/5"})
    with pytest.raises(ValueError, match=r"task: 'x' is none of"):
        world.prepare(["x"])
    with pytest.raises(ValueError, match=r"call reset first"):
        world.step("look")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEIRA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot make the folder for games .*; set PEIRA_CACHE"):
        game().reset(options={"task": "coin-collector/3/0"})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package textworld: pip install 'peira\[language\]'"):
        game()
