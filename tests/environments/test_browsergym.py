"""The adapter for BrowserGym, against a small environment of the same form, and where it is there against BrowserGym.

BrowserGym pins an old playwright, so it has a virtual environment of its own: pip install browsergym-core
browsergym-miniwob, and miniwob for the pages.
"""

import ast
import re

import gymnasium
import pytest

from peira.environments.browsergym import BrowserGymEnvs, read_dom

COUNTER, LAMP = "peira-test/Counter-v0", "peira-test/Lamp-v0"
ACTIONS = "press('BID'), noop(), send_msg_to_user('TEXT')"


class Buttons(gymnasium.Env):
    """Buttons to be pressed as often as the goal says; observations and actions in BrowserGym's form."""

    opened: list["Buttons"]

    def __init__(self, names):
        self.names, self.closed = names, False
        self.opened.append(self)

    def action_mapping(self, action):
        call = ast.parse(action, mode="eval").body  # raises SyntaxError as their parser raises its own
        if call.func.id not in ("press", "noop", "send_msg_to_user"):
            raise NameError(f"Invalid action type '{call.func.id}'.")
        return call.func.id, *(argument.value for argument in call.args)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wanted = {name: int(self.np_random.integers(1, 4)) for name in self.names}
        self.pressed = dict.fromkeys(self.names, 0)
        return self.observation(""), {"task_info": {}}

    def step(self, action):
        name, *arguments = self.action_mapping(action)
        error = ""
        if name == "press" and arguments[0] == "crash":
            raise RuntimeError("Target page, context or browser has been closed\nCall log: ...")
        if name == "press" and arguments[0] in self.pressed:
            self.pressed[arguments[0]] += 1
        elif name == "press":
            error = f"ValueError: Could not find element with bid {arguments[0]!r}\nCall log:\n - waiting"
        done = self.pressed == self.wanted
        return self.observation(error), float(done), done, False, {}

    def observation(self, error):
        nodes = [{"browsergym_id": name, "count": count} for name, count in self.pressed.items()]
        goal = [
            {"type": "text", "text": f"Press {self.wanted}."},
            {"type": "image_url", "image_url": "data:,"},
        ]
        return {
            "goal": goal[0]["text"],
            "goal_object": goal,
            "axtree_object": {"nodes": nodes},
            "last_action_error": error,
            "url": "about:blank",
        }

    def close(self):
        self.closed = True


def read_nodes(observation):
    return "\n".join(
        f"[{node['browsergym_id']}] {node['count']}" for node in observation["axtree_object"]["nodes"]
    )


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(Buttons, "opened", [], raising=False)
    for id, names in ((COUNTER, ("a", "b")), (LAMP, ("lamp",))):
        gymnasium.register(
            id, lambda names=names: Buttons(names), disable_env_checker=True, order_enforce=False
        )
    yield
    for id in (COUNTER, LAMP):
        gymnasium.registry.pop(id)


@pytest.fixture
def worlds():
    worlds = BrowserGymEnvs(
        [COUNTER, LAMP],
        2,
        num_tasks=3,
        num_held_out=2,
        max_steps=8,
        make=gymnasium.make,
        read=read_nodes,
        manual=ACTIONS,
    )
    yield worlds
    worlds.close()
    assert all(environment.closed for environment in Buttons.opened)


def wanted(observation):
    return ast.literal_eval(re.search(r"Press (\{.*\})\.", observation)[1])


def test_tasks_are_ids_and_seeds(worlds):
    assert worlds.tasks == tuple(f"{id}/{seed}" for id in (COUNTER, LAMP) for seed in range(3))
    assert len(worlds.held_out) == 4 and not set(worlds.tasks) & set(worlds.held_out)
    assert (worlds.num_envs, worlds.max_steps, worlds.manual) == (2, 8, ACTIONS)


def test_the_goal_is_read_and_then_the_page(worlds):
    (outcome,) = worlds.reset([0], [f"{COUNTER}/0"])
    goal, *page = outcome.observation.splitlines()
    assert re.fullmatch(r"goal: Press \{'a': \d, 'b': \d\}\.", goal)
    assert page == ["[a] 0", "[b] 0"]


def test_the_same_task_begins_alike_in_every_world(worlds):
    one, other = worlds.reset([0, 1], [f"{COUNTER}/2", f"{COUNTER}/2"])
    assert one == other
    goals = {worlds.reset([0], [f"{COUNTER}/{seed}"])[0].observation for seed in range(20)}
    assert len(goals) > 4


