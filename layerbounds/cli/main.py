"""The application: commands, exit codes, and errors as one line on stderr.

A new command is a function in a file of its own and one line in ``_COMMANDS``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import layerbounds
from layerbounds.cli.allocate import allocate_command
from layerbounds.cli.capture import capture_command
from layerbounds.cli.compare import compare_command
from layerbounds.cli.compress import compress_command
from layerbounds.cli.finetune import finetune_command
from layerbounds.cli.layers import layers_command
from layerbounds.cli.listings import backends_command, heuristics_command, ranges_command
from layerbounds.cli.order import order_command
from layerbounds.cli.report import report_command
from layerbounds.cli.run import run_command
from layerbounds.cli.score import score_command
from layerbounds.cli.solve import solve_command
from layerbounds.cli.tensors import tensors_command
from layerbounds.cli.theory import theory_command
from layerbounds.cli.verify import verify_command
from layerbounds.cli.versus import versus_command
from layerbounds.exceptions import InputError, LayerboundsError, UnknownNameError
from layerbounds.suggestions import did_you_mean

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_COMMANDS: dict[str, Callable[..., None]] = {
    "solve": solve_command,
    "verify": verify_command,
    "capture": capture_command,
    "compress": compress_command,
    "finetune": finetune_command,
    "compare": compare_command,
    "score": score_command,
    "versus": versus_command,
    "report": report_command,
    "order": order_command,
    "run": run_command,
    "allocate": allocate_command,
    "theory": theory_command,
    "tensors": tensors_command,
    "layers": layers_command,
    "backends": backends_command,
    "heuristics": heuristics_command,
    "ranges": ranges_command,
}

#: What typer adds to the options.
_COMPLETION = ("--install-completion", "--show-completion")

# Typer keeps the base class of its usage errors to itself, and where it lives depends on the version.
_USAGE_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="layerbounds",
    help="Certified bounds on how well a layer of a neural network can be compressed.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"layerbounds {layerbounds.__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 the system failed (a full disk), 2 bad input, 3 a refused certificate,
        130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A terminal or pipe that cannot encode "·" or "–" gets a question mark instead of a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        _check_command(given)
        code = app(given or ["--help"], prog_name="layerbounds", standalone_mode=False)
    except LayerboundsError as error:
        return _fail(str(error))
    except _USAGE_ERROR as error:
        return _fail(_usage(error))
    except OSError as error:
        # A full disk behind standard output, say: neither the input's fault nor worth a traceback.
        return _fail(str(error), FAILED)
    except SystemExit as end:
        # Completion ends the process itself.
        return end.code if isinstance(end.code, int) else DONE
    except (KeyboardInterrupt, typer.Abort):
        # Typer raises one or the other, or returns 130, depending on its version.
        return INTERRUPTED
    return code if isinstance(code, int) else DONE


def _check_command(given: Sequence[str]) -> None:
    """Refuse a command that there is not, with the one that may have been meant, and a shell to complete for."""
    if len(given) > 1 and given[0] in _COMPLETION:
        raise InputError(
            f"{given[0]} is for the shell that runs, and takes no name; for another one see "
            f"`_LAYERBOUNDS_COMPLETE=source_{given[1]} layerbounds`."
        )
    if given and not given[0].startswith("-") and given[0] not in _COMMANDS:
        hint = did_you_mean(given[0], _COMMANDS)
        raise UnknownNameError(f"there is no command {given[0]!r}; {hint}available: {', '.join(_COMMANDS)}.")


def _usage(error: Exception) -> str:
    """What was wrong with options, in the form of the package's own messages."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if hasattr(error, "possibilities") and isinstance(option, str) and context is not None:
        known = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        hint = did_you_mean(option, known)
        return f"no such option: {option}; {hint}see `{context.command_path} --help`."
    message: str = error.format_message()  # type: ignore[attr-defined]
    return message[:1].lower() + message[1:]


def _fail(message: str, code: int = BAD_INPUT) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
