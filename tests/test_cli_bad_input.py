"""Bad input ends with exit status 2 and one line that says which field, what came, and what to do."""

import json
import shutil
from pathlib import Path

import pytest
from command_processes import TINY, Commands, metrics, summary

BROKEN = '''
"""An environment whose fault can be healed: a file `fault` that holds `reward 300 nan` or the like."""
from pathlib import Path

import gymnasium
import numpy as np


class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        observation, reward = self.np_random.normal(size=2).astype(np.float32), float(action)
        fault = Path("fault")
        if fault.exists():
            field, step, value = fault.read_text().split()
            if self.steps == int(step):
                if field == "reward":
                    reward = float(value)
                else:
                    observation[1] = float(value)
        return observation, reward, False, self.steps == 400, {}


gymnasium.register("Broken-v0", entry_point=Broken)
'''


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("bad_input"))
    (commands.folder / "a_file").write_text("")
    (commands.folder / "broken.py").write_text(BROKEN)
    return commands


@pytest.fixture(scope="module")
def finished(commands) -> Path:
    folder = commands.folder / "finished"
    arguments = ["ppo", "--env", "CartPole-v1", "--steps", "256", "--batch-steps", "128", *TINY]
    assert commands.run("run", *arguments, "--out", folder).status == 0
    return folder