def test_the_score_comes_at_the_end(worlds):
    (outcome,) = worlds.reset([0], [f"{LAMP}/1"])
    presses = wanted(outcome.observation)["lamp"]
    outcomes = [worlds.step([0], ["press('lamp')"])[0] for _ in range(presses)]
    assert [outcome.reward for outcome in outcomes] == [0.0] * (presses - 1) + [1.0]
    assert [outcome.terminated for outcome in outcomes] == [False] * (presses - 1) + [True]


def test_an_action_that_does_not_work_is_understood_and_says_why(worlds):
    worlds.reset([0], [f"{LAMP}/0"])
    (outcome,) = worlds.step([0], ["press('door')"])
    assert outcome.understood and not outcome.over
    assert outcome.observation.splitlines()[1:] == [
        "[lamp] 0",
        "the last action failed: ValueError: Could not find element with bid 'door'",
    ]
    (outcome,) = worlds.step([0], ["noop()"])
    assert outcome.observation.splitlines()[1:] == ["[lamp] 0"]


@pytest.mark.parametrize("action", ["press the lamp", "", "dance()", "press('lamp"])
def test_what_is_no_action_does_nothing_and_counts(worlds, action):
    (before,) = worlds.reset([0], [f"{LAMP}/0"])
    outcomes = [worlds.step([0], [action])[0] for _ in range(worlds.max_steps)]
    assert not any(outcome.understood or outcome.error or outcome.reward for outcome in outcomes)
    assert {outcome.observation for outcome in outcomes} == {before.observation}
    assert [outcome.truncated for outcome in outcomes] == [False] * (worlds.max_steps - 1) + [True]


def test_one_environment_serves_an_id_until_another_is_asked_for(worlds):
    for task in (f"{LAMP}/0", f"{LAMP}/1", f"{COUNTER}/0"):
        worlds.reset([0], [task])
    first, second = Buttons.opened
    assert (first.names, first.closed, second.names, second.closed) == (("lamp",), True, ("a", "b"), False)


def test_a_browser_that_dies_is_an_error_and_another_takes_its_place(worlds):
    worlds.reset([0, 1], [f"{LAMP}/0", f"{LAMP}/0"])
    crashed, other = worlds.step([0, 1], ["press('crash')", "noop()"])
    assert crashed.error == "RuntimeError: Target page, context or browser has been closed"
    assert crashed.over and not crashed.terminated and crashed.reward == 0.0 and other.error is None
    assert [environment.closed for environment in Buttons.opened] == [True, False]
    (outcome,) = worlds.reset([0], [f"{LAMP}/0"])
    assert outcome.error is None and outcome.observation.endswith("[lamp] 0")


def test_what_is_not_there_is_refused(worlds):
    (outcome,) = worlds.reset([0], ["peira-test/Door-v0/0"])
    assert f"expected an id and a seed such as '{COUNTER}/0', got 'peira-test/Door-v0/0'" in outcome.error
    with pytest.raises(ValueError, match="env: Gymnasium knows no environment 'peira-test/Door-v0'"):
        BrowserGymEnvs("peira-test/Door-v0", 1, make=gymnasium.make, read=read_nodes, manual=ACTIONS)
    with pytest.raises(ValueError, match="expert: there is none"):
        worlds.expert([0])


def test_without_the_benchmark_what_to_install_is_named():
    with pytest.raises(ValueError, match="pip install browsergym-core browsergym-nosuchbenchmark"):
        BrowserGymEnvs("browsergym/nosuchbenchmark.1", 1)


# BrowserGym itself


@pytest.fixture
def real():
    pytest.importorskip("browsergym.miniwob", reason="BrowserGym is not installed")
    worlds = BrowserGymEnvs("browsergym/miniwob.click-test-2", 2, max_steps=3)
    yield worlds
    worlds.close()


def test_an_episode_of_browsergym(real):
    assert "click(bid" in real.manual
    one, other = real.reset([0, 1], [real.tasks[0], real.tasks[0]])
    assert one.error is None and one == other
    assert one.observation.startswith("goal: Click button ONE.\n")
    (refused, nowhere) = real.step([0, 1], ["the first button", "click('999')"])
    assert not refused.understood and refused.observation == one.observation
    assert nowhere.understood and nowhere.observation.endswith('Could not find element with bid "999"')
    bids = dict(re.findall(r"\[(\d+)\] button '(\w+)'", one.observation))
    outcomes = real.step([0, 1], [f"click('{bid}')" for bid in sorted(bids, key=bids.get)])
    assert [(outcome.reward, outcome.terminated) for outcome in outcomes] == [(1.0, True), (0.0, True)]


def test_browsergyms_pages_as_html(real):
    worlds = BrowserGymEnvs("browsergym/miniwob.enter-text", 1, read=read_dom)
    (outcome,) = worlds.reset([0], [worlds.tasks[0]])
    assert re.search(r'<input bid="\d+" id="tt" type="text"', outcome.observation)
    worlds.close()
