"""The command line: `peira recipes | run | compare | store`.

Exit status: 0 done, 2 bad usage or bad input (one line says which field, what came, what to do), 130 after Ctrl-C with
a checkpoint written, 1 anything else. With `--json` the result is one JSON object on stdout; all else goes to stderr.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table

from peira import recipes

COMMANDS = ("recipes", "run", "compare", "store")
HELP = """\
usage: peira COMMAND …

Learn policies from experience of any origin.

  peira recipes                                   list the recipes
  peira run RECIPE --env ID --steps N             train; `peira run RECIPE --help` lists every setting
  peira run --resume DIR                          go on with a run that was stopped
  peira compare RECIPE RECIPE … --env ID --seeds N   several recipes on equal budgets of real steps
  peira store {show,stats,import,export,verify,compact} PATH   look after stored experience

examples:
  peira run props --env Hopper-v5 --steps 200000 --seed 0 --out runs/a
  peira compare props ppo --env Hopper-v5 --steps 100000 --seeds 3 --out runs/hopper
  peira store stats runs/a/experience.lance
"""

log = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    sys.exit(command(list(sys.argv[1:] if arguments is None else arguments)))


def command(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
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
    except KeyboardInterrupt:
        log.print("interrupted", style="yellow")
        return 130
    except (RuntimeError, OSError) as fault:
        return _say(fault, 1)


def _say(fault: Exception, status: int) -> int:
    log.print(f"peira: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
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
    """Seconds between checkpoints."""


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Settings of `peira compare`. Any setting of a recipe may follow: `--FIELD` for all, `--ARM.FIELD` for one arm."""

    env: str = "Hopper-v5"
    """Environment id."""
    steps: int = 100_000
    """Budget of real steps of every run."""
    seeds: int = 3
    """Seeds of every recipe."""
    out: Path | None = None
    """Folder of the comparison; an existing one is continued."""
    jobs: int = 2
    """Runs at a time."""
    first_seed: int = 0
    """The first seed; the others follow."""
    json: bool = False
    """Print the result as one JSON object."""


def recipes_command(arguments: list[str]) -> None:
    _check(arguments, {"json": bool})
    if "--json" in arguments:
        print(json.dumps([dataclasses.asdict(recipe) for recipe in recipes.RECIPES.values()]))
        return
    listing = Table("recipe", "what it does", "source", box=None, pad_edge=False)
    for recipe in recipes.RECIPES.values():
        listing.add_row(recipe.name, recipe.summary, recipe.source)
    Console().print(listing)


def run_command(arguments: list[str]) -> None:
    name, rest = _leading(arguments)
    if "--resume" in rest:
        summary, options = _resumed(name, rest)
    elif not name:
        if rest and rest[0] in ("-h", "--help"):
            print(HELP, end="")
            return
        raise ValueError(f"recipe: none was named; there are {', '.join(recipes.RECIPES)}")
    else:
        summary, options = _started(recipes.find(name[0]), rest, extra=name[1:])
    if options.json:
        print(json.dumps(summary))
        return
    low, high = summary["score_interval"] or (float("nan"), float("nan"))
    log.print(
        f"score {summary['score']:.1f} [{low:.1f}, {high:.1f}] over {summary['score_episodes']} fresh episodes, "
        f"{summary['ledger']['real_steps']:,} real steps, {summary['ledger']['wall_seconds']:.0f} s\n"
        f"{summary['out']}: summary.json, metrics.jsonl, curve.png, policy/, experience.lance",
        highlight=False,
        soft_wrap=True,
    )


def _started(recipe: recipes.Recipe, arguments: list[str], extra: list[str]) -> tuple[dict, RunOptions]:
    if extra:
        raise ValueError(f"recipe: expected one, got also {extra[0]!r}; `peira compare` runs several")
    kinds = {**_kinds(recipe.config), **_kinds(RunOptions)}
    given = _check(arguments, kinds)
    default = recipe.preset(given.get("env", recipe.config.env))
    options, config = _parse(recipe, default, arguments)
    _check_compiler(config)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    slug = config.env.replace("/", "-")
    folder = options.out or Path("runs") / f"{recipe.name}-{slug}-seed{config.seed}-{stamp}"

    from peira.environments.control import make_control
    from peira.runs.run import create_folder

    # An environment that cannot be made is found out before a folder is.
    make_control(config.env, 1, 0).close()
    create_folder(folder, recipe.name, config)
    return _train(recipe, config, folder, options, resumed=False), options


