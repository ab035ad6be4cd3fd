"""The recipes by name. Each is imported only when it is used, so that listing them stays quick."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """A published system as `peira run` knows it: where its code is, and which preset it begins from."""

    name: str
    summary: str
    source: str
    module: str
    preset_name: str = "preset"
    world: Literal["control", "text", "decisions", "hybrid"] = "control"

    @property
    def config(self) -> type:
        return self._module.Config

    @property
    def preset(self) -> Callable[[str], Any]:
        """Settings to begin from, given the environment's id."""
        return getattr(self._module, self.preset_name)

    @property
    def run(self) -> Callable[[Any, Any], Any]:
        return self._module.run

    @property
    def check(self) -> Callable[[Any], None]:
        """Raises ValueError for what is known to be wrong before anything is made."""
        return getattr(self._module, "check", lambda config: None)

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"peira.recipes.{self.module}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("ppo", "on-policy baseline", "Schulman et al. 2017", "ppo"),
        Recipe("props", "gather what was sampled too rarely", "arXiv 2311.08290", "props"),
        Recipe(
            "ppo-buffer", "PPO on retained batches, uncorrected", "arXiv 2311.08290", "props", "preset_buffer"
        ),
        Recipe("ros", "robust on-policy sampling", "arXiv 2111.14552", "props", "preset_ros"),
        Recipe("sft", "imitate a scripted expert's text", "warm start", "sft", world="text"),
        Recipe("grpo", "group-relative policy gradients for text", "Shao et al. 2024", "grpo", world="text"),
        Recipe(
            "arpo", "replay a success where a whole group failed", "arXiv 2505.16282", "arpo", world="text"
        ),
        Recipe("td3bc", "climb a critic, held to the log", "arXiv 2106.06860", "td3bc"),
        Recipe("rebrac", "TD3+BC with two penalties", "arXiv 2305.09836", "td3bc", "preset_rebrac"),
        Recipe("bc", "imitate a log, or its best episodes", "behaviour cloning", "td3bc", "preset_bc"),
        Recipe("iql", "imitate what turned out well", "arXiv 2110.06169", "iql"),
        Recipe("pgd", "invent windows of the log, nudged toward the policy", "arXiv 2404.06356", "pgd"),
        Recipe(
            "bandit",
            "explore by inverse gaps, retrain on short memory, watch generations decay",
            "arXiv 2412.00569",
            "bandit",
            world="decisions",
        ),
        Recipe(
            "hnpg", "natural gradient from a log and fresh steps", "arXiv 2311.08384", "hnpg", world="hybrid"
        ),
        Recipe(
            "trpo", "natural gradient, no log", "Schulman et al. 2015", "hnpg", "preset_trpo", world="hybrid"
        ),
        Recipe("rlpd", "replay half log, half own steps", "arXiv 2302.02948", "rlpd", world="hybrid"),
    )
}


def find(name: str) -> Recipe:
    """The recipe of this name; ValueError, with the nearest name, when there is none."""
    if name in RECIPES:
        return RECIPES[name]
    nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
    offer = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(RECIPES)}"
    raise ValueError(f"recipe: there is no {name!r}; {offer}")
