"""What happens in a room of TextHouse, without a word of text: the moves, their rules, the goal and the expert."""

from __future__ import annotations

from peira.environments.texthouse_rooms import Room

NOWHERE = -1  # no place, or no thing
HELD = -2  # where a thing is that is carried

Move = tuple[str, int, int]  # a verb, a thing and a place (or NOWHERE)


class House:
    """A room in the course of an episode. Who acts stands before one place, or in the middle of the room at first."""

    def __init__(self, room: Room):
        self.room = room
        self.here = NOWHERE
        self.held = NOWHERE
        self.where = list(room.start)
        self.accessible = [not openable for openable in room.openable]
        self.shown = [False] * len(room.places)  # the places whose contents have been shown
        self.altered: dict[str, set[int]] = {"heat": set(), "cool": set(), "clean": set()}
        self.lit = False

    def contents(self, place: int) -> list[int]:
        """The things that lie in or on a place, in the order of listing."""
        return [thing for thing, at in enumerate(self.where) if at == place]

    def allows(self, verb: str, thing: int, place: int) -> bool:
        """Whether a move would be carried out."""
        room, here = self.room, self.here
        if verb == "go":
            return place != here
        if verb in ("look", "inventory", "help"):
            return True
        if verb == "examine":
            # Of things only what is held, as ALFWorld's engine has it.
            return place == here if thing == NOWHERE else thing == self.held
        if verb == "use":
            return thing == room.lamp and self.where[thing] == here
        if place != here or here == NOWHERE:
            return False
        if verb == "open":
            return not self.accessible[place]
        if verb == "close":
            return room.openable[place] and self.accessible[place]
        if verb == "take":
            return (
                self.held == NOWHERE
                and self.where[thing] == place
                and self.accessible[place]
                and thing != room.lamp
            )
        if thing != self.held:
            return False
        if verb == "move":
            return self.accessible[place] and thing in room.fits[place]
        return thing in room.alterable[verb] and place in room.appliances[verb]

    def moves(self) -> list[Move]:
        """Every move with a thing or a place that would be carried out now."""
        room, here, held = self.room, self.here, self.held
        moves: list[Move] = [("go", NOWHERE, place) for place in range(len(room.places)) if place != here]
        if held != NOWHERE:
            moves.append(("examine", held, NOWHERE))
        if here == NOWHERE:
            return moves
        moves.append(("examine", NOWHERE, here))
        if room.openable[here]:
            moves.append(("close" if self.accessible[here] else "open", NOWHERE, here))
        if held == NOWHERE:
            if self.accessible[here]:
                moves += [("take", thing, here) for thing in self.contents(here) if thing != room.lamp]
        else:
            if self.accessible[here] and held in room.fits[here]:
                moves.append(("move", held, here))
            moves += [
                (verb, held, here)
                for verb, places in room.appliances.items()
                if here in places and held in room.alterable[verb]
            ]
        if room.lamp is not None and self.where[room.lamp] == here:
            moves.append(("use", room.lamp, NOWHERE))
        return moves

    def act(self, verb: str, thing: int, place: int) -> bool:
        """Carry out a move; whether it was one that the room allows."""
        if not self.allows(verb, thing, place):
            return False
        if verb == "go":
            self.here = place
            self.shown[place] |= self.accessible[place]
        elif verb == "open":
            self.accessible[place] = self.shown[place] = True
        elif verb == "close":
            self.accessible[place] = False
        elif verb == "take":
            self.held, self.where[thing] = thing, HELD
        elif verb == "move":
            self.held, self.where[thing] = NOWHERE, place
        elif verb == "use":
            self.lit = True
        elif verb in self.altered:
            self.altered[verb].add(thing)
            if verb != "clean":
                self.altered["cool" if verb == "heat" else "heat"].discard(thing)
        return True

    def solved(self) -> bool:
        """Whether what is asked for is the case."""
        room, where = self.room, self.where
        if room.family == "light":
            return self.lit and self.held in room.wanted and where[room.lamp] == self.here
        if room.family == "two":
            return any(sum(where[thing] == place for thing in room.wanted) >= 2 for place in room.targets)
        done = self.altered.get(room.family, room.wanted)
        return any(where[thing] in room.targets and thing in done for thing in room.wanted)


def expert_move(house: House) -> Move:
    """The next move of one who knows what has been shown, and how the household goes, and nothing else.

    It puts down what is not wanted, looks for what is wanted in one place after the other, alters it where that is
    asked for and brings it to its target.
    """
    room, held = house.room, house.held
    if held == NOWHERE:
        known = _known_to_be_wanted(house)
        if not known:
            return _search(house)
        thing = min(
            known, key=lambda thing: (not _is_altered(house, thing), house.where[thing] != house.here)
        )
        return _at(house, house.where[thing], ("take", thing, house.where[thing]), inside=True)
    if held not in room.wanted:
        return _put_down(house, [place for place in range(len(room.places)) if held in room.fits[place]])
    if room.family == "light":
        place = house.where[room.lamp]
        if house.shown[place]:
            return _at(house, place, ("use", room.lamp, NOWHERE), inside=False)
        return _search(house)
    if not _is_altered(house, held):
        place = room.appliances[room.family][0]
        return _at(house, place, (room.family, held, place), inside=False)
    return _put_down(house, [_fullest_target(house)] if room.family == "two" else room.targets)


def _is_altered(house: House, thing: int) -> bool:
    return thing in house.altered.get(house.room.family, house.room.wanted)


def _known_to_be_wanted(house: House) -> list[int]:
    """Wanted things that have been seen and are not yet where they should be."""
    room = house.room
    settled = _fullest_target(house) if room.family == "two" else NOWHERE
    return [
        thing for thing in room.wanted if house.shown[house.where[thing]] and house.where[thing] != settled
    ]


def _fullest_target(house: House) -> int:
    """The target at which most of what is wanted is known to lie, the first of equals."""
    room = house.room
    return max(
        room.targets,
        key=lambda place: house.shown[place] * sum(house.where[thing] == place for thing in room.wanted),
    )


def _search(house: House) -> Move:
    """Into the place where one stands if it has not been seen into, else on to the first that has not."""
    if house.here != NOWHERE and not house.shown[house.here]:
        return "open", NOWHERE, house.here
    return "go", NOWHERE, house.shown.index(False)


def _put_down(house: House, places: list[int] | tuple[int, ...]) -> Move:
    place = house.here if house.here in places else places[0]
    return _at(house, place, ("move", house.held, place), inside=True)


def _at(house: House, place: int, move: Move, *, inside: bool) -> Move:
    """That move at a place: first the way there, and the opening of what is closed where one must get inside."""
    if house.here != place:
        return ("go", NOWHERE, place)
    if inside and not house.accessible[place]:
        return ("open", NOWHERE, place)
    return move
