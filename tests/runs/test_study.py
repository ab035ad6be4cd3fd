"""A study of several settings goes on where it was cut off, and says which command made its page."""

import json

import numpy as np
import pytest

from peira.runs.study import measured, partial, publish, rmse, rmse_difference, rmse_ratio, verdicts


def test_a_study_cut_off_goes_on_with_what_is_missing(tmp_path):
    path, asked = tmp_path / "study.partial.jsonl", []

    def measure(label):
        asked.append(label)
        if label == "c":
            raise KeyboardInterrupt
        return {"square": ord(label) ** 2}

    with pytest.raises(KeyboardInterrupt):
        measured(path, ["a", "b", "c"], measure)
    found = measured(path, ["a", "b", "d"], measure)
    assert asked == ["a", "b", "c", "d"]
    assert found == {label: {"square": ord(label) ** 2} for label in "abd"}


def test_what_is_published_names_its_command(tmp_path, capsys):
    script = tmp_path / "results" / "bandit" / "a9.py"
    script.parent.mkdir(parents=True)
    partial(script).write_text("")

    def page(document):
        return f"{document['figure']} {document['command']}"

    publish(script, " --seeds 2", {"figure": 1}, page, finished=False)
    assert partial(script).exists()
    capsys.readouterr()
    publish(script, " --seeds 3", {"figure": 2}, page)
    document = json.loads(script.with_suffix(".json").read_text())
    assert document["command"] == "python results/bandit/a9.py --seeds 3"
    assert document["versions"]
    page = script.with_suffix(".md").read_text()
    assert page.startswith("2 python results/bandit/a9.py --seeds 3\n\nVersions: ")
    assert page in capsys.readouterr().out
    assert not partial(script).exists()


def test_errors_are_compared_on_the_same_data_sets():
    errors = np.random.default_rng(0).normal(0.1, 1.0, 200)
    alone = rmse(errors)
    assert alone["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert alone["bias"] == pytest.approx(errors.mean())
    assert alone["interval"][0] < alone["rmse"] < alone["interval"][1]
    half = rmse_difference(errors / 2, errors)
    assert half["difference"] == pytest.approx(-alone["rmse"] / 2)
    assert half["interval"][1] < 0
    # In pairs the ratio is the same in every replicate.
    assert rmse_ratio(errors / 2, errors)["interval"] == pytest.approx((0.5, 0.5))


def test_verdicts_are_a_line_each():
    assert verdicts({"a": True, "b": False}) == ["- a: met", "- b: not met"]
