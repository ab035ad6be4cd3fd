"""A causal language model as a policy: any `transformers` model from a folder or hub, or a tiny one from nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.experience.dialogue import Tokens
from peira.policies.lm.attention import Families, Layout, attend_by_groups
from peira.policies.lm.layers import use_fast_layers
from peira.policies.lm.tokenizer import Renderer, train_tokenizer

MISSING = "needs what is not installed here: pip install 'peira[language]'"
_TINY = re.compile(r"tiny:(?:(\d+)x(\d+))?")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_BYTES_A_TRAINED_PARAMETER = 16  # Itself, its gradient and Adam's two moments, in single precision.


class LanguagePolicy(nn.Module):
    """π(token | all tokens before it), a causal language model with its tokenizer.

    `version` rises with every update of the parameters. With LoRA only the adapters are trained.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.id, self.version = "", 0
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = tokenizer.eos_token_id if ends is None else ends
        self.renderer = Renderer(tokenizer, ends if isinstance(ends, list | tuple) else [ends])
        self._shares_beginnings = self.device.type == "cpu" and attend_by_groups(self.causal)
        if self._shares_beginnings:
            use_fast_layers(self.causal)
        # The head is only applied where a log-probability is wanted, unless the model does more than that.
        self._plain_head = self._head_is_plain()

    @property
    def causal(self) -> nn.Module:
        """The causal language model itself, inside the adapters if there are any."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context(self) -> int:
        """Tokens that an episode may have; where attention slides, no more than its window."""
        config = self.causal.config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
        return min(config.max_position_embeddings, window or config.max_position_embeddings)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def logits(
        self,
        ids: Int[Tensor, "rows length"],
        positions: Int[Tensor, "rows length"],
        mask: Tensor,
        wanted: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        layout: Layout | None = None,
    ) -> Float[Tensor, "*wanted vocabulary"]:
        """Logits at the places `wanted` (rows, columns), by default everywhere, in single precision.

        `mask` [rows, 1, length, keys] is True where a token may look; with a `layout` that says it.
        """
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "cache": cache}
        inputs["use_cache"] = cache is not None
        if layout is not None:
            inputs["layout"] = layout
        causal = self.causal
        if self._plain_head:
            hidden = causal.base_model(**inputs).last_hidden_state
            hidden = hidden if wanted is None else hidden[wanted]
            return causal.get_output_embeddings()(hidden).float()
        logits = causal(**inputs).logits
        return (logits if wanted is None else logits[wanted]).float()

    def log_prob(self, episodes: Sequence[Tokens], *, temperature: float = 1.0) -> Float[Tensor, " sampled"]:
        """Log-probability of every sampled token of these episodes, one after the other, in one pass.

        What neighbours begin with alike is computed once, where the model's attention is ours.
        """
        sequences, sampled = [episode.ids for episode in episodes], [episode.sampled for episode in episodes]
        if self._shares_beginnings:
            families = Families.of(sequences)
            ids, positions = torch.from_numpy(families.ids)[None], torch.from_numpy(families.positions)[None]
            before, place = families.places_before(sampled), families.places(sampled)
            config = self.causal.config
            layout = Layout(families, config.num_attention_heads, config.num_key_value_heads)
            # A mask of four axes is taken as it is, so that none of [tokens, tokens] is laid out in memory.
            unused = torch.ones(1, dtype=torch.bool).expand(1, 1, len(families.ids), len(families.ids))
            logits = self.logits(
                ids, positions, unused, wanted=(torch.zeros_like(before), before), layout=layout
            )
            chosen = ids[0, place]
        else:
            packed = pack(sequences, max(map(len, sequences)))
            ids, positions, mask = (tensor.to(self.device) for tensor in packed.inputs())
            row, column = (tensor.to(self.device) for tensor in packed.places(sampled))
            logits = self.logits(ids, positions, mask, wanted=(row, column - 1))
            chosen = ids[row, column]
        logits = logits if temperature == 1 else logits / temperature
        return -nn.functional.cross_entropy(logits, chosen, reduction="none")

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in the standard format, and `policy.json` beside them."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        about = {"class": "LanguagePolicy", "id": self.id, "version": self.version}
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        causal = self.causal
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(
            causal.get_output_embeddings()(hidden), causal(input_ids=ids, use_cache=False).logits
        )


@dataclass(frozen=True)
class Packed:
    """Sequences laid into rows of one length, several to a row; a token looks only at its own sequence.

    `row` and `start` say where each sequence lies.
    """

    ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    sequence: Int[Tensor, "rows length"]
    row: Int[np.ndarray, " sequences"]
    start: Int[np.ndarray, " sequences"]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, positions and the mask [rows, 1, length, length]."""
        same = self.sequence[:, :, None] == self.sequence[:, None, :]
        mask = (same & (self.positions[:, :, None] >= self.positions[:, None, :]))[:, None]
        return self.ids, self.positions, mask

    def places(self, marked: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Rows and columns of the marked tokens, sequence by sequence."""
        counts = [int(np.count_nonzero(marks)) for marks in marked]
        within = np.concatenate([np.flatnonzero(marks) for marks in marked])
        column = within + np.repeat(self.start, counts)
        return torch.from_numpy(np.repeat(self.row, counts)), torch.from_numpy(column)


def pack(sequences: Sequence[np.ndarray], length: int) -> Packed:
    """Lay sequences into rows of `length` tokens, longest first, each into the fullest row that holds it."""
    lengths = np.array([len(sequence) for sequence in sequences])
    if lengths.max() > length:
        raise ValueError(f"length: a sequence of {lengths.max()} tokens does not fit a row of {length}")
    row, start, free = np.zeros(len(sequences), int), np.zeros(len(sequences), int), np.zeros(0, int)
    for place in np.argsort(-lengths, kind="stable"):
        room = np.where(free >= lengths[place], free, length + 1)
        chosen = int(room.argmin()) if len(room) else 0
        if not len(room) or room[chosen] > length:
            chosen, free = len(free), np.append(free, length)
        row[place], start[place] = chosen, length - free[chosen]
        free[chosen] -= lengths[place]
    ids = np.zeros((len(free), length), np.int64)
    positions, sequence = np.zeros_like(ids), np.full_like(ids, -1)
    # What pads a row out looks at itself alone, and nothing looks at it.
    positions[:] = np.arange(length)
    sequence[:] = -1 - np.arange(length)
    for place, values in enumerate(sequences):
        into = (row[place], slice(start[place], start[place] + len(values)))
        ids[into], positions[into], sequence[into] = values, np.arange(len(values)), place
    return Packed(*(torch.from_numpy(array) for array in (ids, positions, sequence)), row, start)


def is_tiny(spec: str) -> bool:
    return spec.startswith("tiny:")


def make_tiny(spec: str, texts: Iterable[str], *, context: int, seed: int) -> LanguagePolicy:
    """A small Qwen3-type model with random weights and a tokenizer made from `texts`.

    `spec` is "tiny:" or "tiny:WIDTHxLAYERS" (by default 96x3). Weights are normal with deviation 0.08: at these widths
    the usual 0.02 is too small to learn from.
    """
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError as fault:
        raise ValueError(f"model: {spec} {MISSING}") from fault
    match = _TINY.fullmatch(spec)
    if match is None:
        raise ValueError(f"model: expected tiny: or tiny:WIDTHxLAYERS, such as tiny:96x3, got {spec!r}")
    width, layers = (int(match[1]), int(match[2])) if match[1] else (96, 3)
    if width % 8 or not layers:
        raise ValueError(f"model: the width must be a multiple of 8 and layers at least 1, got {spec!r}")
    tokenizer = train_tokenizer(texts)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        intermediate_size=3 * width,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return LanguagePolicy(model.eval(), tokenizer)


def load_language_policy(
    folder: str, *, train: bool = True, lora_rank: int = 0, seed: int = 0
) -> LanguagePolicy:
    """The causal language model in a local folder, or of this hub id, as a policy.

    On a GPU its weights are bfloat16; with `lora_rank` only adapters of that rank are trained. Raises ValueError when
    there is no such model, it has no tokenizer or no chat template, or it does not fit into memory.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as fault:
        raise ValueError(f"model: {folder} {MISSING}") from fault
    logging.disable_progress_bar()
    place = Path(folder)
    if place.exists() and not (place / "config.json").exists():
        raise ValueError(f"model: {folder} holds no config.json; name the folder of a transformers model")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"model: there is no {folder!r}, neither as a folder nor on the hub from here; "
            "name a folder, or tiny: for a model made from nothing"
        ) from fault
    # Without the files, some classes make a tokenizer that knows no words.
    if place.exists() and not any((place / name).exists() for name in _TOKENIZER_FILES):
        tokenizer = None
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError):
            tokenizer = None
    if tokenizer is None:
        raise ValueError(
            f"model: {folder} has no tokenizer; save one there (tokenizer.json, tokenizer_config.json)"
        )
    if not tokenizer.chat_template:
        raise ValueError(
            f"model: the tokenizer in {folder} has no chat template; set tokenizer.chat_template and save it there"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check_memory(folder, config, device, whole=train and not lora_rank)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).to(device)
    if lora_rank:
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(
                model,
                LoraConfig(
                    r=lora_rank, lora_alpha=2 * lora_rank, task_type="CAUSAL_LM", target_modules="all-linear"
                ),
            )
    policy = LanguagePolicy(model.eval(), tokenizer)
    about = place / "policy.json"
    if about.exists():
        stored = json.loads(about.read_text())
        policy.id, policy.version = stored["id"], stored["version"]
    return policy


def _check_memory(folder: str, config: Any, device: torch.device, *, whole: bool) -> None:
    """Raise ValueError when the model, with what its training needs, is larger than the memory that is free."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    itself = 2 if device.type == "cuda" else 4
    needed = parameters * (_BYTES_A_TRAINED_PARAMETER if whole else itself)
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"model: {folder} has {parameters / 1e9:.1f} billion parameters and needs about {needed / 2**30:.0f} GiB "
            f"{'to train' if whole else 'to run'}; {free / 2**30:.0f} GiB are free on {device}. "
            f"{'Train adapters only (--lora-rank 16), or take' if whole else 'Take'} a smaller model"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")
