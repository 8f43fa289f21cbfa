"""A program's commands, each with a dataclass of options, made into its command line.

    @dataclass(frozen=True)
    class Status:
        "Show how far a run is."

        work_dir: str = option("work", "directory of the run", metavar="DIR")
        watch: bool = option(False, "show it again and again until the run ends")

    command, options = parse("program.py", {"status": Command(Status, show_status)}, sys.argv[1:])
    return command.run(options)

A field is an option: its name, type, default, one sentence of help and the values that it takes stand there and nowhere else. The first
line of the docstring of the class that defines a field is its group in `--help`, so that options which several commands have are a base
class. Names are spelled with hyphens or underscores. Types: bool, int, float, str, each also `| None`, and tuple[str, ...] (repeatable).
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from executors.errors import UsageError


@dataclass(frozen=True)
class Command:
    """options: a dataclass, whose docstring says what the command does; run: takes an instance, returns the exit code."""

    options: type
    run: Callable[[Any], int]

    @property
    def about(self) -> str:
        return (self.options.__doc__ or "").strip().split("\n")[0]


def option(default: Any, text: str, **more: Any) -> Any:
    """A field that is an option.

    metavar: what stands for its value in the help; choices: the texts it may be; least, most: its range; above, below: its open range;
    pattern: a regular expression for it, and the values in words; bare: its value where none follows it; positional: True, or "needed":
    it has no name on the command line; needs: options, as `name` or `name=value`, one of which must be given for this one to mean
    anything; excludes: options that cannot be given beside it.
    """
    return field(default=default, metadata={"help": text, **more})


def spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(
    program: str,
    commands: Mapping[str, Command],
    argv: Sequence[str],
    about: str = "",
    version: str = "",
    gone: Mapping[str, str] | None = None,
) -> tuple[Command, Any]:
    """The command that these words ask for, the first of `commands` where they name none, and its options.

    gone: what to say instead of an option that there is no more. Raises UsageError; SystemExit(0) after --help and --version.
    """
    default = next(iter(commands))
    word = argv[0] if argv and not argv[0].startswith("-") else None
    if word is not None and word not in commands:
        raise UsageError(f"there is no command {word!r}{nearest(word, commands)}; commands: {', '.join(commands)}")
    name = default if word is None else word
    command, words = commands[name], list(argv if word is None else argv[1:])
    parser = make_parser(program, name, commands, about, version)
    values, unknown = parser.parse_known_args(joined(command.options, words))
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise UsageError((gone or {}).get(flag) or unknown_text(flag, name, commands))
    return command, converted(command.options, vars(values))


def joined(options: type, words: Sequence[str]) -> list[str]:
    """Names with hyphens, and `--integral -1,2` as one word: argparse takes a value that begins with a minus for an option."""
    taking = {spelled(f.name) for f in fields(options) if f.type != "bool"}
    result: list[str] = []
    for word in words:
        if result and result[-1] in taking and re.match(r"-[\d.]", word):
            result[-1] += f"={word}"
            continue
        name, equals, value = word.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return result


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(message.removeprefix("argument "))


def make_parser(program: str, name: str, commands: Mapping[str, Command], about: str, version: str) -> argparse.ArgumentParser:
    """Of one command; values are kept as texts, and what is not given is left out."""
    command, default = commands[name], next(iter(commands))
    others = "\n".join(f"  {other:18}{each.about}" for other, each in commands.items())
    parser = _Parser(
        prog=program if name == default else f"{program} {name}",
        usage=None if name != default else f"{program} [COMMAND] [options]",
        description=about if name == default else inspect.cleandoc(command.options.__doc__ or ""),
        epilog=f"commands (without one: {default}), each with --help of its own:\n{others}\n\n{EXIT_CODES}"
        if name == default
        else EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=version)
    groups: dict[type, Any] = {}
    order = [*command.options.__mro__[1:], command.options]  # what commands share is the everyday part
    for f in sorted(fields(command.options), key=lambda f: order.index(home_of(command.options, f.name))):
        home = home_of(command.options, f.name)
        if home not in groups:
            title = "Further options" if home is command.options else (home.__doc__ or "").strip().split("\n")[0].rstrip(".")
            groups[home] = parser.add_argument_group(title)
        add_option(parser if f.metadata.get("positional") else groups[home], f)
    return parser


EXIT_CODES = "exit codes: 0 done; 1 not everything done, or a check failed; 2 wrong usage; 130 interrupted"


def home_of(options: type, name: str) -> type:
    """The class that defines a field."""
    return next(cls for cls in options.__mro__ if name in vars(cls).get("__annotations__", {}))


def add_option(group: Any, f: Any) -> None:
    more = f.metadata
    text = more["help"]
    if f.default not in (None, (), "") and f.type != "bool" and "default" not in text:
        text += f" (default: {f.default:g})" if isinstance(f.default, float) else f" (default: {f.default})"
    shown = {
        "help": text.replace("%", "%%"),
        "metavar": more.get("metavar") or (choices_text(more["choices"]) if "choices" in more else None),
    }
    if more.get("positional"):
        group.add_argument(f.name, nargs="?", **shown)
        return
    if f.type == "bool":
        group.add_argument(spelled(f.name), action="store_true", help=shown["help"])
    elif f.type.startswith("tuple"):
        group.add_argument(spelled(f.name), action="append", **shown)
    else:
        group.add_argument(spelled(f.name), **shown, **({"nargs": "?", "const": more["bare"]} if "bare" in more else {}))


def choices_text(choices: Sequence[str]) -> str:
    return "|".join(choices)


def converted(options: type, given: Mapping[str, Any]) -> Any:
    """An instance from the texts that were given. Raises UsageError."""
    kinds = {f.name: f for f in fields(options)}
    values = {name: value_of(kinds[name], value) for name, value in given.items()}
    for f in fields(options):
        if f.name in values and values[f.name] != f.default:
            check_company(f, values, options)
        elif f.metadata.get("positional") == "needed" and f.name not in values:
            raise UsageError(f"{f.metadata.get('metavar', f.name)} is missing: {f.metadata['help']}")
    return options(**values)


def value_of(f: Any, text: Any) -> Any:
    """An option's value. Raises UsageError."""
    more = f.metadata
    name = more.get("metavar", f.name) if more.get("positional") else spelled(f.name)
    if isinstance(text, list):
        return tuple(value_of(f, item) for item in text)
    if not isinstance(text, str):
        return text
    if "pattern" in more and not re.fullmatch(more["pattern"][0], text, re.DOTALL):
        raise UsageError(f"{name} {text}: expected {more['pattern'][1]}")
    kind = f.type.removesuffix(" | None")
    try:
        value: Any = {"int": int, "float": float}.get(kind, str)(text)
        if kind == "float" and not math.isfinite(value):
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"{name} {text}: expected {range_text(f)}") from None
    inside = (
        (value >= more["least"] if "least" in more else True)
        and (value <= more["most"] if "most" in more else True)
        and (value > more["above"] if "above" in more else True)
        and (value < more["below"] if "below" in more else True)
    )
    if not inside or ("choices" in more and value not in more["choices"]):
        raise UsageError(f"{name} {text}: expected {range_text(f)}")
    return value


