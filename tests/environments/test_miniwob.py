"""MiniWoB++ in frames of one browser: the same tasks as the package's own environment, read, acted on and scored."""

import random
import re
import shutil
import sys

import pytest

from peira.environments.miniwob import Element, MiniWoBEnvs, Snapshot, quoted
from peira.environments.miniwob.driver import INSTALL
from peira.environments.miniwob.pages import PAGES, parse

OTHERS = (
    "click-checkboxes-soft",
    "enter-date",
    "text-transform",
    "tic-tac-toe",
    "email-inbox",
    "use-spinner",
)
FRAMES = 16


@pytest.fixture(scope="module")
def worlds():
    worlds = MiniWoBEnvs([*PAGES, *OTHERS], FRAMES)
    yield worlds
    worlds.close()


def begin(worlds, task, place=0):
    (outcome,) = worlds.reset([place], [task])
    assert outcome.error is None
    return outcome


def act(worlds, action, place=0):
    (outcome,) = worlds.step([place], [action])
    assert outcome.error is None
    return outcome


def shown(worlds, place=0) -> Snapshot:
    (snapshot,) = worlds.elements([place])
    return snapshot


def find(worlds, tag, text=None, place=0) -> Element:
    matches = [
        each for each in shown(worlds, place).elements if each.tag == tag and text in (None, each.text)
    ]
    return matches[0]


def tasks_of(worlds, page):
    return [task for task in worlds.tasks if task.startswith(page + "/")]


def play_experts(worlds, tasks):
    """The score of each task, all played side by side by the scripted expert."""
    score = {}
    for start in range(0, len(tasks), FRAMES):
        batch = tasks[start : start + FRAMES]
        live = list(range(len(batch)))
        assert not any(outcome.over for outcome in worlds.reset(live, batch))
        while live:
            outcomes = worlds.step(live, worlds.expert(live))
            for place, outcome in zip(live, outcomes, strict=True):
                assert outcome.understood and outcome.error is None
                score[batch[place]] = outcome.reward
            live = [place for place, outcome in zip(live, outcomes, strict=True) if not outcome.over]
    return score


@pytest.mark.parametrize("page", PAGES)
def test_the_expert_solves_the_page(worlds, page):
    tasks = tasks_of(worlds, page)
    assert len(tasks) == 32
    assert sum(play_experts(worlds, tasks).values()) >= 0.95 * len(tasks)


def test_a_page_without_an_expert_says_so(worlds):
    begin(worlds, "tic-tac-toe/0")
    with pytest.raises(
        ValueError, match=r"expert: there is none for the page 'tic-tac-toe', but for .*click-test"
    ):
        worlds.expert([0])


def wander(worlds, tasks, choice, steps):
    """Everything seen while random but always the same actions are taken, in as many worlds as there are tasks."""
    rng = random.Random(choice)
    live = list(range(len(tasks)))
    seen = [worlds.reset(live, tasks), worlds.elements(live)]
    while live and len(seen) < 2 + 3 * steps:
        actions = []
        for snapshot in worlds.elements(live):
            fields = [each.ref for each in snapshot.elements if each.takes_text]
            if fields and rng.random() < 0.4:
                actions.append(f'type {rng.choice(fields)} "{rng.choice([*quoted(snapshot.goal), "xyz"])}"')
            else:
                actions.append(
                    f"click {rng.choice([each.ref for each in snapshot.elements if each.ref > 0])}"
                )
        outcomes = worlds.step(live, actions)
        seen += [actions, outcomes, worlds.elements(live)]
        live = [place for place, outcome in zip(live, outcomes, strict=True) if not outcome.over]
    return seen


LASTING = ("click-dialog-2", "search-engine", "email-inbox-delete", "login-user-popup", "email-inbox")


@pytest.fixture(scope="module")
def fresh():
    """Worlds whose frames load a page anew for each of these tests."""
    worlds = MiniWoBEnvs(LASTING, 4)
    yield worlds
    worlds.close()


@pytest.mark.parametrize("page", LASTING)
def test_what_an_episode_was_like_does_not_show_in_the_next(worlds, fresh, page):
    tasks = tasks_of(worlds, page)[:4]
    for choice in (1, 2):
        wander(worlds, tasks_of(worlds, page)[4:8], choice, steps=6)
    assert wander(worlds, tasks, choice=0, steps=6) == wander(fresh, tasks, choice=0, steps=6)


def test_the_same_task_begins_alike_in_every_world(worlds):
    places = list(range(6))
    for task in ("click-checkboxes/3", "enter-password/1000000"):
        outcomes = worlds.reset(places, [task] * 6)
        assert len({outcome.observation for outcome in outcomes}) == 1
        assert all(snapshot == shown(worlds) for snapshot in worlds.elements(places))
    goals = [begin(worlds, task).observation for task in tasks_of(worlds, "enter-password")]
    assert len(set(goals)) == len(goals)


