"""`tuneline chat` as a person uses it: in a terminal, and from a pipe."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import openai_server

PROGRAM = [sys.executable, "-m", "tuneline.cli.main", "chat"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "state").mkdir()
    return {
        **os.environ,
        "TUNELINE_HOME": str(tmp_path / "state"),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "COLUMNS": "80",
    }


def pipe(url, text, environment, *options):
    process = subprocess.run(
        [*PROGRAM, "--url", url, *options], input=text, text=True, capture_output=True, timeout=60, env=environment
    )
    return process.stdout, process.stderr, process.returncode


class Terminal:
    """A chat in a pseudo terminal."""

    def __init__(self, arguments, environment, columns=80):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ.clear()
            os.environ.update({**environment, "COLUMNS": str(columns)})
            os.execv(sys.executable, [*PROGRAM, *arguments])
        self.text, self.code = "", None

    def wait_for(self, text, seconds=30):
        """Read until the text appears; return what came before it since the last call."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} did not appear in {self.text!r}"
            self._read()
        before, _, self.text = self.text.partition(text)
        return before

    def _read(self):
        ready, _, _ = select.select([self.file], [], [], 0.1)
        if ready:
            self.text += ESCAPES.sub("", os.read(self.file, 65536).decode(errors="replace")).replace("\r\n", "\n")

    def type(self, text):
        os.write(self.file, text.encode())

    def ended(self, seconds=15):
        """Return the exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
        raise AssertionError(f"the chat did not end: {self.text!r}")

    def close(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal(environment):
    opened = []

    def open_terminal(*arguments, columns=80):
        opened.append(Terminal(arguments, environment, columns))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def script(body):
    """Answer slowly to `slow`, with thoughts to `think`, with a call where there are tools; otherwise echo."""
    last = body["messages"][-1]
    if body.get("tools") and last["role"] == "user":
        return {
            "tool_calls": [
                {"index": 0, "id": "c1", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
            ],
            "finish": "tool_calls",
        }
    if last["content"] == "slow":
        return {"pieces": ["tick "] * 1000, "delay": 0.02}
    if last["content"] == "think":
        return {"reasoning": ["Hm, well."], "pieces": ["It ", "is."]}
    if body["model"] == "old/1":
        return {"pieces": ["The old one answers."]}
    return openai_server.echo(body)


def test_a_pipe_holds_one_prompt_per_line(environment, tmp_path):
    lines = ["Hello", "two \\", "lines", "", "think", "/save chats.jsonl"]
    with openai_server.serve(script) as server:
        out, err, code = pipe(server.url, "\n".join(lines), {**environment}, "--system", "Be brief.", "-p", "seed=3")

    chats = Path("chats.jsonl")
    try:
        row = json.loads(chats.read_text())
    finally:
        chats.unlink(missing_ok=True)
    assert out.splitlines() == [
        "You said: Hello",
        "You said: two",
        "lines",
        "It is.",
        "Saved the conversation to chats.jsonl, which now has 1 row.",
    ]
    assert "Hm, well." in err
    assert "tiny/1 · 2 tokens" in err
    assert code == 0
    assert [body["seed"] for body in server.requests] == [3, 3, 3]
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 3]


def test_a_failed_prompt_ends_a_pipe_with_exit_code_1(environment):
    def fails_once(body):
        bad = body["messages"][-1]["content"] == "bad"
        return {"status": 400, "body": {"error": {"message": "Too bad."}}} if bad else openai_server.echo(body)

    with openai_server.serve(fails_once) as server:
        out, err, code = pipe(server.url, "bad\ngood\n/frob\n", environment)

    assert out == "You said: good\n"
    assert "status 400: Too bad." in err
    assert "Unknown command '/frob'" in err
    assert code == 1
    assert [message["content"] for message in server.requests[-1]["messages"]] == ["good"]


def test_without_model_and_server_the_command_is_refused(environment):
    process = subprocess.run(PROGRAM, capture_output=True, text=True, timeout=60, env=environment)

    assert process.returncode == 2
    assert process.stderr == "Expected a model or --url, found neither. Example: tuneline chat demo@champion\n"


def test_a_person_chats_in_a_terminal(terminal, tmp_path, environment):
    with openai_server.serve(script, models=("tiny/1", "old/1")) as server:
        chat = terminal("--url", server.url)
        chat.wait_for("Chat with tiny/1. /help lists the commands.")
        chat.wait_for("> ")
        chat.type("Hello\n")
        assert "You said: Hello" in chat.wait_for("tiny/1 · 2 tokens")
        chat.wait_for("> ")
        chat.type("two\\\n")
        chat.wait_for("... ")
        chat.type("lines\n")
        chat.wait_for("You said: two\nlines")
        chat.wait_for("> ")
        chat.type("\x1b[A\x1b[A\n")  # two lines up in the history: `two\`
        chat.wait_for("... ")
        chat.type("more\n")
        chat.wait_for("You said: two\nmore")
        chat.wait_for("> ")
        chat.type("/compare old/1\n")
        chat.wait_for("Comparing tiny/1 with old/1")
        chat.wait_for("> ")
        chat.type("Hi\n")
        assert "You said: Hi" in chat.wait_for("\nold/1\n"), "one below the other where the terminal is narrow"
        chat.wait_for("The old one answers.")
        chat.wait_for("> ")
        chat.type("/save " + str(tmp_path / "c.jsonl") + "\n")
        chat.wait_for("1 row.")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.ended() == 0

    assert json.loads((tmp_path / "c.jsonl").read_text())["messages"][-1]["content"] == "You said: Hi"
    history = tmp_path / "state" / "chat_history"
    assert "Hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_two_answers_stand_side_by_side_in_a_wide_terminal(terminal):
    with openai_server.serve(script, models=("tiny/1", "old/1")) as server:
        chat = terminal("--url", server.url, "--compare", "old/1", columns=120)
        chat.wait_for("> ")
        chat.type("Hello\n")
        shown = chat.wait_for(" tokens") + chat.wait_for("\n> ")

    lines = [line for line in shown.splitlines() if "You said: Hello" in line]
    assert any("The old one answers." in line for line in lines), shown


def test_ctrl_c_stops_an_answer_and_exits_the_second_time(terminal):
    with openai_server.serve(script) as server:
        chat = terminal("--url", server.url)
        chat.wait_for("> ")
        chat.type("slow\n")
        chat.wait_for("tick tick tick")
        chat.type("\x03")
        assert "stopped" in chat.wait_for("Stopped. Press Ctrl-C again to exit.")
        end = time.monotonic() + 5
        while not server.disconnects and time.monotonic() < end:
            time.sleep(0.02)
        assert server.disconnects == 1, "the server notices that the client is gone"
        chat.wait_for("> ")
        chat.type("Hello\n")
        chat.wait_for("You said: Hello")
        chat.wait_for("> ")
        time.sleep(2)  # the prompt appears a moment before the line editor handles signals
        chat.type("\x03")
        chat.wait_for("Press Ctrl-C again, or Ctrl-D, to exit.")
        chat.wait_for("> ")
        time.sleep(2)
        chat.type("\x03")
        assert chat.ended() == 0

    kept = server.requests[-1]["messages"]
    assert kept[1]["content"].startswith("tick tick")


def test_two_interrupts_during_an_answer_exit(terminal):
    with openai_server.serve(script) as server:
        chat = terminal("--url", server.url)
        chat.wait_for("> ")
        chat.type("slow\n")
        chat.wait_for("tick tick")
        chat.type("\x03")
        time.sleep(0.1)  # equal signals that are pending are one signal
        chat.type("\x03")
        assert chat.ended() == 0


def test_the_result_of_a_tool_call_is_asked_for(terminal, tmp_path):
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "get_weather", "parameters": {"type": "object"}}]))
    with openai_server.serve(script) as server:
        chat = terminal("--url", server.url, "--tools", str(tools))
        chat.wait_for("> ")
        chat.type("Weather?\n")
        chat.wait_for('get_weather(city="Oslo")')
        chat.wait_for("result of get_weather> ")
        chat.type("sunny\n")
        chat.wait_for("You said: sunny")
        chat.wait_for("\n> ")
        chat.type("Weather?\n")
        chat.wait_for("result of get_weather> ")
        chat.type("\n")
        chat.wait_for("No result.")
        chat.wait_for("> ")
        chat.type("/exit\n")
        assert chat.ended() == 0

    assert server.requests[1]["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


def test_thoughts_are_dimmed(environment):
    from rich.console import Console

    from tuneline.cli.chat_view import TerminalView
    from tuneline.serve.chat.interface import Answer, ChatDelta

    with Path(environment["TUNELINE_HOME"], "out").open("w+") as file:
        view = TerminalView(Console(file=file, force_terminal=True, color_system="standard", width=80)).answer()
        view.show(ChatDelta(reasoning="Hm."))
        view.show(ChatDelta("It is [b]three[/b].\x1b[2J"))
        view.finish(Answer(version="tiny/1"))
        file.seek(0)
        assert file.read() == "\x1b[2mHm.\x1b[0m\nIt is [b]three[/b].␛[2J\n\x1b[2mtiny/1\x1b[0m\n"
