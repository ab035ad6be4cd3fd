"""From words to token ids and back: one renderer for every prompt, and the tokenizer of models made from nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS_AT_MOST = 1024
"""Text with more different words than this gets byte-pair tokens instead of whole words."""
BYTE_PAIRS = 2048
_SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<end>"}
_ACT = "<act>"
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + _ACT + "' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + _ACT + "{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer with chat template, made from text: whole words while they are few, byte pairs otherwise.

    Words are runs of letters and digits, or of signs; spaces are not kept, so that text comes back with one space
    between any two words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    special = [*_SPECIAL.values(), _ACT]
    words = pre_tokenizers.Whitespace()
    counts = Counter(word for text in texts for word, _ in words.pre_tokenize_str(text))
    if len(counts) <= WORDS_AT_MOST:
        vocabulary = {word: place for place, word in enumerate([*special, *sorted(counts)])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk"]))
        tokenizer.pre_tokenizer = words
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk"]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=BYTE_PAIRS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=[_ACT],
        **{f"{name}_token": token for name, token in _SPECIAL.items()},
    )


class Renderer:
    """How an episode becomes one sequence of tokens, by the tokenizer's own chat template.

    The first turn is rendered whole. What follows an action, up to where the next one is written, is rendered by
    itself and appended: tokens that were sampled are never decoded and encoded again. (A template that rewrites earlier
    turns, as those that drop old reasoning do, is therefore followed for the newest turn only.)
    """

    _ACTION = "\N{LEFT WHITE SQUARE BRACKET}ACTION\N{RIGHT WHITE SQUARE BRACKET}"
    _FIRST: ClassVar[list[dict[str, str]]] = [{"role": "user", "content": "."}]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]):
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self._endings = {stop: tokenizer.decode([stop], skip_special_tokens=False) for stop in stops}

    def first(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens up to where the first action is written."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def next(self, observation: str, last: int) -> list[int]:
        """Tokens between an action whose last token was `last` and the next action."""
        messages = [
            *self._FIRST,
            {"role": "assistant", "content": self._ACTION},
            {"role": "user", "content": observation},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        following = text.split(self._ACTION, 1)[1]
        return self.encode(following.removeprefix(self._endings.get(last, "")))

    def text(self, action: Sequence[int]) -> str:
        """The words of an action, without the token that ended it."""
        action = action[:-1] if len(action) and action[-1] in self.stops else action
        return self.tokenizer.decode(action, skip_special_tokens=False).strip()

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text, with nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)
