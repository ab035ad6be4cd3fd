"""TextHouse beside ALFWorld's own engine, action by action: the same words, admissible actions and ends.

Rooms that TextHouse draws are written as games for the engine. Nothing is excepted from the comparison: what the engine
says depends on the game and the actions alone.
"""

import random
from collections.abc import Callable, Iterator

import pytest
from alfworld_games import Engine

from peira.environments.texthouse import TextHouse
from peira.environments.texthouse_rooms import (
    ALTERABLE,
    APPLIANCE,
    FAMILIES,
    HOLDS,
    LAMP,
    OPENABLE,
    VESSELS,
    Room,
    draw_room,
)

SIZES = ((6, 3), (6, 3), (9, 6), (12, 8))  # receptacles and objects of the games of every family

SAID_EVERYWHERE = {
    "Available commands:",
    "Nothing happens.",
    "On the",
    "The",
    "You are carrying:",
    "You are facing",
    "You are in",
    "You are not",
    "You arrive",
    "You close",
    "You move",
    "You open",
    "You pick",
}
SAID_OF_ITS_OWN = {
    "put": set(),
    "heat": {"You heat", "This is a hot", "This is a normal"},
    "cool": {"You cool", "This is a cold", "This is a normal"},
    "clean": {"You clean", "This is a clean", "This is a hot and clean"},
    "light": {"You turn on", "There's nothing special"},
    "two": set(),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Engine(tmp_path_factory.mktemp("alfworld"), monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_the_engines(engine, family):
    generator = random.Random(family)
    said = []
    for game, (receptacles, objects) in enumerate(SIZES):
        house = TextHouse(receptacles=receptacles, objects=objects, families=(family,), max_steps=60)
        task = house.tasks[game]
        room = draw_room(family, game, receptacles, objects)
        engine.load(room)
        assert play(engine, house, task, lambda house: house.expert_action(), 60, said)
        play(engine, house, task, lambda house: any_verb(house, generator), 20, said)
        play(engine, house, task, lambda house: now_and_then(house, generator), 25, said)
        actions = alter_and_examine(house, room)
        play(engine, house, task, follow(actions), len(actions), said)
    expected = SAID_EVERYWHERE | SAID_OF_ITS_OWN[family]
    unsaid = {start for start in expected if not any(text.startswith(start) for text in said)}
    assert not unsaid, "the games compared too little"
    print(f"{family}: {len(SIZES)} games, {len(said)} actions compared")


def play(
    engine: Engine,
    house: TextHouse,
    task: str,
    choose: Callable[[TextHouse], str],
    steps: int,
    said: list[str],
) -> bool:
    """Play one episode in both, compare all that they say, and answer whether the goal was reached."""
    observation, _ = house.reset(options={"task": task})
    real = engine.reset()
    assert observation == real.feedback
    for _ in range(steps):
        assert house.admissible() == real.admissible_commands
        action = choose(house)
        admissible = action.strip() in real.admissible_commands
        observation, reward, terminated, _, info = house.step(action)
        real, score, done = engine.step(action)
        assert observation == real.feedback, action
        assert (reward, terminated, terminated) == (score, done, real.won), action
        assert info["understood"] or not admissible
        said.append(observation)
        if terminated:
            return True
    return False


def follow(actions: list[str]) -> Callable[[TextHouse], str]:
    left = iter(actions)
    return lambda house: next(left)


def any_verb(house: TextHouse, generator: random.Random) -> str:
    """An admissible action, all verbs alike: most actions that are admissible lead elsewhere."""
    admissible = house.admissible()
    verb = generator.choice(sorted({action.split()[0] for action in admissible}))
    return generator.choice([action for action in admissible if action.split()[0] == verb])


def alter_and_examine(house: TextHouse, room: Room) -> list[str]:
    """Fetch something and do to it all that can be done, and examine it every time."""
    verbs = [room.family] * (room.family in ALTERABLE) + ["clean", "heat", "cool", "clean"]
    thing = max(
        range(len(room.things)),
        key=lambda thing: (
            sum(thing in room.alterable[verb] for verb in verbs) - (room.things[thing][0] in VESSELS)
        ),
    )
    name, place = house._words.things[thing], house._words.places[room.start[thing]]
    actions = [
        f"go to {place}",
        f"open {place}",
        f"examine {name}",
        f"take {name} from {place}",
        f"examine {name}",
    ]
    for verb in verbs:
        for place in room.appliances[verb]:
            appliance = house._words.places[place]
            actions += [f"go to {appliance}", f"{verb} {name} with {appliance}", f"examine {name}"]
    return actions


def now_and_then(house: TextHouse, generator: random.Random) -> str:
    """Mostly the expert's action or an admissible one; now and then one that is neither, or no sentence at all."""
    case = generator.random()
    if case < 0.4:
        return house.expert_action()
    if case < 0.8:
        return any_verb(house, generator)
    places, things = house._words.places, house._words.things
    place, thing = generator.choice(places), generator.choice(things)
    return generator.choice(
        [
            f"take {thing} from {place}",
            f"move {thing} to {place}",
            f"put {thing} in {place}",
            f"heat {thing} with {place}",
            f"cool {thing} with {place}",
            f"clean {thing} with {place}",
            f"slice {thing} with {generator.choice(things)}",
            f"use {thing}",
            f"examine {thing}",
            f"examine {place}",
            f"open {place}",
            f"go to {place}",
            f"  go to {place} ",
            f"go  to {place}",
            f"Go to {place}",
            "go to attic 1",
            "look around",
            "",
        ]
    )


def test_the_tables_are_alfworlds(engine):
    constants = engine.constants
    named = {kind.lower(): kind for kind in constants.OBJECTS}
    things = frozenset().union(*HOLDS.values())
    for place, held in HOLDS.items():
        assert held == {
            thing for thing in things if named[thing] in constants.VAL_RECEPTACLE_OBJECTS[named[place]]
        }
    for verb, able in (("heat", "Heatable"), ("cool", "Coolable"), ("clean", "Cleanable")):
        assert ALTERABLE[verb] == {
            thing for thing in things if named[thing] in constants.VAL_ACTION_OBJECTS[able]
        }
    assert {place for place in HOLDS if named[place] in constants.OPENABLE_CLASS_SET} == OPENABLE
    assert {thing for thing in things if named[thing] in constants.MOVABLE_RECEPTACLES_SET} == VESSELS
    assert named[LAMP] in constants.VAL_ACTION_OBJECTS["Toggleable"]
    assert set(APPLIANCE.values()) <= set(HOLDS)
