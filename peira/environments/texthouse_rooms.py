"""The rooms of TextHouse: what can lie where, what can be done to it, and the room that a task's name stands for.

The kinds, what holds what and what can be heated, cooled and cleaned are those of the ALFRED household (Shridhar et
al., "ALFRED", CVPR 2020; "ALFWorld", ICLR 2021), cut down to a kitchen and a bedroom. Nothing is sliced here.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

FIRST_HELD_OUT = 1_000_000  # seeds below are for training
FAMILIES = ("put", "heat", "cool", "clean", "light", "two")
APPLIANCE = {"heat": "microwave", "cool": "fridge", "clean": "sinkbasin"}
OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})
VESSELS = frozenset({"mug", "plate", "cup", "bowl", "pan", "pot"})
LAMP = "desklamp"
LAMP_PLACES = frozenset({"desk", "sidetable", "dresser", "shelf"})


def _kinds(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ALTERABLE = {
    "heat": frozenset(_kinds("mug apple plate potato egg cup tomato bread")),
    "cool": frozenset(_kinds("mug apple plate potato egg cup tomato bowl lettuce bread pan pot winebottle")),
    "clean": frozenset(
        _kinds(
            "mug apple plate potato fork egg cup tomato bowl lettuce spoon pan kettle spatula pot butterknife "
            "dishsponge ladle"
        )
    ),
}

# In the order in which they come into play: a small room draws from the beginning of these lists only, so that the
# number of different words grows with the room.
_KITCHEN_PLACES = _kinds(
    "sinkbasin microwave fridge countertop cabinet shelf drawer diningtable cabinet garbagecan drawer countertop "
    "stoveburner cabinet sidetable coffeemachine shelf drawer cabinet stoveburner"
)
_KITCHEN_THINGS = _kinds(
    "mug apple plate potato fork egg cup tomato bowl lettuce spoon bread pan saltshaker kettle spatula pot "
    "butterknife dishsponge ladle peppershaker glassbottle winebottle soapbottle"
)
_BEDROOM_PLACES = _kinds(
    "desk bed drawer dresser sidetable shelf drawer garbagecan safe armchair drawer sofa shelf ottoman drawer "
    "coffeetable sidetable drawer shelf armchair"
)
_BEDROOM_THINGS = _kinds(
    "book cellphone pencil creditcard keychain mug laptop cd alarmclock pen watch pillow remotecontrol newspaper "
    "vase statue bowl"
)
LARGEST = len(_KITCHEN_PLACES)

_ON_A_TABLE = frozenset(_KITCHEN_THINGS + _BEDROOM_THINGS) - {"pillow"}
_ON_A_SEAT = frozenset(_kinds("book cellphone creditcard keychain laptop pillow remotecontrol newspaper"))
_ON_A_DRESSER = frozenset(
    _kinds(
        "mug plate cup bowl glassbottle winebottle book cellphone pencil creditcard keychain laptop cd alarmclock "
        "pen watch remotecontrol newspaper vase statue"
    )
)
HOLDS = {
    "countertop": _ON_A_TABLE,
    "diningtable": _ON_A_TABLE,
    "sidetable": _ON_A_TABLE,
    "coffeetable": _ON_A_TABLE,
    "armchair": _ON_A_SEAT,
    "sofa": _ON_A_SEAT,
    "ottoman": _ON_A_SEAT,
    "bed": frozenset(_kinds("book cellphone laptop pillow newspaper")),
    "dresser": _ON_A_DRESSER,
    "desk": _ON_A_DRESSER | {"soapbottle"},
    "shelf": (_ON_A_DRESSER - {"laptop"})
    | {"saltshaker", "kettle", "pot", "dishsponge", "peppershaker", "soapbottle"},
    "cabinet": frozenset(
        _kinds(
            "mug plate cup bowl pan saltshaker kettle pot dishsponge ladle peppershaker glassbottle winebottle "
            "soapbottle book cd newspaper vase"
        )
    ),
    "drawer": frozenset(
        _kinds(
            "fork spoon saltshaker spatula butterknife dishsponge ladle peppershaker soapbottle book cellphone pencil "
            "creditcard keychain cd pen watch remotecontrol newspaper"
        )
    ),
    "safe": frozenset(_kinds("cellphone creditcard keychain cd watch vase statue")),
    "garbagecan": frozenset(
        _kinds(
            "apple potato egg tomato lettuce bread dishsponge winebottle soapbottle pencil cd pen newspaper"
        )
    ),
    "sinkbasin": ALTERABLE["clean"] | {"glassbottle"},
    "microwave": ALTERABLE["heat"] | {"bowl", "glassbottle"},
    "fridge": ALTERABLE["cool"] | {"glassbottle"},
    "stoveburner": frozenset({"pan", "kettle", "pot"}),
    "coffeemachine": frozenset({"mug"}),
}

_Option = TypeVar("_Option")
Name = tuple[str, int]  # a kind and its number in the room: ("cabinet", 2)


@dataclass(frozen=True)
class Room:
    """A room as an episode finds it, everything closed, and what is asked there.

    Places and things are numbered by their position in `places` and `things`, the order in which they are listed: by
    kind, the highest number first. `start[thing]` is the place where it lies. Asked for is a thing of the kind
    `wanted_kind` in a place of the kind `target_kind` (of the family "light": held under the lamp); `phrasing` says in
    which of two ways that is said.
    """

    family: str
    places: tuple[Name, ...]
    things: tuple[Name, ...]
    start: tuple[int, ...]
    wanted_kind: str
    target_kind: str
    phrasing: int

    @cached_property
    def openable(self) -> tuple[bool, ...]:
        return tuple(kind in OPENABLE for kind, _ in self.places)

    @cached_property
    def fits(self) -> tuple[frozenset[int], ...]:
        """For every place the things that can be put there."""
        return tuple(_indices(self.things, HOLDS[kind]) for kind, _ in self.places)

    @cached_property
    def alterable(self) -> dict[str, frozenset[int]]:
        """For "heat", "cool" and "clean" the things that this can be done to."""
        return {verb: _indices(self.things, kinds) for verb, kinds in ALTERABLE.items()}

    @cached_property
    def appliances(self) -> dict[str, tuple[int, ...]]:
        """For "heat", "cool" and "clean" the places where it is done."""
        return {verb: tuple(sorted(_indices(self.places, {kind}))) for verb, kind in APPLIANCE.items()}

    @cached_property
    def lamp(self) -> int | None:
        return next(iter(_indices(self.things, {LAMP})), None)

    @cached_property
    def wanted(self) -> tuple[int, ...]:
        return tuple(sorted(_indices(self.things, {self.wanted_kind})))

    @cached_property
    def targets(self) -> tuple[int, ...]:
        return tuple(sorted(_indices(self.places, {self.target_kind})))

    @property
    def held_out(self) -> bool:
        """Whether the room is one of those that are kept from training: half of all, by a checksum of what is in it.

        What is asked there does not count, so that no two tasks of the two sides share a room.
        """
        return bool(zlib.crc32(repr((self.places, self.things, self.start)).encode()) & 1)


@lru_cache(maxsize=1 << 14)
def draw_room(family: str, seed: int, receptacles: int, objects: int) -> Room:
    """The room of a task, the same in every process: drawn anew until it admits the goal and is of the seed's side.

    It has `receptacles` places and `objects` things (and a lamp besides where the family asks for one). Raises
    `ValueError` where no such room is found.
    """
    # random() is the one method whose stream Python promises to keep from version to version.
    generator = random.Random(f"{family}/{seed}/{receptacles}/{objects}")
    for _ in range(1000):
        room = _draw(generator, family, receptacles, objects)
        if room is not None and room.held_out == (seed >= FIRST_HELD_OUT):
            return room
    raise ValueError(
        f"TextHouse: no room of {receptacles} receptacles and {objects} objects for {family}/{seed}; allow for more"
    )


def _draw(generator: random.Random, family: str, receptacles: int, objects: int) -> Room | None:
    """A room and a goal, or None where this draw admits none."""
    bedroom = family == "light"
    all_places, all_things = (
        (_BEDROOM_PLACES, _BEDROOM_THINGS) if bedroom else (_KITCHEN_PLACES, _KITCHEN_THINGS)
    )
    place_kinds = all_places[: 2 * receptacles]
    thing_kinds = all_things[: 2 * objects]
    appliance = APPLIANCE.get(family)
    kinds = [appliance] if appliance else []
    place_kinds = [kind for kind in place_kinds if kind != appliance]
    while len(kinds) < receptacles:
        kinds.append(place_kinds.pop(int(generator.random() * len(place_kinds))))

    wanted_kind = _pick(
        generator, [kind for kind in thing_kinds if kind in ALTERABLE.get(family, thing_kinds)]
    )
    target_kind = LAMP
    if not bedroom:
        target_kind = _pick(
            generator, [kind for kind in kinds if wanted_kind in HOLDS[kind] and kind != appliance]
        )
    if target_kind is None:
        return None

    things = [wanted_kind] * (2 if family == "two" else 1)
    while len(things) < objects:
        kind = _pick(generator, thing_kinds)
        if things.count(kind) < 2:
            things.append(kind)
    places = _numbered(kinds)
    # As in ALFRED, nothing wanted lies in the appliance that alters it, or, if nothing alters it, at its target.
    kept_out = {appliance} if appliance else {target_kind}
    lying = []
    for kind in things:
        allowed = [
            place
            for place, (place_kind, _) in enumerate(places)
            if kind in HOLDS[place_kind] and not (kind == wanted_kind and place_kind in kept_out)
        ]
        lying.append((kind, _pick(generator, allowed)))
    if bedroom:
        allowed = [place for place, (place_kind, _) in enumerate(places) if place_kind in LAMP_PLACES]
        lying.append((LAMP, _pick(generator, allowed)))
    if any(place is None for _, place in lying):
        return None
    lying.sort(key=lambda thing: thing[0])
    return Room(
        family,
        places,
        _numbered([kind for kind, _ in lying]),
        tuple(place for _, place in lying),
        wanted_kind,
        target_kind,
        int(generator.random() * 2),
    )


def _pick(generator: random.Random, options: Sequence[_Option]) -> _Option | None:
    return options[int(generator.random() * len(options))] if options else None


def _numbered(kinds: Sequence[str]) -> tuple[Name, ...]:
    """Names in the order of listing: by kind, the highest number first."""
    left = Counter(kinds)
    names = []
    for kind in sorted(kinds):
        names.append((kind, left[kind]))
        left[kind] -= 1
    return tuple(names)


def _indices(names: Sequence[Name], kinds: frozenset[str] | set[str]) -> frozenset[int]:
    return frozenset(index for index, (kind, _) in enumerate(names) if kind in kinds)