def test_tasks_and_held_out_tasks():
    worlds = MiniWoBEnvs("login-user", 2, num_tasks=3, num_held_out=5)
    assert worlds.tasks == ("login-user/0", "login-user/1", "login-user/2")
    assert len(worlds.held_out) == 5 and not set(worlds.tasks) & set(worlds.held_out)
    assert (worlds.id, worlds.num_envs, worlds.max_steps) == ("miniwob/login-user", 2, 8)
    assert 'type N "text"' in worlds.manual


# Against the package's own environment


@pytest.fixture(scope="module")
def stock():
    import gymnasium
    import miniwob
    from miniwob.reward import get_binary_reward

    gymnasium.register_envs(miniwob)
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIWOB_CHROME_BINARY", shutil.which("chromium"))
        patch.setenv("MINIWOB_CHROMEDRIVER", shutil.which("chromedriver"))

        def make(page):
            opened.append(
                gymnasium.make(
                    f"miniwob/{page}-v1",
                    reward_processor=get_binary_reward,
                    refresh_freq=1,  # or else the focus of one episode shows in the next
                )
            )
            return opened[-1]

        yield make
    for environment in opened:
        environment.close()


SIDES = ("left", "top", "width", "height")


def theirs(observation):
    """An observation of the package in our terms: what has no value has the value "" there."""
    elements = [
        Element(
            **{name: each[name] for name in ("ref", "parent", "id", "classes", "text", "value")},
            **{side: round(float(each[side][0]), 2) for side in SIDES},
            tag=each["tag"].lower(),
            focused=bool(each["flags"][0]),
        )
        for each in observation["dom_elements"]
    ]
    return observation["utterance"], elements


def ours(snapshot):
    elements = [
        each._replace(value=str(each.value or ""), **{side: round(getattr(each, side), 2) for side in SIDES})
        for each in snapshot.elements
    ]
    return snapshot.goal, elements


@pytest.mark.parametrize("page", ["click-button", "enter-password"])
def test_an_episode_is_that_of_the_packages_own_environment(worlds, stock, page):
    environment = stock(page)
    types = environment.unwrapped.action_space_config.action_types
    for seed in (0, 1, 2):
        observation, _ = environment.reset(seed=seed, options={"record_screenshots": False})
        begin(worlds, f"{page}/{seed}")
        done = False
        while not done:
            (goal, (root, *elements)), (their_goal, (their_root, *their_elements)) = (
                ours(shown(worlds)),
                theirs(observation),
            )
            assert (goal, elements) == (their_goal, their_elements)
            assert root == their_root._replace(width=500)  # a frame's; theirs is the window's
            (action,) = worlds.expert([0])
            if seed == 2:  # and one that is lost: the last element instead
                action = f"click {shown(worlds).elements[-1].ref}"
            kind, ref, *text = parse(action)
            their_kind = "CLICK_ELEMENT" if kind == "click" else "FOCUS_ELEMENT_AND_TYPE_TEXT"
            their_action = environment.unwrapped.create_action(types.index(their_kind), ref=ref)
            their_action["text"] = "".join(text)
            observation, reward, done, _, _ = environment.step(their_action)
            outcome = act(worlds, action)
            assert outcome.terminated == done
            if outcome.truncated:
                break
            assert outcome.reward == max(0.0, reward)
        assert outcome.reward == (0.0 if seed == 2 else 1.0)


# What is read


def test_a_page_as_text(worlds):
    outcome = begin(worlds, "enter-password/3")
    password = quoted(shown(worlds).goal)[0]
    assert outcome.observation.splitlines() == [
        f'goal: Enter the password "{password}" into both text fields and press submit.',
        '6 label "Password"',
        '7 input_password ""',
        '9 label "Verify password"',
        '10 input_password ""',
        '11 button "Submit"',
    ]
    text = begin(worlds, "click-checkboxes/3").observation
    assert '6 input_checkbox off\n- "' in text
    assert "15 span .trash" in begin(worlds, "email-inbox-delete/3").observation


def test_a_page_as_elements(worlds):
    begin(worlds, "login-user/0")
    field = find(worlds, "input_text")
    assert (field.id, field.value, field.takes_text, field.focused) == ("username", "", True, False)
    assert field.width > 0 and field.height > 0 and field.left >= 0 and field.top >= 50
    act(worlds, f'type {field.ref} "ann"')
    assert find(worlds, "input_text") == field._replace(value="ann", focused=True)
    begin(worlds, "click-option/0")
    label, box, text = (find(worlds, tag) for tag in ("label", "input_radio", "t"))
    assert box.parent == text.parent == label.ref and text.ref < 0 and text.text
    assert box.value is False and not box.takes_text and not text.takes_text


