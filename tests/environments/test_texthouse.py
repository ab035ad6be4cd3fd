"""TextHouse by hand: its rules, its ends, its tasks, its expert, and the brief rendering beside the full one."""

import os
import random
import re
import subprocess
import sys

import pytest

from peira.environments import texthouse
from peira.environments.text import SeparateTextEnvs
from peira.environments.texthouse import TextHouse
from peira.environments.texthouse_moves import HELD, NOWHERE, House, expert_move
from peira.environments.texthouse_rooms import FAMILIES, FIRST_HELD_OUT, HOLDS, Room, draw_room

KITCHEN = Room(
    family="heat",
    places=(
        ("cabinet", 2),
        ("cabinet", 1),
        ("countertop", 1),
        ("fridge", 1),
        ("microwave", 1),
        ("sinkbasin", 1),
    ),
    things=(("apple", 1), ("fork", 1), ("mug", 2), ("mug", 1)),
    start=(2, 2, 0, 3),  # apple and fork on the countertop, mug 2 in cabinet 2, mug 1 in the fridge
    wanted_kind="mug",
    target_kind="cabinet",
    phrasing=0,
)
BEDROOM = Room(
    family="light",
    places=(("bed", 1), ("desk", 1), ("drawer", 1)),
    things=(("book", 1), ("desklamp", 1)),
    start=(0, 1),
    wanted_kind="book",
    target_kind="desklamp",
    phrasing=1,
)


def begin(monkeypatch: pytest.MonkeyPatch, room: Room, **settings: object) -> tuple[TextHouse, str]:
    """A house in which that room is played."""
    monkeypatch.setattr(texthouse, "draw_room", lambda *task: room)
    house = TextHouse(families=(room.family,), **settings)
    return house, house.reset()[0]


def play(house: TextHouse, actions: str) -> list[str]:
    """What is answered to actions, one a line."""
    return [house.step(action.strip())[0] for action in actions.strip().splitlines()]


def play_to_the_end(house: TextHouse, task: str, choose) -> tuple[bool, int]:
    house.reset(options={"task": task})
    for steps in range(1, house.max_steps + 1):
        _, _, terminated, truncated, _ = house.step(choose(house))
        if terminated or truncated:
            return terminated, steps
    raise AssertionError("no end within max_steps")


def by_chance(seed: int):
    generator = random.Random(seed)
    return lambda house: generator.choice(house.admissible())


def by_expert(house: TextHouse) -> str:
    return house.expert_action()


def test_an_episode_in_alfworlds_sentences(monkeypatch):
    house, observation = begin(monkeypatch, KITCHEN)
    assert observation == (
        "-= Welcome to TextWorld, ALFRED! =-\n\n"
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a "
        "countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put a hot mug in cabinet."
    )
    assert play(
        house, "go to countertop 1\n go to cabinet 2\n open cabinet 2\n take mug 2 from cabinet 2"
    ) == [
        "You arrive at countertop 1. On the countertop 1, you see a apple 1, and a fork 1.",
        "You arrive at cabinet 2. The cabinet 2 is closed.",
        "You open the cabinet 2. The cabinet 2 is open. In it, you see a mug 2.",
        "You pick up the mug 2 from the cabinet 2.",
    ]
    assert play(
        house, "go to microwave 1\n heat mug 2 with microwave 1\n go to cabinet 1\n open cabinet 1"
    ) == [
        "You arrive at microwave 1. The microwave 1 is closed.",
        "You heat the mug 2 using the microwave 1.",
        "You arrive at cabinet 1. The cabinet 1 is closed.",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see nothing.",
    ]
    assert house.step("move mug 2 to cabinet 1") == (
        "You move the mug 2 to the cabinet 1.",
        1.0,
        True,
        False,
        {"understood": True},
    )


