"""Text worlds side by side: outcomes kept apart, faults that end one episode only, ids that name a world."""

import time

import pytest
from text_worlds import Corridor, Failing

from peira.environments.text import SeparateTextEnvs, make_text


def corridors(number=3):
    return SeparateTextEnvs("corridor", Corridor, number)


def test_ends_are_kept_apart():
    envs = corridors()
    first = envs.reset([0, 1, 2], ["to 1", "to 3", "to 2"])
    assert [outcome.observation for outcome in first] == ["at 0 go to 1", "at 0 go to 3", "at 0 go to 2"]
    done, going, odd = envs.step([0, 1, 2], ["right", "right", "jump"])
    assert (done.reward, done.terminated, done.over) == (1.0, True, True)
    assert not going.over
    assert going.understood
    assert not odd.understood
    assert not odd.over
    for _ in range(5):
        (last,) = envs.step([2], ["left"])
    assert (last.truncated, last.terminated, last.reward) == (True, False, 0.0)
    envs.close()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "OSError: the floor gave way"),
        ("no text", "TypeError: the observation is no text but bytes"),
        ("hangs", "TimeoutError: no answer within 0.2 s"),
    ],
)
def test_a_fault_ends_its_own_episode_with_an_error_and_the_next_is_sound(how, message):
    made = []

    def make():
        made.append(Failing(how) if len(made) < 1 else Corridor())
        return made[-1]

    envs = SeparateTextEnvs("corridor", make, 2, timeout=0.2)
    envs.reset([0, 1], ["to 3", "to 3"])
    assert not any(outcome.over for outcome in envs.step([0, 1], ["right", "right"]))
    began = time.monotonic()
    broken, sound = envs.step([0, 1], ["right", "right"])
    assert broken.error == message
    assert broken.over
    assert not broken.terminated
    assert not broken.truncated
    assert sound.error is None
    assert time.monotonic() - began < 5
    (again,) = envs.reset([0], ["to 1"])
    assert again.error is None
    assert envs.step([0], ["right"])[0].reward == 1.0
    envs.close()


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("texthuose", "env: there is no text world 'texthuose'; did you mean 'texthouse'?"),
        (
            "textworld/coin-collector",
            "env: expected textworld/KIND/LEVEL, such as textworld/coin-collector/3, got",
        ),
        ("zork", "env: there is no text world 'zork'; there are texthouse, "),
    ],
)
def test_a_world_that_does_not_exist(id, message):
    with pytest.raises(ValueError) as fault:
        make_text(id, 1)
    assert str(fault.value).startswith(message)
