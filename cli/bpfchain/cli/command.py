"""The commands' frame: options in groups, help pages that teach, and one way out for every error.

``Command`` and ``Group`` are click's, except that nothing leaves ``main`` but an exit code: errors
become one line on stderr (``output``), also click's own about the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bpfchain.transform.errors import BpfchainError, UsageError, nearest

from . import output

__all__ = ["Choice", "Command", "Group", "chatter", "option", "settings"]

_OTHER = "Other"
F = TypeVar("F", bound=Callable[..., Any])


class Option(click.Option):
    """An option that stands under a heading of the help page."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        self.group = group
        super().__init__(*args, **kwargs)


def option(*args: Any, **kwargs: Any) -> Callable[[F], F]:
    """``click.option`` with ``group=``, the heading of the help page."""
    return click.option(*args, cls=Option, **kwargs)


if TYPE_CHECKING:
    _WordType = click.ParamType[str]
else:  # older click: not generic
    _WordType = click.ParamType


class Choice(_WordType):
    """One of a few words; a wrong one comes with the nearest right one."""

    name = "word"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.words:
            return str(value)
        close = nearest(str(value), self.words)
        raise UsageError(
            f"{_named(param)}: {value!r} is not {_or(self.words)}",
            f"did you mean {close}?" if close else None,
        )


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def chatter(function: F) -> F:
    """The options -q and -v, under Output."""
    quiet = option("-q", "--quiet", is_flag=True, group="Output", help="Say nothing but errors.")
    verbose = option("-v", "--verbose", is_flag=True, group="Output",
                     help="Explain what was done and why.")  # fmt: skip
    return quiet(verbose(function))


class _Main(click.Command):
    """What a command and a group of commands have in common."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        output.open_streams()
        try:
            code = super().main(
                args, prog_name, complete_var, standalone_mode=False,
                windows_expand_args=windows_expand_args, **extra,
            )  # fmt: skip
            sys.stdout.flush()
        except click.UsageError as error:
            code = _report(_as_usage(error))
        except BpfchainError as error:
            code = _report(error)
        except click.exceptions.Exit as error:
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = output.EXIT_INTERRUPTED
            sys.stderr.write("interrupted: nothing was written\n")
        except BrokenPipeError:  # who read our results has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            output.print_bug(error)
            code = output.EXIT_BUG
        sys.exit(code if isinstance(code, int) else 0)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                name = parameter.group if isinstance(parameter, Option) else _OTHER
                groups.setdefault(name, []).append(record)
        for name, records in sorted(groups.items(), key=lambda item: item[0] == _OTHER):
            with formatter.section(name):
                formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As written: tables stay tables."""
        if self.epilog:
            formatter.write("\n" + self.epilog.rstrip() + "\n")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it does comes first, as in manners.md; the usage line after it."""
        if self.help:
            formatter.write(self.help.strip() + "\n\n")
        super().format_usage(ctx, formatter)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """It was written by ``format_usage``."""


class Command(_Main):
    """A command."""


class Group(_Main, click.Group):
    """A command with subcommands that are imported only when they run.

    ``lazy`` maps a name to ``module:attribute`` and the one line that the help page shows of it.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        self._lazy = lazy
        super().__init__(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])
        _Main.format_options(self, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._lazy and not args[0].startswith("-"):
            close = nearest(args[0], tuple(self._lazy))
            names = f"the commands: {', '.join(self._lazy)}"
            raise UsageError(
                f"no command named {args[0]!r}", f"did you mean {close}?" if close else names
            )
        return super().resolve_command(ctx, args)


def _report(error: BpfchainError) -> int:
    output.print_error(error)
    return error.exit_code


def _as_usage(error: click.UsageError) -> UsageError:
    """Click's complaint in our words."""
    help_page = f"`{error.ctx.command_path} --help` shows what it takes" if error.ctx else None
    if isinstance(error, click.NoSuchOption):
        known = [
            name
            for parameter in (error.ctx.command.params if error.ctx else [])
            for name in parameter.opts
            if name.startswith("--")
        ]
        close = nearest(error.option_name, known)
        return UsageError(
            f"no option named {error.option_name}", f"did you mean {close}?" if close else help_page
        )
    if isinstance(error, click.MissingParameter):
        return UsageError(f"{_named(error.param)} is missing", help_page)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return UsageError(f"{_named(error.param)}: {_lowered(error.message)}", help_page)
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("a command is missing", help_page)
    return UsageError(_lowered(error.format_message()), help_page)


def _named(parameter: click.Parameter | None) -> str:
    if parameter is None:
        return "something"
    if isinstance(parameter, click.Argument):
        return parameter.metavar or str(parameter.name).upper()
    long = [name for name in parameter.opts if name.startswith("--")]
    return long[0] if long else parameter.opts[0]


def _lowered(message: str) -> str:
    """A sentence as part of a line: without its capital and its stop."""
    text = message.strip().rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def settings() -> MutableMapping[str, Any]:
    """Click's settings for every command: -h, and help as wide as the terminal, at most 100."""
    try:  # not shutil's: importing it costs more than all of the rest here
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = 80
    return {
        "help_option_names": ["-h", "--help"],
        "max_content_width": min(100, columns),
    }