def test_the_same_episode_in_few_words(monkeypatch):
    house, observation = begin(monkeypatch, KITCHEN, brief=True)
    assert observation == (
        "see cabinet2 cabinet1 countertop1 fridge1 microwave1 sinkbasin1 task heat mug put cabinet"
    )
    assert play(
        house, "go countertop1\n go cabinet2\n open cabinet2\n take mug2\n go microwave1\n heat mug2"
    ) == [
        "at countertop1 apple1 fork1",
        "at cabinet2 closed",
        "cabinet2 open mug2",
        "have mug2",
        "at microwave1 closed",
        "mug2 hot",
    ]
    assert play(house, "examine mug2\n go cabinet1\n open cabinet1\n move mug2") == [
        "mug2 hot",
        "at cabinet1 closed",
        "cabinet1 open empty",
        "put mug2 cabinet1",
    ]


def test_what_is_closed_neither_shows_nor_gives_nor_takes(monkeypatch):
    house, _ = begin(monkeypatch, KITCHEN)
    answers = play(house, "go to cabinet 2\n take mug 2 from cabinet 2\n examine cabinet 2\n open cabinet 2")
    assert answers[1:3] == ["Nothing happens.", "The cabinet 2 is closed."]
    answers = play(
        house, "take mug 2 from cabinet 2\n close cabinet 2\n move mug 2 to cabinet 2\n open cabinet 2"
    )
    assert answers == [
        "You pick up the mug 2 from the cabinet 2.",
        "You close the cabinet 2.",
        "Nothing happens.",
        "You open the cabinet 2. The cabinet 2 is open. In it, you see nothing.",
    ]


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ("", "take apple 1 from countertop 1"),  # not there
        ("go to cabinet 2", "open cabinet 1"),
        ("go to cabinet 2", "close cabinet 2"),
        ("go to cabinet 2\n open cabinet 2", "open cabinet 2"),
        ("go to countertop 1", "open countertop 1"),
        ("go to countertop 1", "go to countertop 1"),
        (
            "go to countertop 1\n take apple 1 from countertop 1",
            "take fork 1 from countertop 1",
        ),  # one hand
        ("go to countertop 1", "move apple 1 to countertop 1"),  # not held
        (
            "go to countertop 1\n take apple 1 from countertop 1\n go to sinkbasin 1",
            "move fork 1 to sinkbasin 1",
        ),
        (
            "go to countertop 1\n take apple 1 from countertop 1\n go to cabinet 1\n open cabinet 1",
            "move apple 1 to cabinet 1",
        ),  # does not belong there
        (
            "go to countertop 1\n take fork 1 from countertop 1\n go to microwave 1",
            "heat fork 1 with microwave 1",
        ),
        (
            "go to countertop 1\n take apple 1 from countertop 1\n go to fridge 1",
            "heat apple 1 with fridge 1",
        ),
        ("go to countertop 1\n take apple 1 from countertop 1", "heat apple 1 with microwave 1"),
        ("go to countertop 1", "examine apple 1"),  # of things only what is held
        ("go to countertop 1\n take fork 1 from countertop 1", "slice apple 1 with fork 1"),
        ("go to countertop 1\n take fork 1 from countertop 1", "put fork 1 in countertop 1"),
        ("go to countertop 1", "use apple 1"),
    ],
)
def test_a_sentence_without_effect(monkeypatch, before, action):
    house, _ = begin(monkeypatch, KITCHEN)
    assert "Nothing happens." not in play(house, before)
    admissible = house.admissible()
    assert action not in admissible
    assert house.step(action) == ("Nothing happens.", 0.0, False, False, {"understood": True})
    assert house.admissible() == admissible


def test_heat_and_cold_drive_each_other_out_and_washing_stays(monkeypatch):
    house, _ = begin(monkeypatch, KITCHEN)
    answers = play(
        house,
        """go to countertop 1
        take apple 1 from countertop 1
        examine apple 1
        go to fridge 1
        cool apple 1 with fridge 1
        examine apple 1
        go to sinkbasin 1
        clean apple 1 with sinkbasin 1
        examine apple 1
        go to microwave 1
        heat apple 1 with microwave 1
        examine apple 1
        go to fridge 1
        cool apple 1 with fridge 1
        examine apple 1""",
    )
    assert answers[2::3] == [
        "There's nothing special about apple 1.",
        "This is a cold apple 1.",
        "This is a cool and clean apple 1.",
        "This is a hot and clean apple 1.",
        "This is a cool and clean apple 1.",
    ]


