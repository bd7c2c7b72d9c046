"""The loop of a chat: read a prompt, run a command or show the answer, and stop an answer by Ctrl-C."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from tuneline.cli.chat_input import PROMPT, LineReader
from tuneline.cli.chat_view import AnswerView, ColumnsView, PlainView, TerminalView
from tuneline.errors import TunelineError
from tuneline.serve.chat import commands, session
from tuneline.serve.chat.interface import Answer, ChatClient, ChatRequest
from tuneline.serve.chat.session import Session

T = TypeVar("T")

STOPPED = "Stopped. Press Ctrl-C again to exit."
INTERRUPTED = "Press Ctrl-C again, or Ctrl-D, to exit."


class Interrupts:
    """Ctrl-C: cancels the running task, or raises KeyboardInterrupt. A second one without input in between exits."""

    def __init__(self) -> None:
        self.count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle Ctrl-C while the block runs; only the main thread receives signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._task is None or self._loop is None or self.count > 1:
            raise KeyboardInterrupt
        self._loop.call_soon_threadsafe(self._task.cancel)

    async def cancellable(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run work as a task that Ctrl-C cancels; return its result, or None if it was cancelled."""
        self._loop = asyncio.get_running_loop()
        task: asyncio.Task[T] = self._loop.create_task(work)
        self._task = task
        try:
            return await task
        except asyncio.CancelledError:
            return None
        finally:
            self._task = None


class ChatLoop:
    """A chat with a user or a pipe."""

    def __init__(self, chat: Session, reader: LineReader, view: PlainView | TerminalView) -> None:
        self._session, self._reader, self._view = chat, reader, view
        self._interrupts = Interrupts()
        self._skips_results = False
        self.failed = False
        """Whether a prompt or a command failed."""

    def run(self, runner: asyncio.Runner) -> None:
        """Read prompts until the end of the input, `/exit` or two interrupts."""
        with self._interrupts.handled():
            while True:
                try:
                    if not self._turn(runner):
                        return
                except KeyboardInterrupt:
                    if isinstance(self._view, PlainView):
                        raise
                    if self._interrupts.count > 1:
                        return
                    self._view.message(f"\n{INTERRUPTED}")
                except TunelineError as error:
                    self.failed = True
                    self._view.error(str(error))

    def _turn(self, runner: asyncio.Runner) -> bool:
        """Read and process one input; return whether the chat continues."""
        call = self._open_call()
        line = self._reader.read(f"result of {call['function']['name']}> " if call else PROMPT)
        if line is None:
            return False
        self._interrupts.count = 0
        if commands.is_command(line):
            return self._execute(line, runner)
        if call:
            self._add_result(call, commands.as_prompt(line), runner)
        elif line.strip():
            self._session.conversation.add_user(commands.as_prompt(line))
            self._answer(runner)
        return True

    def _execute(self, line: str, runner: asyncio.Runner) -> bool:
        """Run a command; return whether the chat continues."""
        outcome = runner.run(self._interrupts.cancellable(commands.execute(line, self._session)))
        if outcome is None:
            self._view.message(STOPPED)
            return True
        if outcome.text:
            self._view.message(outcome.text)
        if outcome.action == "answer":
            self._answer(runner)
        return outcome.action != "exit"

    def _open_call(self) -> dict[str, Any] | None:
        """Return the next tool call that needs a result; None if there is none, or if the user gave none."""
        calls = [] if self._skips_results else self._session.conversation.open_calls()
        return calls[0] if calls else None

    def _add_result(self, call: dict[str, Any], text: str, runner: asyncio.Runner) -> None:
        """Add the result of a tool call; the model answers after the last one."""
        if not text.strip():
            self._skips_results = True
            self._view.message("No result. Continue with a prompt.")
            return
        self._session.conversation.add_result(call, text)
        if not self._session.conversation.open_calls():
            self._answer(runner)

    def _answer(self, runner: asyncio.Runner) -> None:
        """Show the answers of the models, and keep that of the first one."""
        answer = Answer()
        self._skips_results = False
        try:
            runner.run(self._interrupts.cancellable(self._show_answers(answer)))
        except TunelineError:
            answer.stopped = True
            raise
        finally:
            self._session.conversation.add_answer(answer)
        if self._interrupts.count and isinstance(self._view, PlainView):
            raise KeyboardInterrupt
        if self._interrupts.count:
            self._view.message(STOPPED)

    async def _show_answers(self, answer: Answer) -> None:
        client, other, request = self._session.client, self._session.other, self._session.request()
        if other is None:
            await _show(client, request, answer, self._view.answer())
        elif isinstance(self._view, TerminalView) and self._view.has_room_for_columns:
            with ColumnsView(self._view.console, (client.name, other.name)) as view:
                left, right = view.columns()
                shown = _show(client, request, answer, left), _show(other, request, Answer(), right)
                errors = await asyncio.gather(*shown, return_exceptions=True)
            for error in filter(None, errors):
                raise error
        else:
            await _show(client, request, answer, self._view.answer(client.name))
            if not answer.stopped:
                await _show(other, request, Answer(), self._view.answer(other.name))


async def _show(client: ChatClient, request: ChatRequest, answer: Answer, view: AnswerView) -> None:
    try:
        await session.receive(client, request, answer, view.show)
    finally:
        view.finish(answer)
