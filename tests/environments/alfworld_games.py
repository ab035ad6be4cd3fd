"""Rooms of TextHouse written as games of ALFWorld, and ALFWorld's own engine to play them with.

What a room may hold and what can be done to it is written from ALFWorld's constants, goals and task sentences from its
goal library: a game is the room as ALFWorld has it, not as TextHouse believes it to be.
"""

import copy
import functools
import json
import sys
from pathlib import Path

import pytest

from peira.environments.texthouse_rooms import Room

ALFRED_TASK = {
    "put": "pick_and_place_simple",
    "heat": "pick_heat_then_place_in_recep",
    "cool": "pick_cool_then_place_in_recep",
    "clean": "pick_clean_then_place_in_recep",
    "light": "look_at_obj_in_light",
    "two": "pick_two_obj_and_place",
}


class Engine:
    """ALFWorld's engine as its text environment sets it up. `load` a game; `reset` and `step` answer with its state.

    The package makes a folder of its own, in `folder`, when it is imported.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("ALFWORLD_DATA", str(folder))
        import alfworld.info
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from alfworld.gen import constants, goal_library
        from textworld.envs.pddl import PddlEnv

        _remember_what_was_parsed(monkeypatch)
        self.constants, self.goals = constants, goal_library.gdict
        self._domain = Path(alfworld.info.ALFRED_PDDL_PATH).read_text()
        self._grammar = Path(alfworld.info.ALFRED_TWL2_PATH).read_text()
        self._game = folder / "game.tw-pddl"
        self._env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
        self.reset, self.step = self._env.reset, self._env.step

    def load(self, room: Room) -> None:
        task = self.goals[ALFRED_TASK[room.family]]["templates"][room.phrasing].format(
            obj=room.wanted_kind, recep=room.target_kind, toggle=room.target_kind
        )
        game = {
            "pddl_domain": self._domain,
            "grammar": self._grammar.replace("UNKNOWN GOAL", task),
            "pddl_problem": self._problem(room),
            "solvable": True,
            "walkthrough": [],
        }
        self._game.write_text(json.dumps(game))
        self._env.load(str(self._game))

    def _problem(self, room: Room) -> str:
        """The room in PDDL. ALFWorld numbers what is alike from the last identifier to the first."""
        constants = self.constants
        kinds = {kind.lower(): kind for kind in constants.OBJECTS}
        place_types = sorted(constants.RECEPTACLES - constants.MOVABLE_RECEPTACLES_SET)
        thing_types = sorted(constants.OBJECTS_SET - set(place_types))
        places = [
            f"Sink_bar_{index:02d}_bar_SinkBasin" if kind == "sinkbasin" else f"{kinds[kind]}_bar_{index:02d}"
            for index, (kind, _) in enumerate(room.places)
        ]
        things = [f"{kinds[kind]}_bar_{index:02d}" for index, (kind, _) in enumerate(room.things)]
        objects = [
            "agent1 - agent",
            "loc_start - location",
            *(f"{kind}Type - rtype" for kind in place_types),
            *(f"{kind}Type - otype" for kind in thing_types),
            *(f"{place} - receptacle" for place in places),
            *(f"loc_{index} - location" for index in range(len(places))),
            *(f"{thing} - object" for thing in things),
        ]
        facts = ["= (total-cost) 0", "atLocation agent1 loc_start"]
        for index, (place, (kind, _)) in enumerate(zip(places, room.places, strict=True)):
            facts += [
                f"receptacleType {place} {kinds[kind]}Type",
                f"receptacleAtLocation {place} loc_{index}",
            ]
            if kinds[kind] in constants.OPENABLE_CLASS_SET:
                facts.append(f"openable {place}")
        for kind in sorted({kinds[kind] for kind, _ in room.places}):
            held = constants.VAL_RECEPTACLE_OBJECTS[kind]
            facts += [f"canContain {kind}Type {thing}Type" for thing in thing_types if thing in held]
        for thing, (kind, _), at in zip(things, room.things, room.start, strict=True):
            kind = kinds[kind]
            facts += [
                f"objectType {thing} {kind}Type",
                f"inReceptacle {thing} {places[at]}",
                f"objectAtLocation {thing} loc_{at}",
            ]
            facts.append(f"{'toggleable' if kind == 'DeskLamp' else 'pickupable'} {thing}")
            facts += [
                f"{able.lower()} {thing}"
                for able in ("Heatable", "Coolable", "Cleanable")
                if kind in constants.VAL_ACTION_OBJECTS[able]
            ]
            if kind in constants.MOVABLE_RECEPTACLES_SET:
                facts.append(f"isReceptacleObject {thing}")
        goal = self.goals[ALFRED_TASK[room.family]]["pddl"].format(
            obj=kinds[room.wanted_kind], recep=kinds[room.target_kind], toggle=kinds[room.target_kind]
        )
        return (
            "(define (problem room) (:domain alfred) (:objects\n"
            + "\n".join(objects)
            + ")\n(:init\n"
            + "\n".join(f"({fact})" for fact in facts)
            + ")\n"
            + goal.replace("#", "-")
        )


def _remember_what_was_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine parses its grammar and every command again and again; with the results kept it plays faster."""
    import fast_downward
    from textworld.envs.pddl import logic, textgen

    parse = functools.cache(textgen._parse_and_convert)
    monkeypatch.setattr(
        textgen, "_parse_and_convert", lambda *text, **rule: copy.deepcopy(parse(*text, **rule))
    )
    monkeypatch.setattr(logic, "_parse_and_convert", functools.cache(logic._parse_and_convert))
    query = functools.cache(textgen.Rule.parse_conjunctive_query)
    monkeypatch.setattr(textgen.Rule, "parse_conjunctive_query", query)
    translate, arguments = functools.cache(fast_downward.pddl2sas), sys.argv

    def translate_once(domain: str, problem: str, **options: bool) -> tuple:
        # The second translation, with `optimize`, is for the planner, which is not asked for anything here.
        task = translate(domain, problem)
        sys.argv = arguments  # which the translator overwrites
        return task

    monkeypatch.setattr(fast_downward, "pddl2sas", translate_once)