@pytest.mark.parametrize(("brief", "answer"), [(False, "Nothing happens."), (True, "nothing")])
@pytest.mark.parametrize(
    "action", ["", "dance", "go", "go to", "open mug 1", "go to attic 1", "look up", "Look"]
)
def test_what_is_outside_the_grammar(monkeypatch, brief, answer, action):
    house, _ = begin(monkeypatch, KITCHEN, brief=brief)
    assert house.step(action) == (answer, 0.0, False, False, {"understood": False})


@pytest.mark.parametrize(
    ("brief", "action"), [(False, "open drawer 7"), (True, "open drawer7"), (True, "take mug2")]
)
def test_what_is_of_the_grammar_is_understood_whatever_there_is(monkeypatch, brief, action):
    house, _ = begin(monkeypatch, KITCHEN, brief=brief)
    assert house.step(action)[4] == {"understood": True}


def test_each_rendering_reads_its_own_sentences_only(monkeypatch):
    house, _ = begin(monkeypatch, KITCHEN)
    assert house.step("go cabinet2")[4] == {"understood": False}
    house, _ = begin(monkeypatch, KITCHEN, brief=True)
    assert house.step("go to cabinet 2")[4] == {"understood": False}


def test_any_of_its_kind_in_any_target_will_do_but_only_heated(monkeypatch):
    house, _ = begin(monkeypatch, KITCHEN)
    cold = "go to fridge 1\n open fridge 1\n take mug 1 from fridge 1\n go to cabinet 2\n open cabinet 2"
    play(house, cold)
    assert house.step("move mug 1 to cabinet 2")[1:3] == (0.0, False)
    play(
        house,
        "take mug 1 from cabinet 2\n go to microwave 1\n heat mug 1 with microwave 1\n go to cabinet 2",
    )
    assert house.step("move mug 1 to cabinet 2")[1:3] == (1.0, True)


def test_under_the_lamp_in_either_order(monkeypatch):
    house, observation = begin(monkeypatch, BEDROOM)
    assert observation.endswith("Your task is to: examine the book with the desklamp.")
    play(house, "go to desk 1\n use desklamp 1\n go to bed 1\n take book 1 from bed 1")
    assert house.step("go to desk 1")[1:3] == (1.0, True)
    house.reset()
    play(house, "go to bed 1\n take book 1 from bed 1\n go to desk 1")
    assert house.step("use desklamp 1")[1:3] == (1.0, True)


def test_two_must_lie_in_the_same_place(monkeypatch):
    room = Room(
        "two",
        (("cabinet", 2), ("cabinet", 1), ("countertop", 1)),
        (("mug", 2), ("mug", 1)),
        (2, 2),
        "mug",
        "cabinet",
        0,
    )
    house, _ = begin(monkeypatch, room)
    play(house, "go to countertop 1\n take mug 1 from countertop 1\n go to cabinet 1\n open cabinet 1")
    play(
        house,
        "move mug 1 to cabinet 1\n go to countertop 1\n take mug 2 from countertop 1\n go to cabinet 2",
    )
    assert house.step("open cabinet 2")[1:3] == (0.0, False)
    assert house.step("move mug 2 to cabinet 2")[1:3] == (0.0, False)
    assert play(house, "take mug 2 from cabinet 2\n go to cabinet 1")[0].startswith("You pick up")
    assert house.step("move mug 2 to cabinet 1")[1:3] == (1.0, True)


@pytest.mark.parametrize("max_steps", [1, 7])
def test_truncation_gives_no_reward(monkeypatch, max_steps):
    house, _ = begin(monkeypatch, KITCHEN, max_steps=max_steps)
    ends = [house.step("look")[1:4] for _ in range(max_steps)]
    assert ends == [(0.0, False, False)] * (max_steps - 1) + [(0.0, False, True)]
    with pytest.raises(RuntimeError, match="no episode is running; call reset first"):
        house.step("look")


