"""Completion of commands and options in shells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerbounds.cli.main import main

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """What a shell offers for the words of a line: bash gets names, zsh names with what they are."""

    def call(*words: str, shell: str = "bash") -> list[str]:
        monkeypatch.setenv("_LAYERBOUNDS_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words) if shell == "zsh" else " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(words))
        main([])
        return capsys.readouterr().out.split("\n")

    return call


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("_LAYERBOUNDS_COMPLETE", f"source_{shell}")
    assert main([]) == 0
    text = capsys.readouterr().out
    assert f"_LAYERBOUNDS_COMPLETE=complete_{shell}" in text and "layerbounds" in text
    if shutil.which(shell) is not None:
        script = tmp_path / "completion"
        script.write_text(text, encoding="utf-8")
        assert subprocess.run([shell, "-n", str(script)], check=False).returncode == 0


def test_commands_and_options(complete: Complete) -> None:
    assert "solve" in complete("layerbounds", "sol")
    assert "compare" in complete("layerbounds", "com") and "solve" not in complete("layerbounds", "com")
    options = complete("layerbounds", "solve", "--mem")
    assert "--memory-limit" in options and "--layer" not in options
    assert any(
        "--memory-limit" in line and "batched" in line
        for line in complete("layerbounds", "solve", "--mem", shell="zsh")
    )


def test_installation_is_for_the_shell_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-completion", "zsh"]) == 2
    assert "`_LAYERBOUNDS_COMPLETE=source_zsh layerbounds`" in capsys.readouterr().err


def test_help_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--install-completion" in text and "--show-completion" in text
