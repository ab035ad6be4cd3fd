"""The combination lock seen through images that no small network decodes without errors.

An observation is an image of the digit of the step and one of the latent state, passed through a frozen random network:
a stand-in, without downloads, for the image features of Zhou et al., arXiv 2311.08384. Training shows one part of the
images, evaluation the other. Needs scikit-learn, whose bundled digits (1 797 images of 8 × 8) these are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from peira.environments.lock import STATES, AntiReward, CombinationLock, lock_horizon

FEATURES = 64
WIDTH = 256
TRAIN_SHARE = 0.7
PIXEL_NOISE = 0.15
"""Standard deviation, where a pixel is 0 to 1: makes a linear probe of step and state miss some."""


@dataclass(frozen=True)
class DigitsLock(CombinationLock):
    """A lock whose observations are features of images; `held_out` shows images that training never does.

    Observation: 64 features, each of mean 0 and deviation 1 over the training images. Image of step h: the digit
    h mod 10, and beyond ten steps one of ⌊h / 10⌋ as well; step H, which only the last action leads to, looks like
    step H − 1.
    """

    held_out: bool = False

    @property
    def observation_size(self) -> int:
        return FEATURES

    def observe(
        self, state: Int[np.ndarray, " rows"], step: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "rows obs"]:
        step = min(step, self.horizon - 1)
        digits = [np.full(len(state), step % 10), state]
        if self.horizon > 10:
            digits.append(np.full(len(state), step // 10))
        return _features(digits, self.held_out, rng)

    def unseen(self) -> DigitsLock:
        """The same lock, showing held-out images."""
        return replace(self, held_out=True)


def make_lock(name: str, seed: int, anti_reward: AntiReward) -> CombinationLock | None:
    """The lock `lock-hH` or `digits-lock-hH` with the codes that `seed` draws; None for another environment.

    Raises ValueError for a lock with too few or too many steps, or where scikit-learn is missing.
    """
    rng = np.random.default_rng(seed)
    if horizon := lock_horizon(name, "lock-h"):
        return CombinationLock.drawn(horizon, rng, anti_reward)
    if horizon := lock_horizon(name, "digits-lock-h"):
        _images()
        return DigitsLock.drawn(horizon, rng, anti_reward)
    return None


def probe_accuracy(lock: DigitsLock, rows: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often a linear classifier reads (step, state) off the features: on training images, on held-out ones.

    `rows` observations of each, of steps and states drawn uniformly.
    """
    from sklearn.linear_model import LogisticRegression

    def drawn(shown: DigitsLock) -> tuple[np.ndarray, np.ndarray]:
        step, state = rng.integers(shown.horizon, size=rows), rng.integers(STATES, size=rows)
        features = np.empty((rows, FEATURES), np.float32)
        for one in range(shown.horizon):
            features[step == one] = shown.observe(state[step == one], one, rng)
        return features, step * STATES + state

    train, test = drawn(replace(lock, held_out=False)), drawn(lock.unseen())
    probe = LogisticRegression(max_iter=2000).fit(*train)
    return float(probe.score(*train)), float(probe.score(*test))


@lru_cache
def _images() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and held-out images of each digit, pixels 0 to 1: the first 70 % and the rest, by index."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as fault:
        raise ValueError("env: digits-lock needs scikit-learn; pip install 'peira[decisions]'") from fault
    pixels, digit = load_digits(return_X_y=True)
    parts = []
    cut = int(TRAIN_SHARE * len(digit))
    for part in (slice(0, cut), slice(cut, None)):
        parts.append([pixels[part][digit[part] == one] / 16 for one in range(10)])
    return parts[0], parts[1]


@lru_cache
def _network(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frozen weights of the two layers, and mean and deviation of the features over random training images."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, np.sqrt(2 / (images * 64)), (images * 64, WIDTH))
    second = rng.normal(0, np.sqrt(2 / WIDTH), (WIDTH, FEATURES))
    shown = _shown(list(rng.integers(10, size=(images, 4096))), False, rng)
    raw = np.maximum(shown @ first, 0) @ second
    return first, second, raw.mean(0), raw.std(0)


def _features(digits: list[np.ndarray], held_out: bool, rng: np.random.Generator) -> np.ndarray:
    first, second, mean, deviation = _network(len(digits))
    raw = np.maximum(_shown(digits, held_out, rng) @ first, 0) @ second
    return ((raw - mean) / deviation).astype(np.float32)


def _shown(digits: list[np.ndarray], held_out: bool, rng: np.random.Generator) -> np.ndarray:
    """Noisy pixels of one random image of each digit, side by side [rows, images · 64]."""
    images = _images()[held_out]
    first = np.cumsum([0, *(len(of) for of in images)])
    count, pixels = np.diff(first), np.concatenate(images)
    parts = [pixels[first[digit] + (rng.random(len(digit)) * count[digit]).astype(int)] for digit in digits]
    side_by_side = np.concatenate(parts, 1)
    return side_by_side + PIXEL_NOISE * rng.standard_normal(side_by_side.shape)