def test_a_goal_reached_with_the_last_action_is_an_end_and_no_truncation(monkeypatch):
    house, _ = begin(monkeypatch, BEDROOM, max_steps=4)
    play(house, "go to bed 1\n take book 1 from bed 1\n go to desk 1")
    assert house.step("use desklamp 1")[1:4] == (1.0, True, False)
    for call in (lambda: house.step("look"), house.admissible, house.expert_action):
        with pytest.raises(RuntimeError, match="no episode is running"):
            call()


@pytest.mark.parametrize("brief", [False, True])
def test_the_reward_comes_with_the_end_alone(brief):
    house = TextHouse(families=FAMILIES, brief=brief)
    for task in house.tasks[:60]:
        house.reset(options={"task": task})
        over = False
        while not over:
            _, reward, terminated, truncated, _ = house.step(house.expert_action())
            assert reward == float(terminated)
            over = terminated or truncated


def test_a_task_begins_in_the_same_state_whatever_was_played_before():
    house, other = TextHouse(), TextHouse(num_tasks=7)
    for number, task in enumerate(house.tasks[:30]):
        observation, info = house.reset(options={"task": task})
        assert info == {"task": task}
        admissible = house.admissible()
        play_to_the_end(house, house.tasks[-1 - number], by_chance(number))
        assert house.reset(options={"task": task})[0] == observation == other.reset(options={"task": task})[0]
        assert house.admissible() == admissible
        assert shown_by_opening_everything(house) == shown_by_opening_everything(other)


def test_a_task_is_the_same_in_every_process():
    script = (
        "from peira.environments.texthouse_rooms import FAMILIES, draw_room\n"
        "print([draw_room(family, seed, 6, 3) for family in FAMILIES for seed in range(20)])"
    )
    rooms = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(rooms) == 1
    here = [draw_room(family, seed, 6, 3) for family in FAMILIES for seed in range(20)]
    assert rooms == {f"{here}\n"}


def test_this_task_is_this_room_for_good():
    # Results are only comparable as long as names keep their rooms.
    house = TextHouse(brief=True, families=FAMILIES)
    begun = {
        "put/0": "see countertop1 diningtable1 drawer1 fridge1 microwave1 shelf1 task take apple put diningtable",
        "heat/17": "see cabinet1 countertop1 diningtable1 drawer1 garbagecan1 microwave1 task heat egg put countertop",
        "light/5": "see desk1 drawer1 dresser1 garbagecan1 sidetable1 sofa1 task look book use desklamp",
        "clean/1000003": "see cabinet1 countertop1 diningtable1 drawer1 garbagecan1 sinkbasin1 task clean apple put "
        "diningtable",
    }
    assert begun == {task: house.reset(options={"task": task})[0] for task in begun}


@pytest.mark.parametrize(("receptacles", "objects"), [(4, 2), (6, 3), (9, 6)])
def test_no_room_is_on_both_sides(receptacles, objects):
    sides = []
    for first in (0, FIRST_HELD_OUT):
        rooms = [
            draw_room(family, first + seed, receptacles, objects)
            for family in FAMILIES
            for seed in range(100)
        ]
        sides.append({(room.places, room.things, room.start) for room in rooms})
    assert not sides[0] & sides[1]
    assert len(sides[0]) > 300, "too few different rooms to say anything"


def test_names_of_tasks():
    house = TextHouse(num_tasks=5, num_held_out=4)
    assert house.tasks == ("put/0", "heat/0", "clean/0", "put/1", "heat/1")
    assert house.held_out == ("put/1000000", "heat/1000000", "clean/1000000", "put/1000001")
    assert not set(TextHouse().tasks) & set(TextHouse().held_out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("receptacles", "objects"), [(4, 2), (6, 3), (20, 20)])
