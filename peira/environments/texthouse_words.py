"""How TextHouse reads actions and tells what came of them: in ALFWorld's sentences, or in few single words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peira.environments.texthouse_moves import NOWHERE, House, Move
from peira.environments.texthouse_rooms import ALTERABLE, HOLDS, LAMP, VESSELS, Room

_PLACE = "(?:" + "|".join(HOLDS) + ")"
_THING = "(?:" + "|".join(sorted({LAMP}.union(*HOLDS.values()))) + ")"

_HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


class Sentences:
    """ALFWorld's own: "take mug 1 from cabinet 2" is answered by "You pick up the mug 1 from the cabinet 2."."""

    manual = (
        "You act in a household, one action at a time. Actions: go to (receptacle), open (receptacle), "
        "close (receptacle), take (object) from (receptacle), move (object) to (receptacle), heat (object) "
        "with (receptacle), cool (object) with (receptacle), clean (object) with (receptacle), use "
        "(object), examine (receptacle or object), look, inventory, help. A receptacle or object is named "
        "with its number, as in: take mug 1 from cabinet 2. You can carry one object, and reach only what "
        "is in or on the open receptacle you stand at. A microwave heats, a fridge cools and a sinkbasin "
        "cleans what you carry. Use a desklamp to turn it on."
    )
    nothing_happens = "Nothing happens."
    bare = ("help", "inventory", "look")

    _joined_by = {  # noqa: RUF012 (never written to)
        "take": " from ",
        "move": " to ",
        "heat": " with ",
        "cool": " with ",
        "clean": " with ",
    }
    _phrases = {  # noqa: RUF012
        "put": ("put a {} in {}", "put some {} on {}"),
        "heat": ("put a hot {} in {}", "heat some {} and put it in {}"),
        "cool": ("put a cool {} in {}", "cool some {} and put it in {}"),
        "clean": ("put a clean {} in {}", "clean some {} and put it in {}"),
        "light": ("look at {} under the {}", "examine the {} with the {}"),
        "two": ("put two {} in {}", "find two {} and put them in {}"),
    }
    # "slice" and "put" stand in ALFWorld's grammar too; nothing comes of them there either.
    _well_formed = re.compile(
        r"look|inventory|help|(?:go to|open|close|examine) R|(?:examine|use) O|take O from R|move O to R"
        r"|(?:heat|cool|clean) O with R|slice O with O|put O (?:in|into) (?:R|O)".replace(
            "R", rf"{_PLACE} \d+"
        ).replace("O", rf"{_THING} \d+")
    )

    def __init__(self, room: Room):
        self.places = [f"{kind} {number}" for kind, number in room.places]
        self.things = [f"{kind} {number}" for kind, number in room.things]
        self._place = {name: place for place, name in enumerate(self.places)}
        self._thing = {name: thing for thing, name in enumerate(self.things)}

    def understands(self, action: str) -> bool:
        """Whether an action is a sentence of the grammar, whatever there is in this room."""
        return self._well_formed.fullmatch(action) is not None

    def read(self, action: str, house: House) -> Move | None:
        """The move that an action asks for, None where it names none in this room."""
        verb, _, rest = action.partition(" ")
        thing = place = NOWHERE
        if verb in self._joined_by:
            thing_name, _, place_name = rest.partition(self._joined_by[verb])
            thing, place = self._thing.get(thing_name), self._place.get(place_name)
        elif verb == "go":
            place = self._place.get(rest[3:]) if rest.startswith("to ") else None
        elif verb in ("open", "close"):
            place = self._place.get(rest)
        elif verb == "use":
            thing = self._thing.get(rest)
        elif verb == "examine":
            place = self._place.get(rest, NOWHERE)
            thing = NOWHERE if place != NOWHERE else self._thing.get(rest)
        elif action not in self.bare:
            return None
        return None if thing is None or place is None else (verb, thing, place)

    def write(self, move: Move) -> str:
        """The action that asks for a move."""
        verb, thing, place = move
        if verb in self._joined_by:
            return f"{verb} {self.things[thing]}{self._joined_by[verb]}{self.places[place]}"
        name = self.things[thing] if place == NOWHERE else self.places[place]
        return f"go to {name}" if verb == "go" else f"{verb} {name}"

    def begin(self, house: House) -> str:
        """What there is to read at first: the places and what is asked for."""
        room = house.room
        asked = self._phrases[room.family][room.phrasing].format(room.wanted_kind, room.target_kind)
        seen = self._look_around(self.places)
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{seen}\n\nYour task is to: {asked}."

    def tell(self, move: Move, house: House) -> str:
        """What is said of a move that has been carried out."""
        verb, thing, place = move
        if verb == "go":
            return f"You arrive at {self.places[place]}. {self._describe(place, house)}"
        if verb == "open":
            return f"You open the {self.places[place]}. {self._describe(place, house)}"
        if verb == "close":
            return f"You close the {self.places[place]}."
        if verb == "take":
            return f"You pick up the {self.things[thing]} from the {self.places[place]}."
        if verb == "move":
            return f"You move the {self.things[thing]} to the {self.places[place]}."
        if verb in ALTERABLE:
            return f"You {verb} the {self.things[thing]} using the {self.places[place]}."
        if verb == "use":
            return f"You turn on the {self.things[thing]}."
        if verb == "examine":
            return self._describe(place, house) if thing == NOWHERE else self._inspect(thing, house)
        if verb == "look":
            return self._look(house)
        if verb == "help":
            return _HELP
        if house.held == NOWHERE:
            return "You are not carrying anything."
        return f"You are carrying: a {self.things[house.held]}."

    def _look(self, house: House) -> str:
        if house.here == NOWHERE:  # where ALFWorld's engine lists nothing but at the beginning
            return self._look_around([])
        return f"You are facing the {self.places[house.here]}. Next to it, you see nothing."

    def _look_around(self, seen: list[str]) -> str:
        return f"You are in the middle of a room. Looking quickly around you, you see {_enumerate(seen)}."

    def _describe(self, place: int, house: House) -> str:
        if not house.accessible[place]:
            return f"The {self.places[place]} is closed."
        seen = _enumerate(self.things[thing] for thing in house.contents(place))
        if house.room.openable[place]:
            return f"The {self.places[place]} is open. In it, you see {seen}."
        return f"On the {self.places[place]}, you see {seen}."

    def _inspect(self, thing: int, house: House) -> str:
        name = self.things[thing]
        if house.room.things[thing][0] in VESSELS:  # of which ALFWorld tells this and no more
            return f"This is a normal {name}. In it, you see nothing."
        hot, cool, clean = (thing in house.altered[verb] for verb in ("heat", "cool", "clean"))
        if clean and (hot or cool):
            return f"This is a {'hot' if hot else 'cool'} and clean {name}."
        if hot or clean or cool:
            return f"This is a {'hot' if hot else 'clean' if clean else 'cold'} {name}."
        return f"There's nothing special about {name}."