def test_strings_in_quotes():
    assert quoted('Enter the username "ann" and the password "x y" twice: "ann".') == ["ann", "x y"]
    assert quoted("Click the button.") == []


# What is done


@pytest.mark.parametrize(
    ("action", "meaning"),
    [
        ("click 3", ("click", 3)),
        ("  click 12\n", ("click", 12)),
        ('type 4 "bob"', ("type", 4, "bob")),
        ('type 4 ""', ("type", 4, "")),
        (r'type 4 "a \"b\" \u00e9"', ("type", 4, 'a "b" é')),
        ("", None),
        ("click", None),
        ("click -1", None),
        ("click ²", None),
        ("click the button", None),
        ("click 3 4", None),
        ("Click 3", None),
        ("type 4 bob", None),
        ('type 4 "bob', None),
        ('type 4 "a" "b"', None),
        (r'type 4 "\q"', None),
        ('type 4 "bob"; click 3', None),
    ],
)
def test_the_grammar(action, meaning):
    assert parse(action) == meaning


def test_what_is_not_understood_does_nothing_and_counts(worlds):
    before = begin(worlds, "click-test-2/0")
    for action in ("press ONE", "click one", ""):
        outcome = act(worlds, action)
        assert not outcome.understood and not outcome.over
        assert outcome.observation == before.observation
    beside = worlds.reset([1], ["click-test-2/1"])[0]
    outcomes = worlds.step([0, 1], [f"click {find(worlds, 'button', 'ONE').ref}", "?"])
    assert outcomes[0].reward == 1.0 and outcomes[0].terminated
    assert not outcomes[1].understood and outcomes[1].observation == beside.observation


def test_acting_on_nothing_is_understood_and_does_nothing(worlds):
    before = begin(worlds, "enter-text/0")
    button = find(worlds, "button")
    for action in ("click 99", f"click {10**30}", 'type 99 "x"', f'type {button.ref} "x"'):
        outcome = act(worlds, action)
        assert outcome.understood and not outcome.over
        assert outcome.observation == before.observation


@pytest.mark.parametrize("action", ["click 1", "what?"])
def test_too_many_actions_end_the_episode_without_a_score(worlds, action):
    begin(worlds, "enter-text/0")
    outcomes = [act(worlds, action) for _ in range(worlds.max_steps)]
    assert [outcome.truncated for outcome in outcomes] == [False] * (worlds.max_steps - 1) + [True]
    assert all(outcome.reward == 0.0 and not outcome.terminated for outcome in outcomes)
    with pytest.raises(ValueError, match="the episode in world 0 is over; reset it first"):
        worlds.step([0], [action])


def test_max_steps_can_be_set():
    assert MiniWoBEnvs("click-test-2", 1, max_steps=2).max_steps == 2
    assert MiniWoBEnvs(["click-test-2", "navigate-tree"], 1).max_steps == 10


def test_a_wrong_end_and_a_half_right_one_score_nothing(worlds):
    begin(worlds, "click-test-2/0")
    outcome = act(worlds, f"click {find(worlds, 'button', 'TWO').ref}")
    assert outcome.terminated and outcome.reward == 0.0
    for seed in range(32):  # a task with a box to leave alone, so that one wrong box is partial credit
        begin(worlds, f"click-checkboxes/{seed}")
        if len(shown(worlds).goal.split(",")) >= 3:
            break
    (right,) = worlds.expert([0])
    act(worlds, right)
    outcome = act(worlds, f"click {find(worlds, 'button', 'Submit').ref}")
    assert outcome.terminated and outcome.reward == 0.0


def test_what_is_typed_takes_the_place_of_what_was_there(worlds):
    begin(worlds, "enter-text/0")
    field = find(worlds, "input_text").ref
    for text in ("first", 'a "b" é', ""):
        act(worlds, f'type {field} "{text}"'.replace('a "b"', r"a \"b\""))
        assert find(worlds, "input_text").value == text


def test_fields_with_a_form_of_their_own(worlds):
    begin(worlds, "enter-date/0")
    act(worlds, f'type {find(worlds, "input_date").ref} "2014-07-09"')
    assert find(worlds, "input_date").value == "2014-07-09"
    begin(worlds, "choose-list/0")
    options = find(worlds, "select")
    act(worlds, f'type {options.ref} "no such thing"')
    assert find(worlds, "select").value == options.value
    begin(worlds, "use-spinner/0")  # refuses the keyboard
    act(worlds, f'type {find(worlds, "input_text").ref} "7"')
    assert find(worlds, "input_text").value != "7"


