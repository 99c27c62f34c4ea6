"""`key=value` arguments of the verbs beside the Hydra app, their help, and how a verb ends that is told to.

options = parse(["res=2048"], {"res": "1024", "gpus": ""}, "recommend")  # {"res": "2048", "gpus": ""}
sys.exit(command(main))  # of the verb's module
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from xdit_bench.errors import ConfigError, did_you_mean

INTERRUPTED = 130
UNREAD = 141  # as a shell says of SIGPIPE


class Terminated(SystemExit):
    """SIGTERM came, as a cluster sends at the end of a job's time."""

    code: int


def command(verb: Callable[[], int]) -> int:
    """Exit code of a verb that is this process. Ctrl-C is a line and 130, SIGTERM 143, each once what the verb started
    has ended and its private folders are gone."""
    signal.signal(signal.SIGTERM, _end)
    try:
        code = verb()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # its reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would say so once more at its end
        return UNREAD
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second would cut the cleaning up short
    raise Terminated(128 + number)


def helped(arguments: Sequence[str], about: str | None, defaults: Mapping[str, str]) -> bool:
    """Whether help was asked for; then prints what the verb is about, and every key with its default."""
    if not {"-h", "--help"} & set(arguments):
        return False
    keys = [f"  {key}={value or '<chosen for you>'}" for key, value in defaults.items()]
    print((about or "").strip(), "", "Keys and their defaults:", *keys, sep="\n")
    return True


def parse(arguments: Sequence[str], defaults: Mapping[str, str], verb: str) -> dict[str, str]:
    """Defaults overlaid with what was typed. Raises ConfigError for an unknown key, a key without a value or given
    twice, and a bare word."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{verb} takes key=value, such as {_example(defaults)}; got {argument!r}")
        if key not in defaults:
            hint = did_you_mean(key, defaults) or "."
            raise ConfigError(f"{verb} has no {key!r}{hint} It takes {', '.join(defaults)}")
        if not value.strip():
            raise ConfigError(f"{key} must have a value; got {argument!r}, leave {key} out for its default")
        if key in given:
            raise ConfigError(f"{key} is given once; got {key}={given[key]} and {argument}, leave one of them out")
        given[key] = value
    return {**defaults, **given}


def whole(options: Mapping[str, str], key: str) -> int:
    """A whole number above 0. Raises ConfigError."""
    value = options[key]
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ConfigError(f"{key} must be a whole number above 0; got {key}={value}")
    return int(value)


def positive(options: Mapping[str, str], key: str) -> float:
    """A number above 0. Raises ConfigError."""
    try:
        number = float(options[key])
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{key} must be a number above 0; got {key}={options[key]}")
    return number


def _example(defaults: Mapping[str, str]) -> str:
    key = next((key for key, value in defaults.items() if value), next(iter(defaults)))
    return f"{key}={defaults[key]}"
