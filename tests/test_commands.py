"""Dataclasses of options made into a command line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from executors.commands import Command, option, parse
from executors.errors import UsageError


@dataclass(frozen=True)
class Common:
    """Everyday."""

    name: str = option("x", "a name of 100 %")
    quiet: bool = option(False, "say nothing", excludes=("level",))


@dataclass(frozen=True)
class Work(Common):
    """Do the work.

    At length.
    """

    number: int | None = option(None, "how many", metavar="N", least=1, most=9, bare="4")
    share: float = option(0.5, "how much", above=0, below=1)
    level: str = option("low", "how high", choices=("low", "high"))
    lines: tuple[str, ...] = option((), "further lines", pattern=(r"\w+=\w+", "KEY=VALUE"))
    only_high: int = option(3, "with high alone", needs=("level=high",))


@dataclass(frozen=True)
class Show(Common):
    """Show a file."""

    file: str | None = option(None, "what to show", metavar="FILE", positional="needed")
    depth: int = option(1, "how deep")


COMMANDS = {"work": Command(Work, lambda options: 0), "show": Command(Show, lambda options: 1)}


def parsed(*words):
    return parse("program.py", COMMANDS, words, "About it.", "1.2", {"--display": "--display is the command: program.py show FILE"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Work()),
        (("work", "--name", "y"), Work(name="y")),
        (("--number",), Work(number=4)),
        (("--number=-0", "--number", "2"), Work(number=2)),
        (("--share", ".25", "--lines", "a=b", "--lines=c=d"), Work(share=0.25, lines=("a=b", "c=d"))),
        (("--level=high", "--only_high", "5"), Work(level="high", only_high=5)),
        (("--only-high", "3"), Work()),  # a default that is spelled out is never refused
        (("show", "a file", "--depth", "-2"), Show(file="a file", depth=-2)),
        (("show", "--depth", "2", "f"), Show(file="f", depth=2)),
        (("--name", "-1,2"), Work(name="-1,2")),
    ],
    ids=str,
)
def test_words_become_options(words, expected):
    command, options = parsed(*words)
    assert options == expected and command is COMMANDS["show" if isinstance(expected, Show) else "work"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--nmae", "y"), "--nmae is no option of work; did you mean --name?"),
        (("--depth", "2"), "--depth is no option of work; it is an option of the command 'show'"),
        (("--elsewhere",), "--elsewhere is no option of work"),
        (("shwo",), "there is no command 'shwo'; did you mean show?; commands: work, show"),
        (("work", "more"), "'more': work takes no such word; its options begin with --"),
        (("--display", "f"), "--display is the command: program.py show FILE"),
        (("show",), "FILE is missing: what to show"),
        (("--name",), "--name: expected one argument"),
        (("--number", "0"), "--number 0: expected a whole number from 1 to 9"),
        (("--number", "two"), "--number two: expected a whole number from 1 to 9"),
        (("--number", "10"), "--number 10: expected a whole number from 1 to 9"),
        (("--share", "nan"), "--share nan: expected a number above 0, below 1"),
        (("--share", "1"), "--share 1: expected a number above 0, below 1"),
        (("--level", "middle"), "--level middle: expected low or high"),
        (("--lines", "a"), "--lines a: expected KEY=VALUE"),
        (("--only-high", "5"), "--only-high is for --level high"),
        (("--quiet", "--level", "high"), "--quiet and --level contradict each other: give one of them"),
    ],
    ids=str,
)
def test_what_means_nothing_is_one_line(words, expected):
    with pytest.raises(UsageError) as info:
        parsed(*words)
    assert str(info.value) == expected


def test_help(capsys):
    for words, shown, hidden in (
        (
            ("--help",),
            ("About it.", "Further options:", "Everyday:", "a name of 100 %", "low|high", "show              Show a file."),
            ("--depth",),
        ),
        (("show", "--help"), ("usage: program.py show", "FILE", "--depth", "what to show"), ("--level", "show              Show")),
    ):
        with pytest.raises(SystemExit) as info:
            parsed(*words)
        text = capsys.readouterr().out
        assert info.value.code == 0 and "exit codes: 0 done" in text
        assert all(word in text for word in shown) and not any(word in text for word in hidden)
    with pytest.raises(SystemExit):
        parsed("show", "--version")
    assert capsys.readouterr().out == "1.2\n"


def test_an_option_of_a_command_may_be_called_like_one_that_is_gone():
    command, options = parse("program.py", COMMANDS, ["show", "f", "--depth=2"], gone={"--depth": "--depth is gone"})
    assert options == Show(file="f", depth=2)
    with pytest.raises(UsageError, match="^--depth is gone$"):
        parse("program.py", COMMANDS, ["--depth", "2"], gone={"--depth": "--depth is gone"})
