"""The command line: `peira recipes | run | compare | evaluate | store | serve`.

Exit status: 0 done, 2 bad usage or bad input (one line says which field, what came, what to do), 130 after
Ctrl-C with a checkpoint written, 1 anything else. With `--json` the result is one JSON object on stdout; all
else goes to stderr.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import re
import shlex
import sys
import time
import types
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table

from peira import recipes

COMMANDS = ("recipes", "run", "compare", "evaluate", "store", "serve")
HELP_FLAGS = ("-h", "--help")
HELP = """\
usage: peira COMMAND …

Learn policies from experience of any origin.

  peira recipes                          list the recipes
  peira run RECIPE --env ID --steps N    train; `peira run RECIPE --help` lists every setting
  peira run --resume DIR                 go on with a run that was stopped
  peira compare RECIPE RECIPE …          several recipes on equal budgets of real steps or updates
  peira evaluate LOG --candidates …      what policies that did not run are worth, from a log of one that did
  peira store ACTION PATH                show, stats, verify, compact, import or export stored experience; make a log
  peira serve DIR                        make decisions over HTTP, and log them so that policies can learn from them

examples:
  peira run props --env Hopper-v5 --steps 200000 --seed 0 --out runs/a
  peira compare props ppo --env Hopper-v5 --steps 100000 --seeds 3 --out runs/hopper
  peira evaluate log.parquet --candidates a.parquet b.parquet --gamma 0.99 --out runs/evaluation
  peira store stats runs/a/experience.lance
  peira serve runs/service --demo

Results are for people; with --json they are one JSON object on stdout, and all else goes to stderr.
Exit status: 0 done, 2 bad usage or bad input, 130 after Ctrl-C with a checkpoint written, 1 anything else.
"""
RUN_HELP = f"""\
usage: peira run RECIPE [--SETTING VALUE …] [--out DIR] [--json]
       peira run --resume DIR [--json]

Train a policy by a recipe: {", ".join(recipes.RECIPES)}.
The run's folder holds its settings, metrics, experience, checkpoints and policy; a run that was stopped or
killed goes on from its newest checkpoint as if nothing had happened.
`peira run RECIPE --help` lists every setting.

examples:
  peira run props --env Hopper-v5 --steps 200000 --seed 0 --out runs/a
  peira run ppo --env CartPole-v1 --steps 50000 --json
  peira run --resume runs/a
"""
STORE_HELP = """\
usage: peira store ACTION PATH [FILE] [--json]

Look after stored experience: a run keeps its own in DIR/experience.lance.

  peira store show PATH [--limit N]               columns, versions and the newest episodes
  peira store stats PATH                          counts by source, policy version and task; returns
  peira store verify PATH                         check every row; exit status 1 if a problem is found
  peira store compact PATH                        merge small files, drop old versions
  peira store export PATH FILE [--format NAME]    write the episodes to a file or folder
  peira store import PATH FILE [--format NAME]    add the episodes of a file or folder
  peira store make-log PATH --env ID --policy P   let a policy act and keep what it did (--help lists the settings)

examples:
  peira store show runs/a/experience.lance --limit 3
  peira store export runs/a/experience.lance hopper.parquet
"""
STORE_ACTIONS = {
    "show": {"limit": int},
    "stats": {},
    "import": {"format": str},
    "export": {"format": str},
    "verify": {},
    "compact": {},
    "make-log": {},
}
"""What can be done with a store, and the settings of each."""

log = Console(stderr=True)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its status."""
    sys.exit(command(list(sys.argv[1:] if arguments is None else arguments)))


