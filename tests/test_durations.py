"""Times as people write them, in every command."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbounds.cli.durations import parse_duration
from layerbounds.cli.main import app, main
from layerbounds.cli.options import asked
from layerbounds.exceptions import InputError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = [
    (name, option)
    for name, command in sorted(COMMANDS.items())
    for option in command.params
    if option.metavar == "TIME" or (option.name or "").endswith(("time_limit", "total_time"))
]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        (" 90 s ", 90),
        ("0", 0),
        ("+.5", 0.5),
        ("1e-3", 0.001),
        ("2.5e1", 25),
        ("10m", 600),
        ("10M", 600),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1h5s", 3605),
        ("1.5h", 5400),
        (".5m", 30),
        ("2d", 172800),
        (12, 12),
        (0.25, 0.25),
    ],
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


NO_TIMES = ["", " ", "-1", "-1h", "nan", "inf", "1e999", "9" * 400 + "h", "soon", "h", "10 20", "30m1h", "1h1h", "5ms"]
NO_TIMES += ["1:30", "1_000", "1,5h", "0x10", "1h30", "١", "1e3s"]


@pytest.mark.parametrize("text", [*NO_TIMES, float("nan"), float("inf"), -1.0, True, None])
def test_what_is_no_time_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match=r"is not a time; write seconds such as 90, or 90s, 10m, 1\.5h, 1h30m\.$"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59))
def test_parts_add_up(hours: int, minutes: int, seconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total
    assert parse_duration(f"{total}") == parse_duration(f"{total}s") == parse_duration(f"{total:.1f}") == total


def test_every_option_of_seconds_takes_a_time() -> None:
    assert {name for name, _ in OPTIONS} >= {"solve", "compare", "versus", "order", "compress"}
    for name, option in OPTIONS:
        assert option.metavar == "TIME", f"{name} {option.name} reads plain numbers; declare it by duration_option"
    # An option that says SECONDS has missed the parser.
    for name, command in COMMANDS.items():
        assert "SECONDS" not in inspect.getsource(inspect.unwrap(command.callback)), name


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("text", ["-1", "nan", "soon", ""])
def test_errors_are_one_sentence(command: str, option: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = option.opts[0]
    assert main([command, flag, text]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    how = "write seconds such as 90, or 90s, 10m, 1.5h, 1h30m"
    assert captured.err == f"error: invalid value for '{flag}': {text!r} is not a time; {how}.\n"


def test_records_hold_seconds() -> None:
    arguments = ["--layer", "fc", "--bits", "2", "--time-limit", "0.1m", "--total-time", "1m30s"]
    options = asked(COMMANDS["solve"].make_context("solve", arguments))
    assert json.dumps([options["time_limit"], options["total_time"]]) == "[6.0, 90.0]"
    assert asked(COMMANDS["order"].make_context("order", ["--layer", "fc"]))["time_limit"] == 10.0