def _resumed(names: list[str], arguments: list[str]) -> tuple[dict, RunOptions]:
    from peira.runs.run import config_from, read_config

    position = arguments.index("--resume") + 1
    if position == len(arguments):
        raise ValueError("resume: expected the folder of a run")
    folder = Path(arguments[position])
    stored_name, stored = read_config(folder)
    if names and names[0] != stored_name:
        raise ValueError(f"recipe: {folder} holds a run of {stored_name!r}, got {names[0]!r}; leave it out")
    recipe = recipes.find(stored_name)
    given = _check(arguments, {**_kinds(recipe.config), **_kinds(RunOptions)})
    config = config_from(recipe.config, stored)
    options, asked = _parse(recipe, config, arguments)
    for field in dataclasses.fields(recipe.config):
        before, now = getattr(config, field.name), getattr(asked, field.name)
        if field.name in given and before != now:
            raise ValueError(
                f"{field.name}: the run in {folder} has {before!r}, got {now!r}; a resumed run keeps its settings, "
                "so leave it out or start anew with another --out"
            )
    summary = folder / "summary.json"
    if summary.exists():
        log.print(f"{folder} is finished; nothing to do", highlight=False)
        return json.loads(summary.read_text()), options
    _check_compiler(config)
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
    except (KeyboardInterrupt, RuntimeError):
        log.print(f"go on with: peira run --resume {folder}", highlight=False, soft_wrap=True)
        raise
    finally:
        run.close()


def _check_compiler(config: Any) -> None:
    from peira.policies.compiled import can_compile

    if config.compiled and not can_compile():
        raise ValueError("compiled: there is no C++ compiler (g++ or clang++) here; install one or add --no-compiled")


def compare_command(arguments: list[str]) -> None:
    from peira.runs import compare

    if arguments and arguments[0] in ("-h", "--help"):
        _tyro(CompareOptions, CompareOptions(), ["--help"], "peira compare RECIPE RECIPE …")
    names, rest = _leading(arguments)
    if len(set(names)) < 2:
        raise ValueError(f"recipes: expected at least two different ones to compare, got {len(set(names))}")
    arms = {name: recipes.find(name) for name in names}
    own, shared = [], []
    per_arm: dict[str, list[str]] = {name: [] for name in arms}
    for flag, values in _flags(rest):
        arm, _, field = flag.removeprefix("--").partition(".")
        if field and arm in arms:
            per_arm[arm] += [f"--{field}", *values]
        elif _field_name(flag) in _kinds(CompareOptions):
            own += [flag, *values]
        else:
            shared += [flag, *values]
    for name, recipe in arms.items():
        _check(per_arm[name], _kinds(recipe.config))
    options = _tyro(CompareOptions, CompareOptions(), _valid(own, CompareOptions), "peira compare")
    extra = {
        name: [*_accepted(shared, arms, recipe), *per_arm[name]] for name, recipe in arms.items()
    }
    for name, recipe in arms.items():
        _check_compiler(_parse(recipe, recipe.preset(options.env), ["--env", options.env, *extra[name]])[1])
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("runs") / f"compare-{options.env.replace('/', '-')}-{stamp}"
    result = compare.compare(
        extra,
        env=options.env,
        steps=options.steps,
        seeds=options.seeds,
        out=out,
        jobs=options.jobs,
        first_seed=options.first_seed,
        console=log,
    )
    if options.json:
        print(compare.to_json(result), end="")
        return
    Console().print(compare.table(result))
    log.print(f"{out}: compare.json, compare.md, compare.png, runs/", highlight=False, soft_wrap=True)


def _accepted(shared: list[str], arms: dict[str, recipes.Recipe], recipe: recipes.Recipe) -> list[str]:
    """Of the settings given for all arms those that this recipe has; each must be one of some arm."""
    everywhere: dict[str, Any] = {}
    for other in arms.values():
        everywhere |= _kinds(other.config)
    _check(shared, everywhere)
    kinds = _kinds(recipe.config)
    return [part for flag, values in _flags(shared) if _field_name(flag) in kinds for part in (flag, *values)]