def test_a_page_hears_of_focus_as_if_it_were_alone(worlds):
    # On half of these tasks a popup comes up as soon as a field gets the focus, and only then.
    tasks = tasks_of(worlds, "login-user-popup")[:FRAMES]
    places = list(range(FRAMES))

    def popups(snapshots):
        return [any(each.text == "Cancel" for each in snapshot.elements) for snapshot in snapshots]

    alone = []
    for task in tasks:
        begin(worlds, task)
        act(worlds, f'type {find(worlds, "input_text").ref} "x"')
        alone += popups(worlds.elements([0]))
    worlds.reset(places, tasks)
    worlds.step(places, [f'type {find(worlds, "input_text", place=place).ref} "x"' for place in places])
    assert popups(worlds.elements(places)) == alone
    assert 0 < sum(alone) < FRAMES
    worlds.step(places, ["click 1"] * FRAMES)
    assert popups(worlds.elements(places)) == alone
    for place in places:  # a popup switches the fields off
        assert find(worlds, "input_text", place=place).focused == (not alone[place])


def test_the_clock_does_not_end_an_episode(worlds):
    begin(worlds, "click-test-2/0")
    # The page's own limit, ten seconds, is a timer; the browser's clock is not ours to turn, the timer is to be read.
    (limit,) = worlds._browser._script(
        "return [document.querySelector('iframe').contentWindow.core.EPISODE_MAX_TIME]"
    )
    assert 24 * 3600e3 < limit < 2**31


# What is refused


def test_a_page_that_is_not_there():
    with pytest.raises(
        ValueError, match=re.escape("env: there is no page 'clik-button'; did you mean 'click-button'?")
    ):
        MiniWoBEnvs("clik-button", 1)
    with pytest.raises(ValueError, match="env: there is no page 'zzzz'; there are ascending-numbers, "):
        MiniWoBEnvs(["click-test", "zzzz"], 1)
    with pytest.raises(ValueError, match=r"env: there is no page '../core/core'"):
        MiniWoBEnvs("../core/core", 1)


@pytest.mark.parametrize(
    "task", ["click-test-2", "click-test-2/x", "click-pie/0", "click-test-2/-1", "/0", ""]
)
def test_a_task_that_is_not_there(worlds, task):
    with pytest.raises(ValueError, match=f"expected a page and a seed such as 'choose-list/0', got '{task}'"):
        worlds.reset([0], [task])


@pytest.mark.parametrize("setting", [{"num_envs": 0}, {"num_tasks": 0}, {"max_steps": 0}])
def test_settings_that_make_no_sense(setting):
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        MiniWoBEnvs("click-test", **{"num_envs": 1, **setting})


def test_a_world_that_was_not_begun():
    worlds = MiniWoBEnvs("click-test", 1)
    with pytest.raises(ValueError, match="no task was begun in world 0; reset it first"):
        worlds.step([0], ["click 1"])
    worlds.close()


def test_without_chromium_the_command_that_installs_it_is_given(monkeypatch, tmp_path):
    assert INSTALL == "apt-get install -y --no-install-recommends chromium chromium-driver"
    for variable in ("MINIWOB_CHROME_BINARY", "MINIWOB_CHROMEDRIVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="chromium is not there") as refused:
        MiniWoBEnvs("click-test", 1)
    assert INSTALL in str(refused.value).splitlines()
    (tmp_path / "chromium").symlink_to("/bin/true")
    with pytest.raises(ValueError, match="chromedriver is not there"):
        MiniWoBEnvs("click-test", 1)
    monkeypatch.setenv("MINIWOB_CHROME_BINARY", "/bin/true")
    with pytest.raises(
        ValueError, match="set both MINIWOB_CHROME_BINARY and MINIWOB_CHROMEDRIVER, or neither"
    ):
        MiniWoBEnvs("click-test", 1)
    monkeypatch.setenv("MINIWOB_CHROMEDRIVER", "/no/such/file")
    with pytest.raises(ValueError, match="MINIWOB_CHROMEDRIVER names /no/such/file, which cannot be run"):
        MiniWoBEnvs("click-test", 1)


def test_a_driver_that_does_not_start_is_an_error_with_what_it_said(monkeypatch):
    monkeypatch.setenv("MINIWOB_CHROME_BINARY", "/bin/true")
    monkeypatch.setenv("MINIWOB_CHROMEDRIVER", "/bin/echo")
    worlds = MiniWoBEnvs("click-test", 1)
    (outcome,) = worlds.reset([0], ["click-test/0"])
    assert "chromedriver did not start; it said: '--port=0'" in outcome.error
    worlds.close()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "miniwob", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'peira[browser]'")):
        MiniWoBEnvs("click-test", 1)
