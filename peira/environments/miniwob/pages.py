"""What a MiniWoB page shows, in two views; the grammar of actions; experts, which read no more than that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MANUAL = """\
The first line is the goal; then the elements of the page, one a line, those that can be acted on with their number.
Answer with one action:
click N
    click on the element with the number N
type N "text"
    write the text into the field N, in place of what it holds, or choose it from the list N
"""
CLICK = re.compile(r"click ([0-9]+)")
TYPE = re.compile(r'type ([0-9]+) ("(?:[^"\\]|\\.)*")')
QUOTED = re.compile(r'"([^"]*)"')
WITHOUT_TEXT = ("button", "checkbox", "color", "file", "hidden", "image", "radio", "range", "reset", "submit")


class Element(NamedTuple):
    """One element of the DOM, or with `tag` "t" and a negative `ref` one piece of text beside other elements.

    `ref` is the number to act on, the same throughout an episode (that of a text is not), and `parent` the `ref` of the
    element around it, 0 at the root. `tag` is in lower case and with an input's type: "input_text". `value` is what a
    field or list holds, whether a box is checked, or None. Positions in pixels from the frame's corner.
    """

    ref: int
    parent: int
    tag: str
    id: str
    classes: str
    text: str
    value: str | bool | None
    left: float
    top: float
    width: float
    height: float
    focused: bool

    @property
    def takes_text(self) -> bool:
        """Whether `type` has an effect here."""
        kind, _, type_ = self.tag.partition("_")
        return kind in ("textarea", "select") or (kind == "input" and type_ not in WITHOUT_TEXT)

    @property
    def is_control(self) -> bool:
        return self.takes_text or self.tag in ("a", "button", "option") or self.tag.startswith("input_")


@dataclass(frozen=True)
class Snapshot:
    """What a page shows at one moment: its goal, and its visible elements in the order of the document.

    When the episode is over there are no elements.
    """

    goal: str
    elements: tuple[Element, ...]

    def as_text(self) -> str:
        """The goal, then a line for each control, text and icon; what only holds others together is left out."""
        parents = {element.parent for element in self.elements}
        lines = [f"goal: {self.goal}"]
        for element in self.elements:
            if element.is_control or element.text or (element.ref not in parents and _name(element)):
                lines.append(_line(element))
        return "\n".join(lines)


def _name(element: Element) -> str:
    """An element's id and classes, as a style sheet would write them."""
    names = [f"#{element.id}"] if element.id else []
    return "".join([*names, *(f".{name}" for name in element.classes.split())])


def _line(element: Element) -> str:
    if element.ref < 0:
        return f"- {_quote(element.text)}"
    if isinstance(element.value, bool):
        shown = "on" if element.value else "off"
    elif element.value is not None:
        shown = _quote(element.value)
    else:
        shown = _quote(element.text) if element.text else _name(element)
    return f"{element.ref} {element.tag} {shown}".rstrip()


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def quoted(goal: str) -> list[str]:
    """The strings in double quotes that a goal names, each once, in order."""
    return list(dict.fromkeys(QUOTED.findall(goal)))


def click(ref: int) -> str:
    return f"click {ref}"


def type_text(ref: int, text: str) -> str:
    return f"type {ref} {_quote(text)}"


def parse(action: str) -> tuple[str, int] | tuple[str, int, str] | None:
    """`("click", ref)`, `("type", ref, text)`, or None where the action is not of the grammar."""
    action = action.strip()
    if found := CLICK.fullmatch(action):
        return "click", int(found[1])
    if found := TYPE.fullmatch(action):
        try:
            return "type", int(found[1]), json.loads(found[2])
        except ValueError:  # an escape that JSON has not
            return None
    return None


def _find(snapshot: Snapshot, tag: str = "", *, text: str | None = None, classes: str = "") -> Element | None:
    """The first element with this tag, text and one of whose classes is this."""
    matches = (
        element
        for element in snapshot.elements
        if element.ref > 0
        and (not tag or element.tag == tag)
        and (text is None or element.text == text)
        and (not classes or classes in element.classes.split())
    )
    return next(matches, None)