def store_command(arguments: list[str]) -> None:
    from peira.experience import commands

    actions = ("show", "stats", "import", "export", "verify", "compact")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: peira store {{{','.join(actions)}}} PATH [FILE] [--format NAME] [--limit N] [--json]")
        return
    action, rest = arguments[0], arguments[1:]
    if action not in actions:
        raise ValueError(f"store: there is no {action!r}; {_nearest(action, actions)}")
    names, flags = _leading(rest)
    kinds: dict[str, Any] = {"json": bool}
    if action == "show":
        kinds["limit"] = int
    if action in ("import", "export"):
        kinds["format"] = str
    given = _check(flags, kinds)
    expected = 2 if action in ("import", "export") else 1
    if len(names) != expected:
        wanted = "PATH FILE" if expected == 2 else "PATH"
        raise ValueError(f"store {action}: expected {wanted}, got {len(names)} path(s)")
    console = None if "json" in given else Console()
    if action == "import":
        result = commands.import_(names[0], names[1], given.get("format"), console=console)
    elif action == "export":
        result = commands.export(names[0], names[1], given.get("format"), console=console)
    elif action == "show":
        result = commands.show(names[0], int(given.get("limit", 5)), console=console)
    else:
        result = getattr(commands, action)(names[0], console=console)
    if "json" in given:
        print(json.dumps(result, default=str))
    if action == "verify" and result["problems"]:
        raise RuntimeError(f"{names[0]}: {len(result['problems'])} problem(s) found")


# Reading arguments: one line for what is wrong, tyro for the rest and for the help ---------------------------------


def _leading(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Words before the first flag, and what follows."""
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first], arguments[first:]


def _flags(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the values that follow it."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--") or word == "-h":
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    return found


def _kinds(config: type) -> dict[str, Any]:
    """The type of each field."""
    return typing.get_type_hints(config)


def _field_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _check(arguments: list[str], kinds: dict[str, Any]) -> dict[str, str]:
    """The flags given, by field; ValueError in one line for an unknown field or a value of the wrong type."""
    given: dict[str, str] = {}
    for flag, values in _flags(arguments):
        name = _field_name(flag)
        if flag in ("-h", "--help"):
            continue
        if name.startswith("no_") and kinds.get(name[3:]) is bool:
            given[name[3:]] = "False"
            continue
        if name not in kinds:
            raise ValueError(f"{flag}: there is no such field; {_nearest(flag, [_flag(kind) for kind in kinds])}")
        _check_values(flag, kinds[name], values)
        given[name] = values[0] if values else "True"
    return given


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_values(flag: str, kind: Any, values: list[str]) -> None:
    if kind is bool:
        if values:
            raise ValueError(f"{flag}: expected no value, got {values[0]!r}; write {flag} or --no-{flag[2:]}")
        return
    origin = typing.get_origin(kind)
    if origin is tuple:
        for value in values:
            _check_value(flag, typing.get_args(kind)[:1], value)
        return
    if len(values) != 1:
        raise ValueError(f"{flag}: expected one value, got {len(values)}")
    _check_value(flag, typing.get_args(kind) if origin in (types.UnionType, typing.Union, Literal) else (kind,), values[0])


def _check_value(flag: str, kinds: Sequence[Any], value: str) -> None:
    for kind in kinds:
        if kind is types.NoneType and value == "None":
            return
        if isinstance(kind, str):
            if value == kind:
                return
        elif kind is not types.NoneType:
            try:
                kind(value)
                return
            except ValueError:
                continue
    names = [kind if isinstance(kind, str) else "None" if kind is types.NoneType else _NAMES[kind] for kind in kinds]
    raise ValueError(f"{flag}: expected {' or '.join(names)}, got {value!r}")


_NAMES = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _nearest(word: str, words: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(words)}"


def _parse(recipe: recipes.Recipe, default: Any, arguments: list[str]) -> tuple[RunOptions, Any]:
    """Options of the command and the recipe's Config, from flags over the preset."""
    import tyro

    flat = tyro.conf.arg(name="")
    kinds = [("config", Annotated[recipe.config, flat]), ("options", Annotated[RunOptions, flat])]
    both_kind = dataclasses.make_dataclass("Settings", kinds, frozen=True)
    both_kind.__doc__ = recipe.summary
    both = _tyro(both_kind, both_kind(default, RunOptions()), arguments, f"peira run {recipe.name}")
    return both.options, both.config


def _tyro(kind: type, default: Any, arguments: list[str], program: str) -> Any:
    import tyro

    return tyro.cli(kind, prog=program, args=arguments, default=default, description=kind.__doc__)


def _valid(arguments: list[str], kind: type) -> list[str]:
    _check(arguments, _kinds(kind))
    return arguments