def test_the_goal_is_possible_and_not_yet_reached(family, receptacles, objects):
    for seed in range(50):
        room = draw_room(family, seed, receptacles, objects)
        assert len(room.places) == receptacles
        assert len(room.things) == objects + (family == "light")
        house = House(room)
        assert not house.solved()
        assert all(
            kind == "desklamp" or kind in HOLDS[room.places[place][0]]
            for (kind, _), place in zip(room.things, room.start, strict=True)
        )
        for _ in range(4 * receptacles):
            assert house.act(*expert_move(house))
            if house.solved():
                break
        assert house.solved()


def test_without_a_task_the_seed_draws_one_of_training():
    house = TextHouse(num_tasks=40)
    tasks = [house.reset(seed=seed)[1]["task"] for seed in range(30)]
    assert tasks == [house.reset(seed=seed)[1]["task"] for seed in range(30)]
    assert set(tasks) <= set(house.tasks)
    assert len(set(tasks)) > 10


@pytest.mark.parametrize("task", ["cool/3", "put", "put/", "put/-1", "put/x", "sing/1", ""])
def test_a_task_that_is_none_is_refused(task):
    with pytest.raises(
        ValueError, match="task: expected a family of put, heat, clean and a seed, as in put/0"
    ):
        TextHouse().reset(options={"task": task})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"receptacles": 3}, "receptacles: expected 4 to 20, got 3"),
        ({"receptacles": 21}, "receptacles: expected 4 to 20, got 21"),
        ({"objects": 0}, "objects: expected 1 to 20, got 0"),
        ({"objects": 1, "families": ("two",)}, "objects: expected 2 to 20, got 1"),
        (
            {"families": ("put", "sing")},
            r"families: expected some of put, .*, two, got \['put', 'sing'\]",
        ),
        ({"families": ()}, "families: expected some of"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"num_tasks": 0}, "num_tasks: expected 1 to 1000000, got 0"),
        ({"num_held_out": -1}, "num_held_out: expected 0 or more, got -1"),
    ],
)
def test_settings_that_no_room_has_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TextHouse(**settings)


@pytest.mark.parametrize("brief", [False, True])
def test_the_expert_solves_every_held_out_task(brief):
    house = TextHouse(num_held_out=200, brief=brief)
    ends = [play_to_the_end(house, task, by_expert) for task in house.held_out]
    assert all(solved for solved, _ in ends)
    mean = sum(steps for _, steps in ends) / len(ends)
    print(f"the expert's mean length: {mean:.2f} actions")
    assert 8 < mean < 10


def test_chance_solves_almost_none():
    house = TextHouse()
    solved = sum(play_to_the_end(house, task, by_chance(7))[0] for task in house.tasks[:400])
    assert solved < 0.03 * 400


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_goes_on_from_wherever_chance_led(family):
    house = TextHouse(families=(family,), max_steps=80)
    chance = by_chance(3)
    for task in house.tasks[:60]:
        house.reset(options={"task": task})
        over = False
        for step in range(house.max_steps):
            _, _, over, _, _ = house.step(chance(house) if step < 30 else house.expert_action())
            if over:
                break
        assert over, task


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_does_not_know_what_it_has_not_seen(family):
    generator = random.Random(family)
    moved = 0
    for seed in range(60):
        house = House(draw_room(family, seed, 8, 5))
        while not house.solved():
            action = expert_move(house)
            for _ in range(5):  # what lies out of sight might lie elsewhere
                seen = house.where.copy()
                for thing, place in enumerate(house.where):
                    unseen = [place for place, shown in enumerate(house.shown) if not shown]
                    if place != HELD and not house.shown[place]:
                        house.where[thing] = generator.choice(unseen)
                        moved += house.where[thing] != seen[thing]
                assert expert_move(house) == action
                house.where = seen
            house.act(*action)
    assert moved > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_actions_come_to_the_same_in_both(family):
    generator = random.Random(family)
    full, brief = TextHouse(families=(family,)), TextHouse(families=(family,), brief=True)
    solved = 0
    for task in full.tasks[:40]:
        full.reset(options={"task": task})
        brief.reset(options={"task": task})
        over = False
        while not over:
            assert {in_brief(action) for action in full.admissible()} - {"help"} == set(brief.admissible())
            assert in_brief(full.expert_action()) == brief.expert_action()
            action = full.expert_action()
            if generator.random() < 0.4:
                action = generator.choice([action for action in full.admissible() if action != "help"])
            said, *end, understood = full.step(action)
            said_in_brief, *end_in_brief, understood_in_brief = brief.step(in_brief(action))
            assert end == end_in_brief
            assert understood == understood_in_brief == {"understood": True}
            if action.split()[0] in ("go", "open", "close", "move", "use"):
                assert names(said_in_brief) == names(said)
            over = end[1] or end[2]
            solved += end[1]
    assert solved > 0