def _click(*candidates: Element | None) -> str:
    """Click on the first that is there, or else on the root, which does nothing."""
    return click(next((element.ref for element in candidates if element is not None), 1))


def _fill(snapshot: Snapshot, values: Sequence[str]) -> str:
    """Write each value into its field, then press the page's button."""
    fields = [element for element in snapshot.elements if element.takes_text]
    for field, value in zip(fields, values, strict=False):
        if field.value != value:
            return type_text(field.ref, value)
    return _click(_find(snapshot, "button"))


def _within(snapshot: Snapshot, ancestor: int) -> Iterator[Element]:
    inside = {ancestor}
    for element in snapshot.elements:
        if element.parent in inside:
            inside.add(element.ref)
            yield element


def _click_first_button(snapshot: Snapshot) -> str:
    return _click(_find(snapshot, "button"))


def _click_one(snapshot: Snapshot) -> str:
    return _click(_find(snapshot, "button", text="ONE"))


def _click_one_then_two(snapshot: Snapshot) -> str:
    one, two = _find(snapshot, "button", text="ONE"), _find(snapshot, "button", text="TWO")
    return _click(two if one and one.focused else one)


def _click_named_button(snapshot: Snapshot) -> str:
    return _click(_find(snapshot, "button", text=quoted(snapshot.goal)[0]))


def _click_named_tab(snapshot: Snapshot) -> str:
    return _click(_find(snapshot, "a", text=snapshot.goal.removeprefix("Click on ").removesuffix(".")))


def _click_link(snapshot: Snapshot) -> str:
    """The link, or where it is on another tab the tab after this one."""
    tabs = [element for element in snapshot.elements if "ui-tabs-tab" in element.classes.split()]
    active = [number for number, tab in enumerate(tabs) if "ui-tabs-active" in tab.classes.split()]
    after = tabs[(active[0] + 1) % len(tabs)] if active else None
    anchor = next(_within(snapshot, after.ref), None) if after else None
    return _click(_find(snapshot, "span", text=quoted(snapshot.goal)[0], classes="alink"), anchor)


def _close_dialog(snapshot: Snapshot) -> str:
    return _click(_find(snapshot, "button", classes="ui-dialog-titlebar-close"))


def _click_in_dialog(snapshot: Snapshot) -> str:
    label = quoted(snapshot.goal)[0]
    return _close_dialog(snapshot) if label == "x" else _click(_find(snapshot, "button", text=label))


def _expand_and_submit(snapshot: Snapshot) -> str:
    header = _find(snapshot, "h3")
    is_closed = header is not None and "ui-accordion-header-collapsed" in header.classes.split()
    return _click(header if is_closed else _find(snapshot, "button"))


def _enter_quoted(snapshot: Snapshot) -> str:
    return _fill(snapshot, quoted(snapshot.goal))


def _enter_password(snapshot: Snapshot) -> str:
    return _fill(snapshot, quoted(snapshot.goal) * 2)


def _enter_behind_popup(snapshot: Snapshot) -> str:
    cancel = _find(snapshot, "button", text="Cancel")
    return _click(cancel) if cancel else _enter_quoted(snapshot)


def _enter_value_of(snapshot: Snapshot) -> str:
    cells = [element.text for element in snapshot.elements if element.tag == "td"]
    key = snapshot.goal.removeprefix("Enter the value of ").removesuffix(
        " into the text field and press Submit."
    )
    return _fill(snapshot, [dict(zip(cells[::2], cells[1::2], strict=True))[key]])


def _choose_from_list(snapshot: Snapshot) -> str:
    name = snapshot.goal.removeprefix("Select ").removesuffix(" from the list and click Submit.")
    return _fill(snapshot, [name])


def _check(snapshot: Snapshot) -> str:
    """Every box as the goal has it, then Submit. A box's name is the text after it."""
    names = snapshot.goal.removeprefix("Select ").removesuffix(" and click Submit.").split(", ")
    for box, label in zip(snapshot.elements, snapshot.elements[1:], strict=False):
        if box.tag == "input_checkbox" and box.value != (label.text in names):
            return _click(box)
        if box.tag == "input_radio" and label.text in names and not box.value:
            return _click(box)
    return _click(_find(snapshot, "button", text="Submit"))


