"""Small text worlds for tests: a corridor to walk, and worlds that fail in every way."""

import time

from peira.environments.text import TextEnv


class Corridor(TextEnv):
    """Walk right from 0 to the place the task names; `left` and `right` are the actions."""

    tasks = ("to 1", "to 2", "to 3")
    held_out = ("to 4",)
    max_steps = 6
    manual = "write left or right"

    def reset(self, *, seed=None, options=None):
        self.goal = int(options["task"].removeprefix("to "))
        self.place = self.steps = 0
        return f"at 0 go to {self.goal}", {}

    def step(self, action):
        self.steps += 1
        understood = action in ("left", "right")
        self.place = max(0, self.place + {"left": -1, "right": 1}.get(action, 0))
        over = self.place == self.goal
        return (
            f"at {self.place}",
            float(over),
            over,
            not over and self.steps == self.max_steps,
            {"understood": understood},
        )

    def expert_action(self):
        return "right"


class Failing(Corridor):
    """Fails at its second action, as `how` says."""

    def __init__(self, how):
        self.how = how

    def step(self, action):
        outcome = super().step(action)
        if self.steps < 2:
            return outcome
        if self.how == "raises":
            raise OSError("the floor gave way\nand so on")
        if self.how == "hangs":
            time.sleep(30)
        return (b"bytes", *outcome[1:]) if self.how == "no text" else outcome