def test_the_brief_one_has_few_words():
    house = TextHouse(brief=True)
    words, lengths = set(), []
    for choose in (by_expert, by_chance(5)):
        for task in house.tasks[:150] + house.held_out[:50]:
            said = [house.reset(options={"task": task})[0]]
            over = False
            while not over:
                assert all(1 <= len(action.split()) <= 2 for action in house.admissible())
                words.update(*map(str.split, house.admissible()))
                said.append(choose(house))
                answer, _, terminated, truncated, _ = house.step(said[-1])
                said.append(answer)
                over = terminated or truncated
            words.update(*map(str.split, said))
            lengths.append(sum(len(text.split()) for text in said))
    print(f"{len(words)} different words, {sum(lengths) / len(lengths):.0f} words an episode")
    assert len(words) <= 60
    assert max(lengths) <= 120


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_admissible_is_what_has_an_effect(family, brief):
    """Every move that names something in the room is tried, wherever chance and the expert lead."""
    generator = random.Random(family)
    for seed in range(8):
        house = House(draw_room(family, seed, 6, 3))
        words = (texthouse.Words if brief else texthouse.Sentences)(house.room)
        for _ in range(25):
            allowed = {words.write(move) for move in house.moves()}
            tried = {words.write(move) for move in every_move(house) if house.allows(*move)}
            assert allowed == tried
            assert all(words.write(words.read(action, house)) == action for action in allowed)
            assert all(words.understands(action) for action in allowed)
            move = generator.choice([expert_move(house), generator.choice(house.moves())])
            assert house.act(*move)
            if house.solved():
                break


def test_many_houses_side_by_side():
    envs = SeparateTextEnvs("texthouse", TextHouse, 3)
    outcomes = envs.reset([0, 2], ["put/0", "heat/1"])
    assert [outcome.error for outcome in outcomes] == [None, None]
    outcomes = envs.step([0, 2], [envs.expert([0])[0], "sing"])
    assert [outcome.understood for outcome in outcomes] == [True, False]
    assert (envs.max_steps, len(envs.tasks), len(envs.held_out)) == (20, 512, 256)
    envs.close()


def names(text: str) -> list[str]:
    """What a text names, once each, in the order in which it does."""
    return list(dict.fromkeys(kind + number for kind, number in re.findall(r"([a-z]+) ?(\d+)", text)))


def in_brief(action: str) -> str:
    """A sentence of the full rendering in the brief one's words."""
    action = re.sub(r"([a-z]+) (\d+)", r"\1\2", action).replace("go to ", "go ")
    return re.sub(r" (from|to|with) [a-z]+\d+$", "", action)


def every_move(house: House) -> list[tuple[str, int, int]]:
    places, things = range(len(house.room.places)), range(len(house.room.things))
    return [
        *((verb, NOWHERE, place) for verb in ("go", "open", "close", "examine") for place in places),
        *((verb, thing, NOWHERE) for verb in ("use", "examine") for thing in things),
        *(
            (verb, thing, place)
            for verb in ("take", "move", "heat", "cool", "clean")
            for thing in things
            for place in places
        ),
    ]


def shown_by_opening_everything(house: TextHouse) -> list[str]:
    shown = []
    for name in house._words.places:
        shown += [house.step(f"go to {name}")[0], house.step(f"open {name}")[0]]
    return shown
