"""What a person types: the help text, topology files by path, and Hydra's refusals in one line each.

Owns the wording around the command line; leaves values to `config`.

    argv = with_topology_files(["topology=box.yaml", "res=2048"])
"""

from __future__ import annotations

import atexit
import dataclasses
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException

from xdit_bench import data_dir
from xdit_bench.config import Config, LaunchConfig, MeasureConfig, RunConfig
from xdit_bench.errors import ConfigError, TopologyError, did_you_mean
from xdit_bench.topology.specs import load

# what Hydra says of a value, and what it means
SLIPS = (
    (r"could not be converted to Integer", "a whole number"),
    (r"could not be converted to Float", "a number"),
    (r"is not a valid bool", "true or false"),
    (r"Cannot convert 'list' to string", "one text, not a list"),
    (r"is not Optional", "a value, not null"),
    (r"expected one of \[([^\]]*)\]", "one of {0}"),
)
SECTIONS: dict[str, Any] = {"measure": MeasureConfig, "run": RunConfig, "launch": LaunchConfig}
OTHER_WORDS = {  # for what a knob of ours says
    "gpus": "their number is ulysses x ring: ulysses=4 ring=2 are 8",
    "resolution": "a square image is res=2048, another height=720 width=1280",
    "size": "a square image is res=2048, another height=720 width=1280",
}
VERBS = ("report", "compare", "probe", "calibrate", "validate", "recommend")
GRAMMAR = "override_grammar"  # the page that Hydra points to where it can not read a value
YAML = (".yaml", ".yml")
RESERVED = ("auto", "cpu")  # names that do not mean the machine of a file
KNOB = re.compile(r"^(?P<indent>\s*)(?P<dash>- )?(?P<name>\w+): *(?P<value>[^#]*?) *(?:# (?P<note>.*))?$")


def nearest(error: MissingConfigException) -> str:
    """`unknown topology 'a100_nvlnk'; did you mean a100_nvlink? There are …`."""
    group, _, given = str(error.missing_cfg_file or "").rpartition("/")
    options = [option for option in (error.options or []) if option != "auto"]
    hint = did_you_mean(given, options) or "."
    return f"unknown {group or 'config'} {given!r}{hint} There are {', '.join(options)}"


def one_line(error: Exception) -> str:
    """Hydra's message without its trace: what it refuses, then why. The usual slips get the rule and the remedy."""
    text = f"{error}\n{error.__cause__ or ''}"
    typed = re.search(r"Error merging override (\S+?)=(.*)", text)
    for pattern, rule in SLIPS:
        if typed and (found := re.search(pattern, text)):
            return f"{typed[1]} must be {rule.format(*found.groups())}; got {typed[1]}={typed[2].strip()}"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        if unknown[1] == "sweeps":
            return "a shipped sweep is added, not set: +sweeps=<name>"
        return _no_knob(unknown[1])
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'", text):
        given = ambiguous[1]
        name, _, value = given.partition("=")
        if re.search(r",\s", value):  # a sentence, not a list
            return f"{given}: a comma separates the values of a sweep; to mean one text quote it, '{name}=\"{value}\"'"
        return f"{given} holds several values: add -m (--multirun) to sweep over them, or give one"
    if unparsed := re.search(r"Error parsing override '([^']*)'\s*\n?.*missing EQUAL", text):
        return f"a knob is written name=value; got {unparsed[1]!r}"
    if GRAMMAR in text and (misread := re.search(r"override '([^']*)'|input '([^']*)'|Exception: (.*)", text)):
        given = next(filter(None, misread.groups()))
        return (
            f"{given} can not be read: single commas separate the values of a sweep, and a text with quotes, commas or "
            f"brackets in it is quoted whole, 'prompt=\"...\"'"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith(("full_key", "object_type", "reference_type"))]
    return "; ".join(dict.fromkeys(wanted))


def _no_knob(name: str) -> str:
    if name in OTHER_WORDS:
        return f"there is no knob {name!r}; {OTHER_WORDS[name]}"
    top = [field.name for field in dataclasses.fields(Config)]
    inner = {field.name: f"{section}.{field.name}" for section, kind in SECTIONS.items()
             for field in dataclasses.fields(kind)}  # fmt: skip
    last = name.rpartition(".")[2]
    hint = f"; did you mean {inner[last]}?" if last in inner else did_you_mean(name, [*top, *inner.values()])
    return f"there is no knob {name!r}{hint or ';'} python -m xdit_bench --help lists them all"


