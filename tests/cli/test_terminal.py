"""Text of strangers on a terminal, and which errors end in one line."""

import io
import json
import logging
import subprocess
import sys

import pytest
from rich.console import Console

from glip_adapt.cli import terminal
from glip_adapt.core.plain_text import markdown, plain

HOSTILE = "\x1b]0;title\x07\x1b[31m[red]a[/red][/b] :smile: \x9b2J \u202e\u2066 \r\ud800 $x$"


@pytest.fixture
def screen(monkeypatch):
    """What is printed, on a terminal that knows colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(terminal, "stderr", console)
    return stream


def test_control_codes_are_spelled_out_and_the_rest_stays():
    assert plain("a\tb\nc") == "a\tb\nc"
    assert plain("\x1b[31mé骰\u202e\x9b\ud800") == "\\x1b[31mé骰\\u202e\\x9b\\ud800"


@pytest.mark.parametrize(
    "show",
    [
        terminal.say,
        terminal.print_error,
        lambda text: terminal.print_rows(text, [{text: text}], as_json=False),
        lambda text: terminal.print_rows("title", [{"key": text}], as_json=True),
    ],
)
def test_nothing_printed_is_a_control_code_or_markup(screen, show):
    show(HOSTILE)
    shown = screen.getvalue()
    assert not set("\x07\x9b\u202e\u2066\r\ud800") & set(shown)
    assert "\x1b]" not in shown
    assert "\x1b[31m" not in shown
    assert "[red]a[/red][/b] :smile:" in shown


def test_cells_show_values_as_people_read_them(screen):
    rows = [{"name": "a b", "count": 12345, "yes": True, "no": False, "none": None, "part": 0.123456}]
    terminal.print_rows("title", rows, False, shown={"count": "{:,}".format}, decimals=2)
    terminal.print_rows("title", rows, as_json=True, shown={"count": "{:,}".format}, decimals=2)
    table, _, content = screen.getvalue().partition("[")
    assert [cell.strip() for cell in table.split("│")[1:-1]] == ["a b", "12,345", "yes", "no", "–", "0.12"]
    assert json.loads("[" + content) == rows


@pytest.mark.parametrize("whole", [True, False])
def test_names_in_the_first_column_are_broken_unless_they_are_to_stay_whole(screen, monkeypatch, whole):
    monkeypatch.setattr(terminal, "console", Console(file=screen, width=24))
    terminal.print_rows("title", [{"name": "one two three", "text": "word " * 20}], as_json=False, whole=whole)
    assert ("one two three" in screen.getvalue()) == whole


@pytest.mark.parametrize(
    ("width", "left_out"), [(51, []), (50, ["last"]), (44, ["last"]), (43, ["last", "yes"]), (38, ["last", "yes"])]
)
def test_a_narrow_terminal_does_without_spare_columns_and_says_so(screen, monkeypatch, width, left_out):
    monkeypatch.setattr(terminal, "console", Console(file=screen, width=width))
    row = {"name": "one two three", "text": "word " * 20, "yes": True, "last": "x"}
    terminal.print_rows("title", [row], as_json=False, whole=True, spare=["last", "yes"])
    table, _, said = screen.getvalue().partition("A wider terminal, or --json, shows also: ")
    assert said == (f"{', '.join(left_out)}.\n" if left_out else "")
    assert {name for name in row if name not in table} == set(left_out)
    terminal.print_rows("none", [], as_json=False, spare=["last"])


def test_a_warning_of_the_library_is_printed_plainly(screen):
    terminal.prepare()
    logging.getLogger("glip_adapt.data").warning("file \x1b[2J.png")
    assert screen.getvalue() == "warning: file \\x1b[2J.png\n"


def test_a_long_path_stays_whole(screen):
    terminal.say("/folder" * 60)
    assert "/folder" * 60 in screen.getvalue().splitlines()


def test_the_bars_show_text_as_it_is(screen):
    with terminal.bytes_bar("[/old] \x1b[2J") as show:
        show("[download]", 1, 2)
    assert "[/old]" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no"), "no"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (RecursionError("too deep"), "too deep"),
        (MemoryError(), "Memory is exhausted (MemoryError)"),
        (TimeoutError(), "TimeoutError"),
        (KeyError("a"), None),
        (TypeError("a"), None),
        (AssertionError(), None),
    ],
)
def test_errors_that_people_can_mend_are_told_from_those_of_the_program(error, message):
    found = terminal.explain(error)
    assert found is None if message is None else found.startswith(message)


def test_errors_of_libraries_are_among_them():
    import pyarrow
    import safetensors

    assert terminal.explain(pyarrow.lib.ArrowMemoryError("malloc")).startswith("Memory is exhausted (malloc)")
    assert terminal.explain(pyarrow.lib.ArrowNotImplementedError("type")) == "type"
    assert terminal.explain(safetensors.SafetensorError("header")) == "header"


def test_what_standard_output_cannot_encode_is_replaced():
    code = (
        "from glip_adapt.cli import terminal; terminal.prepare(); terminal.say('骰子 ±'); terminal.print_json(['骰子'])"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.decode("ascii").splitlines()
    assert first == "?? ?"
    assert json.loads("".join(rest)) == ["骰子"]


@pytest.mark.parametrize(("is_terminal", "hidden", "shown"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_what_is_under_way_is_shown_on_a_terminal_at_once(monkeypatch, is_terminal, hidden, shown):
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", Console(file=screen, width=300, force_terminal=is_terminal))
    with terminal.working("loading [b]torch", hidden=hidden):
        assert screen.getvalue().count("loading [b]torch …") == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("glip-t, zero_shot: 1.5 (−2 to +3)", "glip-t, zero_shot: 1.5 (−2 to +3)"),
        ("a | b\n\n# head", "a \\| b \\# head"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("![x](http://a/y.png)", "\\!\\[x\\](http\\://a/y.png)"),
        ("_a_ __b__ *c* ~d~ `e` $f$", "\\_a\\_ \\_\\_b\\_\\_ \\*c\\* \\~d\\~ \\`e\\` \\$f\\$"),
        ("WWW.evil.example me@evil.example", "WWW\\.evil.example me\\@evil.example"),
        ("\x1b[31m\\", "\\\\x1b\\[31m\\\\"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    assert markdown(text) == shown
