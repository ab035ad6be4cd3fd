"""A small policy over web pages: it reads goal and elements and scores every action that could be taken.

Candidates are a click on each element, and each string that the goal quotes typed into each field; one softmax is over
all of them, so that an action is one choice. Some 0.4 million parameters, trained from random ones (``arpo.md`` 7, R2).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from peira.environments.miniwob import Snapshot, quoted
from peira.environments.miniwob.pages import click, type_text

_WORDS = 4096
_SIZE = 64
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")
_LONGEST = {"goal": 48, "name": 6, "text": 12}  # in words; what is beyond is not read
_STRINGS = 6  # quoted strings that can be typed
_FRAME = (160.0, 210.0)  # pixels of a page
_GEOMETRY = 8


@dataclass(frozen=True)
class Page:
    """A state as numbers: words of the goal; of each element words of its name and of its text, and where it lies.

    A candidate is the row of its element, the number of the string typed (0 for a click), and that string's words.
    """

    goal: Int[np.ndarray, " goal_words"]
    names: Int[np.ndarray, "elements name_words"]
    texts: Int[np.ndarray, "elements text_words"]
    geometry: Float[np.ndarray, "elements features"]
    element: Int[np.ndarray, " candidates"]
    string: Int[np.ndarray, " candidates"]
    typed: Int[np.ndarray, "candidates text_words"]

    @property
    def candidates(self) -> int:
        return len(self.element)


@dataclass(frozen=True)
class Choices:
    """An episode as this policy saw it: its pages, what was chosen on each, and with which log-probability."""

    pages: Sequence[Page]
    chosen: Int[np.ndarray, " steps"]
    log_probs: Float[np.ndarray, " steps"]

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def sampled(self) -> Bool[np.ndarray, " steps"]:
        return np.ones(len(self.pages), bool)


def read_page(snapshot: Snapshot) -> tuple[Page, list[str]]:
    """The state as numbers, and the action that each candidate stands for."""
    elements = [element for element in snapshot.elements if element.ref > 0]
    strings = quoted(snapshot.goal)[:_STRINGS]
    rows, numbers, actions = [], [], []
    for row, element in enumerate(elements):
        rows.append(row)
        numbers.append(0)
        actions.append(click(element.ref))
        if element.takes_text:
            for number, string in enumerate(strings, start=1):
                rows.append(row)
                numbers.append(number)
                actions.append(type_text(element.ref, string))
    beside = {element.parent: element.text for element in snapshot.elements if element.ref < 0}
    names = [_hashed(f"{e.tag} {e.id} {e.classes}", _LONGEST["name"]) for e in elements]
    shown = [
        f"{e.text} {beside.get(e.ref, '')} {e.value if isinstance(e.value, str) else ''}" for e in elements
    ]
    texts = [_hashed(text, _LONGEST["text"]) for text in shown]
    words = [np.zeros(_LONGEST["text"], np.int64)] + [_hashed(text, _LONGEST["text"]) for text in strings]
    geometry = [
        [
            e.left / _FRAME[0],
            e.top / _FRAME[1],
            e.width / _FRAME[0],
            e.height / _FRAME[1],
            float(e.focused),
            float(e.takes_text),
            float(e.value is True),
            float(bool(e.value) and isinstance(e.value, str)),
        ]
        for e in elements
    ]
    page = Page(
        _hashed(snapshot.goal, _LONGEST["goal"]),
        np.stack(names),
        np.stack(texts),
        np.asarray(geometry, np.float32),
        np.asarray(rows),
        np.asarray(numbers),
        np.stack([words[number] for number in numbers]),
    )
    return page, actions


class DomPolicy(nn.Module):
    """π(candidate | page). Words are hashed into one table; an element is compared with the goal word by word."""

    def __init__(self, *, seed: int = 0):
        super().__init__()
        self.id, self.version = "", 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(_WORDS, _SIZE, padding_idx=0)
            self.match = nn.Linear(_SIZE, _SIZE, bias=False)
            self.goal = nn.GRU(_SIZE, _SIZE // 2, batch_first=True, bidirectional=True)
            self.string = nn.Embedding(_STRINGS + 1, 16)
            features = 7 * _SIZE + 16 + 3 + _GEOMETRY
            self.score = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 1))
        # At first an element matches a goal that holds its words.
        with torch.no_grad():
            self.match.weight.copy_(torch.eye(_SIZE) + 0.01 * self.match.weight)
            self.words.weight.mul_(0.3)

    def trained(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def logits(self, pages: Sequence[Page]) -> Float[Tensor, "pages candidates"]:
        """Scores of every page's candidates; −∞ where a page has fewer than the most."""
        goal_ids = pad_sequence([torch.from_numpy(page.goal) for page in pages], batch_first=True)
        goal = self.words(goal_ids)
        there = goal_ids > 0
        read, last = self.goal(goal)
        whole = torch.cat([last[0], last[1]], -1)
        of_page = torch.from_numpy(np.repeat(np.arange(len(pages)), [page.candidates for page in pages]))
        row = [page.element for page in pages]
        names = self._bag(
            torch.from_numpy(np.concatenate([p.names[r] for p, r in zip(pages, row, strict=True)]))
        )
        texts = torch.from_numpy(np.concatenate([p.texts[r] for p, r in zip(pages, row, strict=True)]))
        text = self._bag(texts)
        typed = self._bag(torch.from_numpy(np.concatenate([page.typed for page in pages])))
        geometry = torch.from_numpy(np.concatenate([p.geometry[r] for p, r in zip(pages, row, strict=True)]))
        number = torch.from_numpy(np.concatenate([page.string for page in pages]))
        parts, matches = [], []
        for what in (names, text, typed):
            weight = torch.einsum("cd,cgd->cg", self.match(what), goal[of_page])
            weight = weight.masked_fill(~there[of_page], float("-inf"))
            matches.append(weight.amax(-1, keepdim=True))
            parts.append(torch.einsum("cg,cgd->cd", weight.softmax(-1), read[of_page]))
        features = [names, text, typed, *parts, whole[of_page], self.string(number), *matches, geometry]
        flat = self.score(torch.cat(features, -1)).squeeze(-1)
        scores = flat.split([page.candidates for page in pages])
        return pad_sequence(list(scores), batch_first=True, padding_value=float("-inf"))

    def log_prob(self, episodes: Sequence[Choices], *, temperature: float = 1.0) -> Float[Tensor, " steps"]:
        """Log-probability of every choice of these episodes, one after the other."""
        pages = [page for episode in episodes for page in episode.pages]
        chosen = torch.from_numpy(np.concatenate([episode.chosen for episode in episodes]))
        log_probs = torch.log_softmax(self.logits(pages) / temperature, -1)
        return log_probs.gather(1, chosen[:, None]).squeeze(1)

    def _bag(self, ids: Int[Tensor, "rows words"]) -> Float[Tensor, "rows size"]:
        """Mean of the words that are there, √n times: a match of one word among many still counts."""
        count = (ids > 0).sum(-1, keepdim=True).clamp(min=1)
        return self.words(ids).sum(1) / count.sqrt()

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]

    def save(self, folder: Path) -> None:
        """Write the policy to `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self.named_parameters()}
        save_file(tensors, folder / "policy.safetensors")
        about = {"class": "DomPolicy", "id": self.id, "version": self.version}
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> DomPolicy:
        """The policy that `save` wrote."""
        policy = cls()
        about = json.loads((folder / "policy.json").read_text())
        policy.load_state_dict({**load_file(folder / "policy.safetensors"), "_extra_state": about})
        return policy


@lru_cache(maxsize=1 << 16)
def _word(word: str) -> int:
    return 1 + zlib.crc32(word.encode()) % (_WORDS - 1)


def _hashed(text: str, longest: int) -> Int[np.ndarray, " words"]:
    """Numbers of the first `longest` words of a text, 0 where there are fewer."""
    found = [_word(word) for word in _WORD.findall(text.lower())[:longest]]
    return np.asarray(found + [0] * (longest - len(found)), np.int64)
