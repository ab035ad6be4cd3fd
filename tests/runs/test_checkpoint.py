"""A checkpoint comes back as it was, type by type, and is there whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from peira.runs.checkpoint import KEPT, drop_old, load_tree, newest, save_tree


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, yours in zip(one, other, strict=True):
            assert_same(mine, yours)
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    else:
        assert one == other


def test_a_nested_state_comes_back_with_its_types(tmp_path):
    state = {
        "empty": {},
        "none": None,
        "numbers": [1, -2.5, True, 2**40, 1e-300, 0.1],
        "text": "µ",
        "tensors": {
            "scalar": torch.tensor(3.0, dtype=torch.float64),
            "none of them": torch.empty(0, 3),
            "bits": torch.tensor([True, False]),
            "generator": torch.Generator().manual_seed(0).get_state(),
            "not a number": torch.tensor([float("nan"), float("inf")]),
        },
        "arrays": [np.arange(6).reshape(2, 3), np.array(2.5), np.zeros((2, 0), np.float32)],
        "keys that are numbers": {0: "zero", 1: {"one": 1}},
        "a generator's state": np.random.default_rng(0).bit_generator.state,
    }
    save_tree(state, tmp_path / "7")
    assert_same(load_tree(tmp_path / "7"), state)


def test_tuples_become_lists_and_numpy_numbers_plain_ones(tmp_path):
    save_tree({"tuple": (1, (2, "x")), "number": np.float32(0.5)}, tmp_path / "1")
    assert load_tree(tmp_path / "1") == {"tuple": [1, [2, "x"]], "number": 0.5}


def test_views_and_transposed_tensors_are_saved_by_value(tmp_path):
    flat = torch.arange(6.0)
    state = {
        "whole": flat,
        "view": flat[2:4],
        "turned": flat.view(2, 3).T,
        "grad": flat.clone().requires_grad_(),
    }
    array = np.arange(6).reshape(2, 3).T
    save_tree({**state, "array": array}, tmp_path / "1")
    loaded = load_tree(tmp_path / "1")
    assert loaded["view"].tolist() == [2, 3]
    assert loaded["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert loaded["array"].tolist() == array.tolist()
    loaded["whole"].zero_()
    assert loaded["view"].tolist() == [2, 3]
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]


def test_saving_again_replaces(tmp_path):
    save_tree({"a": torch.zeros(3)}, tmp_path / "1")
    save_tree({"b": 2}, tmp_path / "1")
    assert load_tree(tmp_path / "1") == {"b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_kill_while_replacing_leaves_one_whole_checkpoint(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    for stage in ("rename", "rmtree"):
        folder = tmp_path / stage
        save_tree({"a": 1}, folder / "4")
        save_tree({"a": 2}, folder / "5")
        with monkeypatch.context() as patch, pytest.raises(Killed):
            if stage == "rename":
                patch.setattr(Path, "rename", kill)
            else:
                patch.setattr(shutil, "rmtree", lambda path, **_: kill() if Path(path).exists() else None)
            save_tree({"a": 3}, folder / "5")
        assert load_tree(newest(folder)) == {"a": 2 if stage == "rename" else 3}
        save_tree({"a": 4}, folder / "5")
        assert load_tree(newest(folder)) == {"a": 4}
        assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]


def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path):
    save_tree({"a": 1}, tmp_path / "1")
    with pytest.raises(TypeError, match=r"a checkpoint holds tensors, .* not <class 'set'>"):
        save_tree({"a": {1, 2}}, tmp_path / "1")
    assert load_tree(tmp_path / "1") == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    assert newest(tmp_path) is None
    save_tree({"a": 1}, tmp_path / "9")
    (tmp_path / ".10.part").mkdir()
    (tmp_path / ".10.part" / "state.json").write_text("{")
    assert newest(tmp_path) == tmp_path / "9"
    save_tree({"a": 2}, tmp_path / "10")
    assert newest(tmp_path) == tmp_path / "10"
    assert load_tree(tmp_path / "10") == {"a": 2}


def test_the_newest_by_number_stay(tmp_path):
    for iteration in (2, 9, 10, 100):
        save_tree({"iteration": iteration}, tmp_path / str(iteration))
        drop_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "100"]
    assert KEPT == 2
    assert newest(tmp_path).name == "100"