class Words:
    """Every action is one or two words, and every name a single one: "take mug1" is answered by "have mug1"."""

    manual = (
        "Actions: go PLACE, open PLACE, close PLACE, examine PLACE or THING, take THING, move THING (to where you "
        "stand), heat THING, cool THING, clean THING (at a microwave, fridge, sinkbasin), use THING, look, inventory."
    )
    nothing_happens = "nothing"
    bare = ("inventory", "look")

    _asked = {  # noqa: RUF012 (never written to)
        "put": "take {} put {}",
        "heat": "heat {} put {}",
        "cool": "cool {} put {}",
        "clean": "clean {} put {}",
        "light": "look {} use {}",
        "two": "two {} put {}",
    }
    _well_formed = re.compile(
        r"look|inventory|(?:go|open|close|examine) R|(?:take|move|heat|cool|clean|use|examine) O".replace(
            "R", rf"{_PLACE}\d+"
        ).replace("O", rf"{_THING}\d+")
    )

    def __init__(self, room: Room):
        self.places = [f"{kind}{number}" for kind, number in room.places]
        self.things = [f"{kind}{number}" for kind, number in room.things]
        self._place = {name: place for place, name in enumerate(self.places)}
        self._thing = {name: thing for thing, name in enumerate(self.things)}

    def understands(self, action: str) -> bool:
        return self._well_formed.fullmatch(action) is not None

    def read(self, action: str, house: House) -> Move | None:
        verb, _, name = action.partition(" ")
        if verb in ("go", "open", "close") or (verb == "examine" and name in self._place):
            return (verb, NOWHERE, self._place[name]) if name in self._place else None
        if verb in ("use", "examine"):
            return (verb, self._thing[name], NOWHERE) if name in self._thing else None
        if verb in ("take", "move", "heat", "cool", "clean"):
            return (verb, self._thing[name], house.here) if name in self._thing else None
        return (verb, NOWHERE, NOWHERE) if action in self.bare else None

    def write(self, move: Move) -> str:
        verb, thing, place = move
        return f"{verb} {self.places[place] if thing == NOWHERE else self.things[thing]}"

    def begin(self, house: House) -> str:
        room = house.room
        asked = self._asked[room.family].format(room.wanted_kind, room.target_kind)
        return f"see {' '.join(self.places)} task {asked}"

    def tell(self, move: Move, house: House) -> str:
        verb, thing, place = move
        if verb == "go":
            return f"at {self._describe(place, house)}"
        if verb in ("open", "close") or (verb == "examine" and thing == NOWHERE):
            return self._describe(place, house)
        if verb == "move":
            return f"put {self.things[thing]} {self.places[place]}"
        if verb == "use":
            return f"{self.things[thing]} on"
        if verb == "look":
            return self._look(house)
        if verb in ("take", "inventory"):
            return f"have {'nothing' if house.held == NOWHERE else self.things[house.held]}"
        states = [
            state
            for verb, state in (("heat", "hot"), ("cool", "cool"), ("clean", "clean"))
            if thing in house.altered[verb]
        ]
        return " ".join([self.things[thing], *(states or ["plain"])])

    def _look(self, house: House) -> str:
        return "see nothing" if house.here == NOWHERE else f"at {self.places[house.here]}"

    def _describe(self, place: int, house: House) -> str:
        if not house.accessible[place]:
            return f"{self.places[place]} closed"
        seen = " ".join(self.things[thing] for thing in house.contents(place)) or "empty"
        return f"{self.places[place]} {'open ' if house.room.openable[place] else ''}{seen}"


def _enumerate(names: Iterable[str]) -> str:
    """ "a b 1, a c 1, and a d 1", as ALFWorld writes lists, with a comma before "and" even of two."""
    *others, last = [f"a {name}" for name in names] or ["nothing"]
    return f"{', '.join(others)}, and {last}" if others else last