RECIPES = (
    "ppo, props, ppo-buffer, ros, sft, grpo, arpo, td3bc, rebrac, bc, iql, pgd, bandit, hnpg, trpo, rlpd"
)
LINES = {
    # The words after `peira`, and the line.
    "prun": "command: there is no 'prun'; did you mean 'run'?",
    "fly": "command: there is no 'fly'; there are recipes, run, compare, evaluate, store, serve",
    # Recipes.
    "run": f"recipe: name one right after `peira run`; there are {RECIPES}",
    "run --seed 1 props": f"recipe: name one right after `peira run`; there are {RECIPES}",
    "run prop": "recipe: there is no 'prop'; did you mean 'props'?",
    "run qqqq": f"recipe: there is no 'qqqq'; there are {RECIPES}",
    "run ppo props": "recipe: expected one, got also 'props'; `peira compare` runs several",
    # Fields.
    "run ppo --lerning-rate 1": "--lerning-rate: there is no such field; did you mean '--learning-rate'?",
    "run ppo --retained 2": "--retained: there is no such field; --help lists them",
    "run ppo --xyzzy 2": "--xyzzy: there is no such field; --help lists them",
    "run ppo --no-epochs": "--no-epochs: there is no such field; did you mean '--epochs'?",
    "run ppo -s 3": "-s: expected a setting such as --env; settings begin with two dashes",
    # Types.
    "run ppo --steps many": "--steps: expected a whole number, got 'many'",
    "run ppo --steps=1.5": "--steps: expected a whole number, got '1.5'",
    "run ppo --learning-rate fast": "--learning-rate: expected a number, got 'fast'",
    "run ppo --learning-rate nan": "--learning-rate: expected a number, got 'nan'",
    "run ppo --kl-stop never": "--kl-stop: expected a number or None, got 'never'",
    "run ppo --hidden 64 wide": "--hidden: expected a whole number, got 'wide'",
    "run props --sampler rose": "--sampler: expected props or ros or on-policy, got 'rose'",
    "run ppo --anneal False": "--anneal: expected no value, got 'False'; write --anneal or --no-anneal",
    "run ppo --env": "--env: expected one value, got none",
    "run ppo --steps --seed 1": "--steps: expected one value, got none",
    "run ppo --steps 1000 2000": "--steps: expected one value, got 2",
    # Values.
    "run ppo --steps 100": (
        "steps: a budget of 100 holds no batch of batch_steps=2048; raise it or lower batch_steps"
    ),
    "run ppo --steps -5": "steps: expected at least 1, got -5",
    "run ppo --num-envs -1": "num_envs: expected at least 1, got -1",
    "run ppo --num-envs 3": "batch_steps: expected a multiple of num_envs=3, got 2048",
    "run ppo --minibatches 0": "minibatches: expected at least 1, got 0",
    "run ppo --threads 0": "threads: expected at least 1, got 0",
    "run ppo --checkpoint-seconds -1": "checkpoint_seconds: expected at least 0, got -1",
    # Environments.
    "run ppo --env Hoper-v5": "env: there is no environment 'Hoper-v5'; did you mean 'Hopper-v5'?",
    "run ppo --env qqqqqqq": "env: there is no environment 'qqqqqqq'",
    "run ppo --env no_such_package:Thing-v0": (
        "env: 'no_such_package:Thing-v0' cannot be made: No module named 'no_such_package'. Environment "
        "registration via importing a module failed. Check whether 'no_such_package' contains env "
        "registration and can be imported."
    ),
    # Folders.
    "run ppo --out FINISHED": (
        "out: FINISHED already holds a run; go on with it by --resume FINISHED, or name another folder"
    ),
    "run ppo --out a_file": "out: cannot make the folder a_file: File exists; name another one",
    "run ppo --out a_file/run": "out: cannot make the folder a_file/run: Not a directory; name another one",
    # Resuming.
    "run --resume": "--resume: expected the folder of a run, got none",
    "run --resume=nowhere": "resume: nowhere holds no run (no config.yaml); name the folder given as --out",
    "run props --resume FINISHED": "recipe: FINISHED holds a run of 'ppo', got 'props'; leave it out",
    "run --resume FINISHED --steps 512": "steps: the run in FINISHED has 256, got 512; KEEPS",
    "run --resume FINISHED --num-envs -3": "num_envs: the run in FINISHED has 2, got -3; KEEPS",
    "run --resume FINISHED --hidden 8 8": "hidden: the run in FINISHED has 8, got 8 8; KEEPS",
    "run --resume FINISHED --compiled": "compiled: the run in FINISHED has False, got True; KEEPS",
    "run --resume FINISHED --threads 2": "threads: the run in FINISHED has 1, got 2; KEEPS",
    "run --resume FINISHED --out other": "out: the run in FINISHED has FINISHED, got other; KEEPS",
    "run --resume FINISHED --steps many": "--steps: expected a whole number, got 'many'",
    # Comparisons.
    "compare props": "recipes: name at least two different ones right after `peira compare`, got 1",
    "compare props props": "recipes: 'props' comes twice; tell them apart as NAME=props",
    "compare a=props a=ppo": "recipes: 'a' comes twice; tell them apart as NAME=ppo",
    "compare a/b=props ppo": "recipes: expected NAME=RECIPE with a name of letters, digits, - and _, got 'a/b=props'",
    "compare a=props b=props --c.retained 2": "--c.retained: there is no such field; did you mean '--retained'?",
    "compare props prop": "recipe: there is no 'prop'; did you mean 'props'?",
    "compare props ppo --seeds 0": "seeds: expected at least 1, got 0",
    "compare props ppo --env Hoper-v5": "env: there is no environment 'Hoper-v5'; did you mean 'Hopper-v5'?",
    "compare props ppo --steps 10": (
        "steps: a budget of 10 holds no batch of batch_steps=2048; raise it or lower batch_steps"
    ),
    "compare props ppo --seed 3": "--seed: FAIR",
    "compare props ppo --ppo.steps 3000": "--ppo.steps: FAIR",
    "compare props ppo --xyzzy 1": "--xyzzy: there is no such field; --help lists them",
    "compare props ppo --ppo.retain 1": "--ppo.retain: there is no such field; --help lists them",
    "compare props ppo --props.retained two": "--props.retained: expected a whole number, got 'two'",
    "compare td3bc hnpg": (
        "recipes: td3bc learns from a log alone, within a budget of updates, hnpg takes real steps; compare recipes of "
        "one kind"
    ),
    "compare td3bc iql --steps 10": "--steps: td3bc, iql learn from a log alone; give the budget as --updates",
    "compare td3bc iql --iql.updates 10": (
        "--iql.updates: recipes are compared on the same environment, budget and seeds; use --env, --updates, --seeds "
        "and --first-seed"
    ),
    # Stores.
    "store": "store: name an action; there are show, stats, import, export, verify, compact, make-log",
    "store shaw": "store: there is no 'shaw'; did you mean 'show'?",
    "store show": "store show: expected PATH, got 0 path(s)",
    "run ppo --learning-rate -0.1": "learning_rate: expected at least 0, got -0.1",
    "run ppo --discount 1.5": "discount: expected 0 to 1, got 1.5",
    "run ppo --hidden 0": "hidden: expected layers of at least 1, got 0",
    "run props --retained 0": "retained: expected at least 1, got 0",
    "store export only_one": "store export: expected PATH FILE, got 1 path(s)",
    "store show nowhere": "store: there is none in nowhere; name the folder that holds experience.lance",
    "store compact a_file": "store: there is none in a_file; name the folder that holds experience.lance",
    "store show FINISHED --limit -1": "--limit: expected at least 0, got -1",
    "store stats FINISHED --limit 1": "--limit: there is no such field; there are none",
    "store export FINISHED it.xyz": (
        "format: cannot tell from the name 'it.xyz'; say one of parquet, jsonl, minari, minari-arrow"
    ),
    "recipes --jsn": "--jsn: there is no such field; did you mean '--json'?",
}
SAID_OFTEN = {
    "KEEPS": "a resumed run keeps its settings, so leave it out or start anew with another --out",
    "FAIR": (
        "recipes are compared on the same environment, budget and seeds; use --env, --steps, --seeds and "
        "--first-seed"
    ),
}


