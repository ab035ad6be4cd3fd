"""Numbers and names as people read them."""

import math

import pytest

from peira.evaluation.off_policy import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (3, "3"),
        (12345, "12,345"),
        (0.5, "0.5"),
        (0.084312, "0.08431"),
        (2.5416, "2.542"),
        (-2.5416, "−2.542"),
        (12345.6, "12,346"),
        (0.00001234, "1.234e−05"),
        (1.5e9 + 0.5, "1.500e+09"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_a_number_has_four_significant_digits(value, text):
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.54161, 0.0843, "2.542"),
        (2.54161, 0.31, "2.54"),
        (1234.5, 60, "1,234"),
        (-0.001, 0.3, "0.00"),
        (2.54161, None, "2.542"),
        (2.54161, 0.0, "2.542"),
        (2.54161, math.nan, "2.542"),
        (None, 0.1, "–"),
    ],
)
def test_the_error_decides_how_many_digits_are_shown(value, error, text):
    assert formatting.measured(value, error) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ([2.3764, 2.7068], "2.376 to 2.707"),
        ([-1.0, 1.0], "−1.00 to 1.00"),
        ([1.2345, None], "at least 1.234"),
        ([1.2345, math.inf], "at least 1.234"),
        ([None, 1.5], "at most 1.5"),
        ([None, None], "–"),
        (None, "–"),
    ],
)
def test_an_interval_is_written_with_digits_that_suit_its_width(interval, text):
    assert formatting.measured_interval(interval) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "12.3 %"), (1, "100 %"), (0.0004, "0.04 %"), (0, "0 %"), (None, "–")]
)
def test_a_share_is_written_in_per_cent(value, text):
    assert formatting.share(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_an_effective_sample_size_counts_whole_episodes():
    assert [formatting.size(of) for of in (1234.6, 9.87654, None)] == ["1,235", "9.877", "–"]


def test_what_cannot_be_seen_in_a_name_is_made_visible():
    assert formatting.printable("a\nb\x1bc\u202ed\udcff") == "a�b�c�d�"
    assert formatting.printable("naïve 政策 50\N{NO-BREAK SPACE}%") == "naïve 政策 50\N{NO-BREAK SPACE}%"


def test_a_long_name_loses_its_middle():
    short = formatting.elided("checkpoint_" + "x" * 40 + "_final", 20)
    assert len(short) == 20
    assert short.startswith("checkpoint_")
    assert short.endswith("_final")
    assert formatting.elided("short") == "short"


def test_lists_are_read_as_sentences():
    assert formatting.listed(["a"]) == "a"
    assert formatting.listed(["a", "b"]) == "a and b"
    assert formatting.listed(["a", "b", "c"]) == "a, b and c"
    assert formatting.listed(list("abcdefgh"), limit=4) == "a, b, c and 5 more"
    assert formatting.listed([]) == ""
    assert formatting.counted(1, "step") == "1 step"
    assert formatting.counted(2000, "step") == "2,000 steps"