def command(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    try:
        if not arguments or arguments[0] in (*HELP_FLAGS, "help"):
            print(HELP, end="")
            return 0 if arguments else 2
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(version("peira"))
            return 0
        name, rest = arguments[0], arguments[1:]
        if name not in COMMANDS:
            raise ValueError(f"command: there is no {name!r}; {_nearest(name, COMMANDS)}")
        globals()[f"{name}_command"](rest)
        return 0
    except ValueError as fault:
        return _say(fault, 2)
    except KeyboardInterrupt as fault:
        return _say(fault, 130)
    except (RuntimeError, OSError) as fault:
        return _say(fault, 1)


def _say(fault: BaseException, status: int) -> int:
    """Print what happened in one line, and what to do next where that is known."""
    text = "interrupted" if isinstance(fault, KeyboardInterrupt) else str(fault)
    for line in (f"peira: {text}", *getattr(fault, "__notes__", ())):
        log.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    return status


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Settings of `peira run` itself, beside those of the recipe."""

    out: Path | None = None
    """Folder of the run; by default runs/RECIPE-ENV-seedN-DATE."""
    resume: Path | None = None
    """Go on with the run in this folder, from its newest checkpoint."""
    json: bool = False
    """Print the summary as one JSON object."""
    threads: int = 1
    """Threads of tensor arithmetic; more than one slows small networks down."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints; 0 for one after every iteration."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds: expected at least 0, got {self.checkpoint_seconds:g}")


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Run several recipes on the same environment, seeds and budget, and compare the results.

    The budget is one of real steps (--steps), or of updates (--updates) where all recipes learn from a log alone.

    Any setting of a recipe may follow: --FIELD for every recipe that has it, --RECIPE.FIELD for one. NAME=RECIPE
    names an arm, so that one recipe can be compared with itself under other settings (--NAME.FIELD). Finished
    runs in --out are reused and stopped ones resumed: the same command goes on, and more --seeds add to it.

    example: peira compare props ppo --env Hopper-v5 --steps 100000 --seeds 3 --props.retained 3
    """

    env: str = "Hopper-v5"
    """Environment id."""
    steps: int = 100_000
    """Budget of real steps of every run."""
    updates: int = 50_000
    """Budget of updates of every run, where the recipes learn from a log alone."""
    seeds: int = 3
    """Seeds of every recipe."""
    out: Path | None = None
    """Folder of the comparison; an existing one is continued. By default runs/compare-ENV-DATE."""
    jobs: int = 2
    """Runs at a time."""
    first_seed: int = 0
    """The first seed; the others follow."""
    json: bool = False
    """Print the result as one JSON object."""


def recipes_command(arguments: list[str]) -> None:
    if _asks_for_help(arguments):
        print("usage: peira recipes [--json]\n\nList the recipes that `peira run` and `peira compare` know.")
        return
    if _read(arguments, {"json": bool}).get("json"):
        print(json.dumps([dataclasses.asdict(recipe) for recipe in recipes.RECIPES.values()]))
        return
    listing = Table("recipe", "what it does", "source", box=None, pad_edge=False)
    for recipe in recipes.RECIPES.values():
        listing.add_row(recipe.name, recipe.summary, recipe.source)
    Console().print(listing)


def run_command(arguments: list[str]) -> None:
    names, rest = _leading(arguments)
    if len(names) > 1:
        raise ValueError(f"recipe: expected one, got also {names[1]!r}; `peira compare` runs several")
    if _asks_for_help(rest):
        _help_for_run(names, rest)
        return
    resumed = [values for flag, values in _flags(rest) if flag == "--resume"]
    if resumed:
        if len(resumed[0]) != 1:
            raise ValueError(f"--resume: expected the folder of a run, got {len(resumed[0]) or 'none'}")
        summary, options = _resume(names, Path(resumed[0][0]), rest)
    elif not names:
        raise ValueError(f"recipe: name one right after `peira run`; there are {', '.join(recipes.RECIPES)}")
    else:
        summary, options = _start(recipes.find(names[0]), rest)
    if options.json:
        print(json.dumps(summary))
        return
    interval = summary["score_interval"]
    updates = f"{summary['updates']:,} updates, " if "updates" in summary else ""
    kept = [name for name in ("policy/", "experience.lance") if (Path(summary["out"]) / name).exists()]
    log.print(
        f"score {summary['score']:.4g}{' [{:.4g}, {:.4g}]'.format(*interval) if interval else ''} over "
        f"{summary['score_episodes']} fresh episodes, {updates}{summary['ledger']['real_steps']:,} real steps, "
        f"{summary['ledger']['wall_seconds']:.0f} s\n"
        f"{summary['out']}: {', '.join(['summary.json', 'metrics.jsonl', 'curve.png', *kept])}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for line in summary.get("remarks", []):
        log.print(line, markup=False, highlight=False, soft_wrap=True)


def _help_for_run(names: list[str], arguments: list[str]) -> None:
    if not names:
        print(RUN_HELP, end="")
        return
    recipe = recipes.find(names[0])
    given = dict(_flags([word for word in arguments if word not in HELP_FLAGS]))
    env = " ".join(given.get("--env", [recipe.config.env]))
    both = dataclasses.make_dataclass(
        "Settings",
        [("config", Annotated[recipe.config, _flat()]), ("options", Annotated[RunOptions, _flat()])],
    )
    budget = "--steps 200000"
    if not hasattr(recipe.config, "steps"):
        budget = "--log PATH --updates 100000"
    both.__doc__ = (
        f"{recipe.name}: {recipe.summary} ({recipe.source}). The defaults are those for {env}.\n\n"
        f"example: peira run {recipe.name} --env {env} {budget} --seed 0 --out runs/a"
    )
    _print_help(both(recipe.preset(env), RunOptions()), f"peira run {recipe.name}")


def _start(recipe: recipes.Recipe, arguments: list[str]) -> tuple[dict, RunOptions]:
    given = _read(arguments, {**_kinds(recipe.config), **_kinds(RunOptions)})
    options = RunOptions(**_of(RunOptions, given))
    config = _config(recipe, given)
    _check_compiler(config)
    recipe.check(config)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    slug = config.env.replace("/", "-")
    folder = options.out or Path("runs") / f"{recipe.name}-{slug}-seed{config.seed}-{stamp}"

    from peira.runs.run import create_folder

    _check_environment(recipe, config.env)
    create_folder(folder, recipe.name, config, threads=options.threads)
    return _train(recipe, config, folder, options, resumed=False), options


def _resume(names: list[str], folder: Path, arguments: list[str]) -> tuple[dict, RunOptions]:
    from peira.runs.run import config_from, read_config

    stored_name, settings, threads = read_config(folder)
    if names and names[0] != stored_name:
        raise ValueError(f"recipe: {folder} holds a run of {stored_name!r}, got {names[0]!r}; leave it out")
    recipe = recipes.find(stored_name)
    given = _read(arguments, {**_kinds(recipe.config), **_kinds(RunOptions)})
    config = config_from(recipe.config, settings)
    stored = {**{name: getattr(config, name) for name in settings}, "threads": threads, "out": folder}
    # Before a Config is made of them: a change is refused as such even where the new value is not valid.
    for field, now in given.items():
        if stored.get(field, now) != now:
            raise ValueError(
                f"{field}: the run in {folder} has {_text(stored[field])}, got {_text(now)}; "
                "a resumed run keeps its settings, so leave it out or start anew with another --out"
            )
    options = RunOptions(**{**_of(RunOptions, given), "threads": threads})
    summary = folder / "summary.json"
    if summary.exists():
        log.print(f"{folder} is finished; nothing to do", markup=False, highlight=False, soft_wrap=True)
        return json.loads(summary.read_text()), options
    _check_compiler(config)
    _check_environment(recipe, config.env)
    return _train(recipe, config, folder, options, resumed=True), options


def _train(
    recipe: recipes.Recipe, config: Any, folder: Path, options: RunOptions, *, resumed: bool
) -> dict[str, Any]:
    import torch

    from peira.runs.run import Run

    torch.set_num_threads(options.threads)
    run = Run(
        folder,
        recipe.name,
        config,
        console=log,
        resumed=resumed,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    try:
        return run.finish(recipe.run(config, run))
    except BaseException as fault:
        fault.add_note(f"go on with: peira run --resume {shlex.quote(str(folder))}")
        raise
    finally:
        run.close()


def compare_command(arguments: list[str]) -> None:
    from peira.runs import compare

    if _asks_for_help(arguments):
        _print_help(CompareOptions(), "peira compare RECIPE RECIPE …")
        return
    names, rest = _leading(arguments)
    recipe_of = _arms(names)
    unit = _unit(recipe_of)
    own, arms = _sort_settings(rest, recipe_of, unit)
    options = CompareOptions(**_read(own, _kinds(CompareOptions)))
    budget = getattr(options, unit)
    for name, recipe in recipe_of.items():
        given = {"env": options.env, unit: budget, **_read(arms[name], _kinds(recipe.config))}
        _check_compiler(_config(recipe, given))
    for recipe in recipe_of.values():
        _check_environment(recipe, options.env)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("runs") / f"compare-{options.env.replace('/', '-')}-{stamp}"
    try:
        result = compare.compare(
            arms,
            env=options.env,
            steps=budget,
            unit=unit,
            seeds=options.seeds,
            out=out,
            jobs=options.jobs,
            first_seed=options.first_seed,
            recipe_of={name: recipe.name for name, recipe in recipe_of.items()},
            console=log,
        )
    except KeyboardInterrupt as fault:
        fault.add_note(f"go on with the same command and --out {shlex.quote(str(out))}")
        raise
    if options.json:
        print(compare.to_json(result), end="")
        return
    Console().print(compare.table(result))
    log.print(
        f"{out}: compare.json, compare.md, compare.png, runs/", markup=False, highlight=False, soft_wrap=True
    )


def _arms(words: list[str]) -> dict[str, recipes.Recipe]:
    """RECIPE, or NAME=RECIPE for the same recipe with other settings, as typed after `peira compare`."""
    found: dict[str, recipes.Recipe] = {}
    for word in words:
        name, named, recipe = word.partition("=")
        if named and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(
                f"recipes: expected NAME=RECIPE with a name of letters, digits, - and _, got {word!r}"
            )
        if name in found:
            raise ValueError(f"recipes: {name!r} comes twice; tell them apart as NAME={recipe or name}")
        found[name] = recipes.find(recipe if named else name)
    if len(found) < 2:
        raise ValueError(
            f"recipes: name at least two different ones right after `peira compare`, got {len(found)}"
        )
    return found


def _unit(recipe_of: dict[str, recipes.Recipe]) -> Literal["steps", "updates"]:
    """The setting that holds the budget of these recipes; ValueError where they differ."""
    acting = {name: "steps" in _kinds(recipe.config) for name, recipe in recipe_of.items()}
    if len(set(acting.values())) > 1:
        first, second = (next(name for name in acting if acting[name] is acts) for acts in (False, True))
        raise ValueError(
            f"recipes: {first} learns from a log alone, within a budget of updates, {second} takes real steps; compare "
            "recipes of one kind"
        )
    return "steps" if all(acting.values()) else "updates"


def _sort_settings(
    arguments: list[str], recipe_of: dict[str, recipes.Recipe], unit: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Arguments of the comparison itself, and those of each recipe's runs."""
    kinds = {name: _kinds(recipe.config) for name, recipe in recipe_of.items()}
    # Elsewhere than in a budget, updates are a setting of recipes.
    of_comparison = set(_kinds(CompareOptions)) - ({"updates"} if unit == "steps" else set())
    own: list[str] = []
    shared: list[tuple[str, list[str]]] = []
    of_arm: dict[str, list[str]] = {name: [] for name in recipe_of}
    for flag, values in _flags(arguments):
        arm, _, field = flag.removeprefix("--").partition(".")
        if _field_name(field or arm) in ("seed", *(["env", unit] if field else [])):
            raise ValueError(
                f"{flag}: recipes are compared on the same environment, budget and seeds; "
                f"use --env, --{unit}, --seeds and --first-seed"
            )
        if _field_name(flag) == "steps" and unit == "updates":
            raise ValueError(
                f"--steps: {', '.join(recipe_of)} learn from a log alone; give the budget as --updates"
            )
        if field and arm in of_arm:
            of_arm[arm] += [f"--{field}", *values]
        elif _field_name(flag) in of_comparison:
            own += [flag, *values]
        else:
            shared.append((flag, values))
    # Checked as a whole first, so that a setting which no recipe has is not silently left out.
    everywhere = {field: kind for of_recipe in kinds.values() for field, kind in of_recipe.items()}
    _read([word for flag, values in shared for word in (flag, *values)], everywhere)
    for arm, fields in kinds.items():
        _read(of_arm[arm], fields, arm=arm)
        fitting = [word for flag, values in shared if _field_name(flag) in fields for word in (flag, *values)]
        of_arm[arm] = [*fitting, *of_arm[arm]]
    return own, of_arm


def evaluate_command(arguments: list[str]) -> None:
    from peira.evaluation.off_policy import command as evaluation

    if _asks_for_help(arguments):
        _print_help(evaluation.Options(), "peira evaluate LOG --candidates FILE …")
        return
    paths, flags = _leading(arguments)
    if len(paths) != 1:
        raise ValueError(
            f"evaluate: expected one log right after `peira evaluate`, got {len(paths) or 'none'}"
        )
    # Ranges such as 1..5 are no whole numbers yet.
    given = _read(flags, {**_kinds(evaluation.Options), "k": tuple[str, ...]})
    if "k" in given:
        given["k"] = evaluation.sizes(given["k"])
    options = evaluation.Options(**given)

    import torch

    torch.set_num_threads(options.threads)
    report, out = evaluation.run(paths[0], options, shlex.join(["peira", "evaluate", *arguments]), log)
    if options.json:
        print(evaluation.as_json(report))
        return
    Console().print(evaluation.table(report))
    for sentence in evaluation.sentences(report):
        Console().print(sentence, markup=False, highlight=False)
    log.print(
        f"{out}: report.html, report.json, report.md, plots/", markup=False, highlight=False, soft_wrap=True
    )


def store_command(arguments: list[str]) -> None:
    from peira.experience import commands
    from peira.experience.store import Store

    if arguments[:1] == ["make-log"]:
        _make_log(arguments[1:])
        return
    if _asks_for_help(arguments):
        print(STORE_HELP, end="")
        return
    if not arguments:
        raise ValueError(f"store: name an action; there are {', '.join(STORE_ACTIONS)}")
    action, as_json = arguments[0], "--json" in arguments
    if action not in STORE_ACTIONS:
        raise ValueError(f"store: there is no {action!r}; {_nearest(action, STORE_ACTIONS)}")
    paths, flags = _leading([word for word in arguments[1:] if word != "--json"])
    given = _read(flags, STORE_ACTIONS[action])
    wanted = ("PATH", "FILE") if action in ("import", "export") else ("PATH",)
    if len(paths) != len(wanted):
        raise ValueError(f"store {action}: expected {' '.join(wanted)}, got {len(paths)} path(s)")
    if given.get("limit", 0) < 0:
        raise ValueError(f"--limit: expected at least 0, got {given['limit']}")
    # Nothing is made by opening, and a store is made with its first rows.
    if action != "import" and len(Store.open(paths[0], mode="a")) == 0:
        raise ValueError(f"store: there is none in {paths[0]}; name the folder that holds experience.lance")
    act = commands.import_ if action == "import" else getattr(commands, action)
    try:
        result = act(*paths, **given, console=Console(quiet=as_json))
    except ValueError as fault:
        if action == "verify":  # It was asked nothing that could be wrong: a file of the store is.
            raise RuntimeError(str(fault)) from fault
        raise
    if as_json:
        print(json.dumps(result, default=str))
    if action == "verify" and result["problems"]:
        raise RuntimeError(f"{paths[0]}: {len(result['problems'])} problem(s) found")


def _make_log(arguments: list[str]) -> None:
    from peira.recipes import make_log

    if _asks_for_help(arguments):
        _print_help(make_log.Options(), "peira store make-log PATH")
        return
    as_json = "--json" in arguments
    paths, flags = _leading([word for word in arguments if word != "--json"])
    if len(paths) != 1:
        raise ValueError(f"store make-log: expected PATH, got {len(paths)} path(s)")
    options = make_log.Options(**_read(flags, _kinds(make_log.Options)))
    _check_compiler(options)

    import torch

    torch.set_num_threads(1)
    result = make_log.make_log(
        paths[0], options, say=lambda line: log.print(line, markup=False, highlight=False, soft_wrap=True)
    )
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        log.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)