@pytest.mark.parametrize("words", LINES)
def test_one_line_says_what_is_wrong(commands, finished, words):
    line = LINES[words]
    for short, long in {**SAID_OFTEN, "FINISHED": str(finished)}.items():
        line = line.replace(short, long)
    # Where the fault were not seen this would be a run that needs no compiler.
    words = words.replace("FINISHED", str(finished)).split()
    before = sorted(commands.folder.rglob("*.*"))
    ended = commands.run(*words, *(["--no-compiled"] if words[-2:-1] == ["--out"] else []))
    assert (ended.stderr, ended.stdout, ended.status) == (f"peira: {line}\n", "", 2)
    left = set(commands.folder.rglob("*.*")) - set(before)
    assert {path.suffix for path in left} <= {".stdout", ".stderr"}, "it left something behind"


def hide(*modules: str) -> str:
    """Python after which these modules cannot be imported, as where they are not installed."""
    return f"""
import sys
for name in [*sys.modules]:
    if name.split(".")[0] in {modules!r}:
        del sys.modules[name]
sys.modules.update(dict.fromkeys({modules!r}))
"""


@pytest.mark.parametrize(
    ("env", "hidden", "extra"),
    [
        ("LunarLander-v3", ["Box2D"], "gymnasium[box2d]"),
        ("Hopper-v5", ["envpool", "mujoco"], "peira[control]"),
        ("HumanoidStandup-v5", ["envpool", "mujoco"], "peira[control]"),
    ],
)
def test_an_environment_that_lacks_an_extra_says_which(commands, env, hidden, extra):
    ended = commands.run("run", "ppo", "--env", env, "--no-compiled", first=hide(*hidden))
    line = f"peira: env: {env} needs what is not installed here: pip install '{extra}'\n"
    assert (ended.stderr, ended.status) == (line, 2)


def test_without_a_compiler_the_setting_to_change_is_named(commands):
    ended = commands.run("run", "ppo", "--env", "CartPole-v1", environment={"PATH": ""})
    line = (
        "peira: compiled: there is no C++ compiler (g++ or clang++) here; install one or add --no-compiled\n"
    )
    assert (ended.stderr, ended.status) == (line, 2)


def test_a_folder_with_another_config_holds_no_run(commands, tmp_path):
    (tmp_path / "config.yaml").write_text("learning_rate: 1\n")
    ended = commands.run("run", "--resume", tmp_path)
    line = (
        f"peira: resume: {tmp_path}/config.yaml was not written by `peira run`; "
        "name the folder given as --out\n"
    )
    assert (ended.stderr, ended.status) == (line, 2)