def range_text(f: Any) -> str:
    """The values that an option takes."""
    more = f.metadata
    if "choices" in more:
        return " or ".join([", ".join(more["choices"][:-1]), more["choices"][-1]]) if len(more["choices"]) > 1 else more["choices"][0]
    what = "a whole number" if f.type.startswith("int") else "a number"
    limits = [
        f"{word} {more[key]:.10g}"
        for key, word in (("least", "from"), ("above", "above"), ("most", "to"), ("below", "below"))
        if key in more
    ]
    return f"{what} {', '.join(limits)}".rstrip().replace(", to", " to")


def check_company(f: Any, values: Mapping[str, Any], options: type) -> None:
    """Raises UsageError where an option that was given would be ignored, or contradicts another one."""
    defaults = {other.name: other.default for other in fields(options)}

    def given(text: str) -> bool:
        name, equals, wanted = text.partition("=")
        value = values.get(name, defaults.get(name))
        return value == wanted if equals else value not in (None, False, (), "") and value != defaults.get(name)

    if (needs := f.metadata.get("needs", ())) and not any(map(given, needs)):
        shown = " or ".join(spelled(need).replace("=", " ") for need in needs)
        raise UsageError(f"{spelled(f.name)} is for {shown}")
    if clash := next((other for other in f.metadata.get("excludes", ()) if given(other)), None):
        raise UsageError(f"{spelled(f.name)} and {spelled(clash).replace('=', ' ')} contradict each other: give one of them")


def unknown_text(flag: str, name: str, commands: Mapping[str, Command]) -> str:
    """What to say of a word that is no option of a command."""
    own = {spelled(f.name) for f in fields(commands[name].options) if not f.metadata.get("positional")}
    if not flag.startswith("-"):
        return f"{flag!r}: {name} takes no such word; its options begin with --"
    elsewhere = [other for other, each in commands.items() if flag in {spelled(f.name) for f in fields(each.options)}]
    hint = nearest(flag, own)
    if elsewhere and not hint:
        hint = f"; it is an option of the command {elsewhere[0]!r}"
    return f"{flag} is no option of {name}{hint}"


def nearest(word: str, known: Sequence[str] | Mapping[str, Any] | set[str]) -> str:
    found = difflib.get_close_matches(word.strip("-"), [name.strip("-") for name in known], 1, 0.7)
    return f"; did you mean {word[: len(word) - len(word.lstrip('-'))]}{found[0]}?" if found else ""