# What must be known before anything is made or started ------------------------------------------------------


def _config(recipe: recipes.Recipe, given: dict[str, Any]) -> Any:
    """The recipe's Config: the preset for the environment, and over it what was given."""
    preset = recipe.preset(given.get("env", recipe.config.env))
    return dataclasses.replace(preset, **_of(recipe.config, given))


def _check_compiler(config: Any) -> None:
    from peira.policies.compiled import can_compile

    if getattr(config, "compiled", False) and not can_compile():
        raise ValueError(
            "compiled: there is no C++ compiler (g++ or clang++) here; install one or add --no-compiled"
        )


def _check_environment(recipe: recipes.Recipe, id: str) -> None:
    """ValueError for an environment that cannot be made, or is not of the recipe's kind."""
    from peira.environments.control import make_control
    from peira.environments.text import is_text, make_text

    if recipe.world == "decisions":
        from peira.sources.decision_rollout import make_world

        make_world(id, 0)
        return
    if recipe.world == "hybrid":
        from peira.environments.digits_lock import make_lock

        if make_lock(id, 0, "on_fall") is not None:
            return
    if is_text(id) and recipe.world != "text":
        texts = ", ".join(entry.name for entry in recipes.RECIPES.values() if entry.world == "text")
        raise ValueError(f"env: {id!r} is a text world, which {recipe.name!r} does not act in; {texts} do")
    try:
        if recipe.world == "text":
            make_text(id, 1).close()
        else:
            make_control(id, 1, 0).close()
    except ModuleNotFoundError as fault:
        raise ValueError(f"env: {id!r} cannot be made: {fault}") from fault