def test_a_run_of_another_version_says_which_settings_differ(commands, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("epochs:", "passes:"))
    ended = commands.run("run", "--resume", tmp_path / "run")
    line = "peira: resume: the run was made by another version of Peira: epochs, passes differ\n"
    assert (ended.stderr, ended.status) == (line, 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reward 300 nan", "a reward that is not finite at step 299 of copy 0: [nan]"),
        ("observation 300 nan", "an observation that is not finite at step 299 of copy 0: ["),
        ("reward 300 inf", "a reward that is not finite at step 299 of copy 0: [inf]"),
    ],
)
def test_a_broken_environment_stops_the_run_which_can_go_on_once_it_is_healed(
    commands, tmp_path, fault, said
):
    settings = ["--env", "broken:Broken-v0", "--steps", "1024", "--batch-steps", "128", *TINY]
    settings += ["--checkpoint-seconds", "0", "--evaluations", "1"]
    reference, folder = commands.folder / "healthy", tmp_path / "run"
    if not reference.exists():
        assert commands.run("run", "ppo", *settings, "--out", reference).status == 0
    broken = commands.folder / "fault"
    broken.write_text(fault)
    try:
        ended = commands.run("run", "ppo", *settings, "--out", folder)
        again = commands.run("run", "--resume", folder)
    finally:
        broken.unlink()
    said = f"peira: environment broken:Broken-v0 returned {said}"
    go_on = f"; nothing was learned from it\ngo on with: peira run --resume {folder}\n"
    assert ended.status == 1
    assert ended.stderr.startswith(said)
    assert ended.stderr.endswith(go_on)
    assert ended.stderr.count("\n") == 2
    # As long as the environment is broken the run stops at the same place.
    assert (again.status, again.stderr) == (1, ended.stderr)
    assert [row["real_steps"] for row in metrics(folder)] == [128, 256, 384, 512]

    ended = commands.run("run", "--resume", folder)
    assert ended.status == 0, ended.stderr
    assert metrics(folder) == metrics(reference)
    assert summary(folder)["policy_hash"] == summary(reference)["policy_hash"]


@pytest.mark.parametrize(
    ("words", "mentioned"),
    [
        ("--help", ["peira run props --env", "peira compare", "peira store", "--resume"]),
        ("help", ["usage: peira COMMAND"]),
        ("recipes --help", ["usage: peira recipes [--json]"]),
        ("run --help", ["peira run RECIPE", "--resume DIR", "examples:", RECIPES]),
        ("run props --help", ["--env", "--steps", "--seed", "--out", "--behaviour-kl-stop", "example:"]),
        ("run ppo --env CartPole-v1 -h", ["The defaults are those for CartPole-v1", "--resume"]),
        ("compare --help", ["--RECIPE.FIELD", "--seeds", "--jobs", "example: peira compare"]),
        ("compare props ppo --steps 5 --help", ["--first-seed"]),
        ("store --help", ["peira store show PATH", "export", "verify", "examples:"]),
        ("store show --help", ["--limit"]),
    ],
)
def test_help_is_useful_wherever_it_is_asked_for(commands, words, mentioned):
    ended = commands.run(*words.split())
    assert (ended.status, ended.stderr) == (0, "")
    for part in mentioned:
        assert part in ended.stdout


def test_no_arguments_are_answered_with_the_help_and_status_2(commands):
    ended, asked = commands.run(), commands.run("--help")
    assert (ended.stdout, ended.status) == (asked.stdout, 2)


def test_bad_input_with_json_leaves_stdout_empty(commands):
    ended = commands.run("run", "ppo", "--json", "--steps", "many")
    assert (ended.status, ended.stdout) == (2, "")
    assert json.loads(commands.run("recipes", "--json").stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ppo", "--env", "texthouse"],
            "peira: env: 'texthouse' is a text world, which 'ppo' does not act in; sft, grpo, arpo do",
        ),
        (
            ["grpo", "--env", "texthuose"],
            "peira: env: there is no text world 'texthuose'; did you mean 'texthouse'?",
        ),
        (
            ["grpo", "--groups", "2", "--minibatches", "3"],
            "peira: minibatches: expected at most groups=2, got 3; groups stay whole",
        ),
        (["arpo", "--capacity", "0"], "peira: capacity: expected at least 1, got 0"),
        (["arpo", "--mode", "exact"], "peira: --mode: expected recompute or behaviour, got 'exact'"),
        (
            ["sft", "--model", "tiny:9"],
            "peira: model: expected tiny: or tiny:WIDTHxLAYERS, such as tiny:96x3, got 'tiny:9'",
        ),
        (
            ["sft", "--model", "here"],
            "peira: model: here holds no config.json; name the folder of a transformers model",
        ),
    ],
)
def test_text_recipes(commands, arguments, message):
    (commands.folder / "here").mkdir(exist_ok=True)
    ended = commands.run("run", *arguments, "--out", commands.folder / "-".join(arguments))
    assert ended.status == 2
    assert ended.stderr.splitlines()[0] == message