def _delete_email(snapshot: Snapshot) -> str:
    """The trash icon in the row of the sender, or else the way back to the inbox."""
    sender = snapshot.goal.removeprefix("Find the email by ").partition(" and click")[0]
    for row in snapshot.elements:
        if "email-thread" in row.classes.split() or row.id == "email":
            inside = list(_within(snapshot, row.ref))
            if any(element.classes == "email-sender" and element.text == sender for element in inside):
                return _click(*(element for element in inside if element.classes == "trash"))
    ways_back = ("close-reply", "close-forward", "close-email", "search-cancel")
    return _click(*(element for name in ways_back for element in snapshot.elements if element.id == name))


def _search(snapshot: Snapshot) -> str:
    """Type, search, turn to the third of the results, three to a page, that the goal counts to, and take it."""
    name = quoted(snapshot.goal)[0]
    place = int(re.findall(r"the ([0-9]+)[a-z]+ search result", snapshot.goal)[0]) - 1
    field = _find(snapshot, "input_text")
    if field is not None and field.value != name:
        return type_text(field.ref, name)
    results = [element for element in snapshot.elements if element.classes == "search-title"]
    number = str(place // 3 + 1)
    turn = next((link for link in snapshot.elements if link.tag == "a" and link.text == number), None)
    if not results or turn is None:
        return _click(_find(snapshot, "button", text="Search"))
    around = next(element for element in snapshot.elements if element.ref == turn.parent)
    return _click(results[place % 3] if "active" in around.classes.split() else turn)


def _open_folders(snapshot: Snapshot) -> str:
    """What is named, or else the first folder that is still closed."""
    name = quoted(snapshot.goal)[0]
    if found := _find(snapshot, "span", text=name):
        return _click(found)
    closed = (
        next((inside for inside in _within(snapshot, item.ref) if inside.tag == "span"), None)
        for item in snapshot.elements
        if "expandable" in item.classes.split()
    )
    return _click(*closed)


def _click_widget(snapshot: Snapshot) -> str:
    kind = quoted(snapshot.goal)[0]
    return _click(*(_find(snapshot, tag) for tag in (f"input_{kind}", kind)))


def _focus(snapshot: Snapshot) -> str:
    fields = [element for element in snapshot.elements if element.takes_text]
    place = re.search(r"the ([0-9])", snapshot.goal)
    return _click(*fields[int(place[1]) - 1 if place else 0 :])


@dataclass(frozen=True)
class Page:
    """A page that is known to show nothing of an earlier episode, so that it need not be loaded anew for each.

    `expert` solves it, reading only what a snapshot shows; `max_steps` is the number of actions that suits it.
    """

    expert: Callable[[Snapshot], str]
    max_steps: int = 8


PAGES = {
    "choose-list": Page(_choose_from_list),
    "click-button": Page(_click_named_button, 4),
    "click-button-sequence": Page(_click_one_then_two, 4),
    "click-checkboxes": Page(_check),
    "click-collapsible-nodelay": Page(_expand_and_submit),
    "click-dialog": Page(_close_dialog, 4),
    "click-dialog-2": Page(_click_in_dialog, 4),
    "click-link": Page(_click_link, 4),
    "click-option": Page(_check),
    "click-tab": Page(_click_named_tab, 4),
    "click-tab-2": Page(_click_link),
    "click-tab-2-easy": Page(_click_link, 4),
    "click-test": Page(_click_first_button, 4),
    "click-test-2": Page(_click_one, 4),
    "click-widget": Page(_click_widget, 4),
    "email-inbox-delete": Page(_delete_email),
    "enter-password": Page(_enter_password),
    "enter-text": Page(_enter_quoted),
    "enter-text-dynamic": Page(_enter_quoted),
    "focus-text": Page(_focus, 4),
    "focus-text-2": Page(_focus, 4),
    "login-user": Page(_enter_quoted),
    "login-user-popup": Page(_enter_behind_popup),
    "navigate-tree": Page(_open_folders, 10),
    "read-table": Page(_enter_value_of),
    "search-engine": Page(_search),
}
MAX_STEPS = 8  # of the package's other pages