def check_added(argv: list[str]) -> None:
    """Refuses what `+` or `++` would add and nothing reads: only a sweep and Hydra's own are so. Raises ConfigError."""
    swept = {"-m", "--multirun", "--cfg", "-c", "--info", "-i"} & {word.partition("=")[0] for word in argv}
    for added in filter(None, (re.match(r"(?s)\+\+?([\w.]+)=.*", word) for word in argv)):
        first, _, second = added[1].partition(".")
        inside = SECTIONS.get(first) if second else None
        names = {field.name for field in dataclasses.fields(inside or Config)} | {"sweeps", "hydra"}
        if (second if inside else first) not in names:
            raise ConfigError(_no_knob(added[1]))
        if first == "sweeps" and not swept:
            raise ConfigError(f"{added[0]} is a grid: add -m (--multirun) to sweep over it")


def with_topology_files(argv: list[str]) -> list[str]:
    """`topology=path/to/box.yaml` becomes Hydra's own form: a choice from a config group of its own.

    The group is a folder that holds these files alone; a folder of the person's on Hydra's search path would make
    config groups of whatever lies in it. They are numbered there: by its own name a copy of a shipped file, edited,
    would be the shipped one. Raises TopologyError for a bad file.
    """
    files: list[Path] = []
    rewritten = []

    def choice(given: str) -> str:
        if not given.endswith(YAML):
            if "/" in given:
                raise TopologyError(f"topology={given} is a path, and no file of a topology: those end in .yaml")
            return given
        files.append(Path(given).expanduser())
        return f"file_{len(files)}"

    for argument in argv:
        key, _, value = argument.partition("=")
        if key == "topology":
            argument = f"topology={','.join(choice(given) for given in value.split(','))}"
        rewritten.append(argument)
    if not files:
        return argv
    group = Path(tempfile.mkdtemp(prefix="xdit_bench_")) / "topology"
    group.mkdir()
    if not submits(argv):  # a cluster's job composes again, later
        atexit.register(shutil.rmtree, group.parent, ignore_errors=True)
    for number, path in enumerate(files, start=1):
        if load(str(path)).name in RESERVED:  # which also refuses a bad file by file, key and rule, before Hydra does
            raise TopologyError(f"{path}: name must be none of {', '.join(RESERVED)}, which mean other machines")
        (group / f"file_{number}.yaml").symlink_to(path.resolve())
    return _searched(rewritten, f"file://{group.parent}")


def submits(argv: list[str]) -> bool:
    """Whether another launcher than Hydra's basic one is asked for: a cluster's, whose jobs run elsewhere and later."""
    return any(argument.startswith("hydra/launcher=") for argument in argv)


def _searched(argv: list[str], folder: str) -> list[str]:
    """With a folder on Hydra's search path, behind the person's own; Hydra takes the knob once."""
    for number, argument in enumerate(argv):
        key, _, value = argument.partition("=")
        if key.lstrip("+") == "hydra.searchpath":
            own = value.strip().removeprefix("[").removesuffix("]")
            return [*argv[:number], f"{key}=[{own},{folder}]", *argv[number + 1 :]]
    return [*argv, f"hydra.searchpath=[{folder}]"]


def reproducible(argv: list[str]) -> str:
    """The line to type again. Where the person kept results is left out: a record may be shown to others."""
    kept = [argument for argument in argv if not argument.startswith(("results_dir=", "reports_dir="))]
    return shlex.join(["python", "-m", "xdit_bench", *kept])


def knobs(usage: str) -> str:
    """The help text: `usage`, then every knob with its default and one line, read from the comments of `conf/`."""
    lines = [usage.strip(), "", "knobs (name: default, then what it does); sweep any with -m name=a,b", ""]
    for file, prefix in (("config", ""), ("measure/default", "measure."), ("launch/local", "launch.")):
        section = prefix
        for line in (data_dir("conf") / f"{file}.yaml").read_text().splitlines():
            found = KNOB.match(line)
            if found and not found["indent"] and not found["value"]:
                section = f"{found['name']}."
            elif found and found["note"]:
                name = (section if found["indent"] and not found["dash"] else prefix) + found["name"]
                lines.append(f"  {name + ': ' + _default(found['value'].strip()):<34} {found['note']}")
    shipped = sorted(path.stem for path in data_dir("sweeps").glob("*.yaml"))
    more = [
        f"shipped grids: +sweeps={' | '.join(shipped)}",
        f"verbs, each with --help: python -m xdit_bench.{' | '.join(VERBS)}",
        "more: --cfg job shows the composed configuration, --hydra-help Hydra's own flags",
    ]
    return "\n".join([*lines, "", *more])


def _default(value: str) -> str:
    """A default as a person reads it."""
    if value.startswith("${xdit_bench.study"):
        return "<topology>-<model>"
    return re.sub(r"\$\{model\.\w+\}", "<the model's>", value).replace(">-", "…")