# Reading arguments: one line for what is wrong. Tyro lays the help out --------------------------------------


def _asks_for_help(arguments: list[str]) -> bool:
    return any(word in HELP_FLAGS for word in arguments)


def _print_help(defaults: Any, program: str) -> None:
    import tyro

    try:
        tyro.cli(
            type(defaults),
            prog=program,
            args=["--help"],
            default=defaults,
            description=inspect.cleandoc(type(defaults).__doc__),
        )
    except SystemExit:
        return


def _flat() -> Any:
    import tyro

    return tyro.conf.arg(name="")


def serve_command(arguments: list[str]) -> None:
    from peira.serving.options import Options

    if _asks_for_help(arguments):
        _print_help(Options(), "peira serve DIR")
        return
    folders, flags = _leading(arguments)
    if len(folders) != 1:
        raise ValueError(
            f"serve: expected one folder right after `peira serve`, got {len(folders) or 'none'}"
        )
    options = Options(**_read(flags, _kinds(Options)))
    try:
        from peira.serving.command import serve
    except ModuleNotFoundError as missing:
        raise ValueError(f"serve: needs {missing.name}: pip install 'peira[serving]'") from missing
    serve(Path(folders[0]), options, log)


def _leading(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Words before the first flag, and what follows."""
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first], arguments[first:]


def _flags(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the values that follow it."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ValueError(f"{word}: expected a setting such as --env; settings begin with two dashes")
    return found


def _kinds(config: type) -> dict[str, Any]:
    """The type of each field."""
    return typing.get_type_hints(config)


def _of(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the values given that are fields of this dataclass."""
    return {name: value for name, value in given.items() if name in _kinds(kind)}


def _field_name(flag: str) -> str:
    """`--no-anneal` → `anneal`, `--num-envs` → `num_envs`."""
    return flag.removeprefix("--").removeprefix("no-").replace("-", "_")


def _read(arguments: list[str], kinds: dict[str, Any], *, arm: str | None = None) -> dict[str, Any]:
    """The values given, by field; ValueError for a field that there is not or a value of the wrong type."""
    given: dict[str, Any] = {}
    for flag, values in _flags(arguments):
        name = _field_name(flag)
        negated = flag.startswith("--no-")
        flag = f"--{arm}.{flag[2:]}" if arm else flag
        if name not in kinds or (negated and kinds[name] is not bool):
            prefix = f"--{arm}." if arm else "--"
            known = [kind.replace("_", "-") for kind in kinds]
            offer = _nearest(name.replace("_", "-"), known, prefix)
            raise ValueError(f"{flag}: there is no such field; {offer}")
        if kinds[name] is bool and values:
            setting = name.replace("_", "-")
            raise ValueError(
                f"{flag}: expected no value, got {values[0]!r}; write --{setting} or --no-{setting}"
            )
        given[name] = not negated if kinds[name] is bool else _value(flag, kinds[name], values)
    return given


def _value(flag: str, kind: Any, values: list[str]) -> Any:
    """The words after a flag as a value of its field's type."""
    if typing.get_origin(kind) is tuple:
        return tuple(_convert(flag, typing.get_args(kind)[:1], value) for value in values)
    if len(values) != 1:
        raise ValueError(f"{flag}: expected one value, got {len(values) or 'none'}")
    choices = typing.get_origin(kind) in (types.UnionType, typing.Union, Literal)
    return _convert(flag, typing.get_args(kind) if choices else (kind,), values[0])


def _convert(flag: str, kinds: Iterable[Any], word: str) -> Any:
    """A word as the first of these types, or as one of these texts, that it fits."""
    expected = []
    for kind in kinds:
        if kind is types.NoneType or isinstance(kind, str):
            name = "None" if kind is types.NoneType else kind
            if word == name:
                return None if kind is types.NoneType else kind
            expected.append(name)
            continue
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if value == value:  # NaN is a number to Python, and never what was meant here.
            return value
        expected.append({int: "a whole number", float: "a number"}.get(kind, kind.__name__))
    raise ValueError(f"{flag}: expected {' or '.join(expected)}, got {word!r}")


def _text(value: Any) -> str:
    """A setting as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _nearest(word: str, words: Collection[str], prefix: str = "") -> str:
    """What was meant, or else what there is; words are offered with the prefix."""
    if nearest := difflib.get_close_matches(word, words, n=1):
        return f"did you mean {prefix + nearest[0]!r}?"
    if len(words) > 10:
        return "--help lists them"
    return f"there are {', '.join(prefix + known for known in words)}" if words else "there are none"
