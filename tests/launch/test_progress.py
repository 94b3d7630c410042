"""What a person sees while a command works."""

import contextlib
import io
import sys
import time

from launch import cli


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_stage_is_a_line_in_a_file(capsys):
    with cli.progress() as say:
        say("reading")
        say("solving")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("s  ")[1] for line in lines] == ["reading", "solving"]


def test_the_last_line_counts_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with cli.progress() as say:
        time.sleep(1.2)
        say("reading")
        say("solving")
        time.sleep(1.2)
    shown = screen.getvalue()
    assert "starting\n" in shown
    assert "reading\n" in shown
    assert shown.count("solving") >= 2
    assert "\r" in shown
    assert shown.endswith("\n")


def test_an_error_starts_on_a_line_of_its_own(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with contextlib.suppress(ValueError), cli.progress() as say:
        say("reading")
        raise ValueError("bad")
    assert screen.getvalue().endswith("\n")
