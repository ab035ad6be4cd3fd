"""How numbers, shares and names are written for people; files for machines keep every digit."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

DASH = "–"
"""Stands where there is no number; the reason is always given beside or below."""


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole: 0.08431, 2.542, 12,346, 1.234e−05; a dash for null, NaN and ∞."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - _magnitude(value))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.3e}"
    return _with_minus(text)


def measured(value: float | None, error: float | None) -> str:
    """A number with as many decimals as its error warrants: two significant digits of the error.

    2.54161 ± 0.0843 is 2.542, 1234.5 ± 60 is 1,235. Without an error, or with one of 0, as `number` writes it.
    """
    if value is None or error is None or not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return number(value)
    if not 1e-6 <= error < 1e6 or abs(value) >= 1e9:
        return number(value)
    return _with_minus(f"{value:,.{max(0, 1 - _magnitude(error))}f}")


def measured_interval(interval: Sequence[float | None] | None) -> str:
    """Both ends of an interval with decimals that suit its width; a dash where there is none.

    An end that is null or infinite is that of a one-sided interval: `at least 1.2`.
    """
    if interval is None:
        return DASH
    ends = [None if end is None or not math.isfinite(end) else end for end in interval]
    if None in ends:
        low, high = (number(end) for end in ends)
        return (
            f"at least {low}" if ends[0] is not None else f"at most {high}" if ends[1] is not None else DASH
        )
    # A 95 % interval is about four standard errors wide.
    error = (interval[1] - interval[0]) / 4
    return " to ".join(measured(end, error) for end in interval)


def share(value: float | None) -> str:
    """A share as per cent with three significant digits: 12.3 %, 0.04 %, 100 %."""
    if value is None or not math.isfinite(value):
        return DASH
    return _with_minus(f"{float(f'{100 * value:.3g}'):,.10g}\N{NO-BREAK SPACE}%")


def size(episodes: float | None) -> str:
    """An effective sample size: in whole episodes from ten on."""
    return number(episodes if episodes is None or not episodes >= 10 else round(episodes))


def printable(name: str) -> str:
    """A name with what cannot be seen (line breaks, control characters, changes of direction) made visible."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_invisible(sign) else sign for sign in name)


def elided(name: str, length: int = 28) -> str:
    """A name that fits beside an axis: the middle of a longer one gives way to an ellipsis."""
    name = printable(name)
    if len(name) <= length:
        return name
    front = length * 2 // 3
    return f"{name[:front]}…{name[len(name) - (length - front - 1) :]}"


def counted(count: int, noun: str) -> str:
    """`1 candidate`, `3 candidates`."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def listed(parts: list[str], limit: int = 6) -> str:
    """`a`, `a and b`, `a, b and c`; past `limit` the rest is counted."""
    if len(parts) > limit:
        parts = [*parts[: limit - 1], f"{len(parts) - limit + 1} more"]
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def _is_invisible(sign: str) -> bool:
    category = unicodedata.category(sign)
    return category[0] == "C" or category in ("Zl", "Zp")


def _magnitude(value: float) -> int:
    """Power of ten of the first significant digit."""
    return math.floor(math.log10(abs(value)))


def _with_minus(text: str) -> str:
    """Typographic minus signs; a rounded −0 is 0."""
    if text.startswith("-") and not any(digit in text for digit in "123456789"):
        text = text[1:]
    return text.replace("-", "−")
