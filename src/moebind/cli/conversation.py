"""A conversation on the command line: its messages, the replies as they come, and files that keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebind._core.atomic_files import write_whole
from moebind.chat.messages import checked_messages
from moebind.cli.terminal import Terminal
from moebind.cli.text_options import ended, read_json, read_text
from moebind.context.media_messages import part_of_file, without_media
from moebind.errors import ChatTemplateError

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.replies import ChatReply

__all__ = ["Conversation", "read_messages"]

Message = Mapping[str, object]


def read_messages(path: str | os.PathLike[str]) -> list[Message]:
    """The messages of a file: a JSON list, as OpenAI's API has them.

    Raises
    ------
    ValueError
        If it holds anything else.
    OSError
        If it cannot be read.
    """
    found = read_json(read_text(Path(path)), f"{os.fspath(path)} is not JSON, as chats are saved in")
    try:
        checked_messages(without_media(found))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} holds no chat: {error}") from None
    return list(found)


class Conversation:
    """Messages, and a context that answers them.

    Parameters
    ----------
    context
        It remembers what it computed.
    terminal
        Where replies are shown.
    arguments
        Those of ``Context.chat``.
    report
        Gets each reply as a mapping, in the place of the terminal; None: nobody does.
    """

    def __init__(
        self,
        context: Context,
        terminal: Terminal,
        arguments: Mapping[str, Any],
        report: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:
        self.messages: list[Message] = []
        self._attached: list[Message] = []
        self._context, self._terminal, self._arguments, self._report = context, terminal, arguments, report

    def ask(self, text: str) -> bool:
        """Say something, and let the model answer; whether Ctrl-C stopped it. Nothing is kept if it fails."""
        content: object = [*self._attached, {"type": "text", "text": text}] if self._attached else text
        stopped = self._answered([*self.messages, {"role": "user", "content": content}])
        self._attached = []
        return stopped

    def attach(self, path: str | os.PathLike[str]) -> None:
        """Show a picture, or play a sound, with the next question.

        Raises
        ------
        ValueError, MtmdError
            If the model has no projector, or this one cannot take it.
        OSError
            If it cannot be read.
        """
        from moebind.mtmd.bitmap import Bitmap

        mtmd = self._arguments.get("mtmd")
        if mtmd is None:
            raise ValueError("pictures and sound need the model's projector: begin the chat with --mmproj FILE")
        mtmd._must_take(Bitmap.from_file(path, mtmd))
        self._attached.append(part_of_file(path))
        if self._arguments.get("speculative") is not None:
            self._arguments = {**self._arguments, "speculative": None}
            self._terminal.note("From here on, nothing is drafted: pictures and sound are part of what follows.")

    def check(self) -> None:
        """Have the arguments checked as with a question, without asking one: tools, the template, the rest.

        Raises
        ------
        MoebindError, TypeError, ValueError
            If a question could not be asked with them.
        """
        self._context.chat([*self.messages, {"role": "user", "content": "?"}], **self._arguments).close()

    def retry(self) -> bool:
        """Have the last reply written again; whether Ctrl-C stopped it.

        Raises
        ------
        ValueError
            If nothing was asked.
        """
        kept = self._until_last_question()
        return self._answered([*kept, self.messages[len(kept)]])

    def undo(self) -> None:
        """Take the last question back, with its reply.

        Raises
        ------
        ValueError
            If nothing was asked.
        """
        self.messages = self._until_last_question()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [each for each in self.messages[:1] if each["role"] == "system"]

    @property
    def system(self) -> str | None:
        """The system prompt: the first message, if that is one."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str) -> None:
        kept = self.messages if self.system is None else self.messages[1:]
        self.messages = [{"role": "system", "content": text}, *kept] if text else list(kept)

    def timings(self) -> str:
        """How long the last reply took."""
        return str(self._context.timings())

    def save(self, path: str) -> None:
        """Write the messages into a file; another chat that is there is replaced.

        Raises
        ------
        ValueError
            If something else is there, or nothing was said.
        OSError
            If it cannot be written.
        """
        if not self.messages:
            raise ValueError("there is nothing to save yet")
        if os.path.exists(path) and os.path.getsize(path):
            read_messages(path)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise OSError(f"{path} cannot be saved: there is no folder {folder}")
        # What is empty is left out: OpenAI's API takes no empty list of calls.
        plain = [{key: value for key, value in each.items() if value or key == "content"} for each in self.messages]
        write_whole(path, [json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n"])

    def _until_last_question(self) -> list[Message]:
        asked = [at for at, each in enumerate(self.messages) if each["role"] == "user"]
        if not asked:
            raise ValueError("nothing was asked yet")
        return self.messages[: asked[-1]]

    def _answered(self, messages: list[Message]) -> bool:
        """Have the messages answered, and calls too, as long as there are any; keep it all."""
        arguments = dict(self._arguments)
        while True:
            self._context.reset_timings()
            reply = self._context.chat(messages, **arguments)
            stopped = self._show(reply)
            message = _message(reply)
            if stopped and not reply.text:
                return True
            self.messages = messages = [*messages, message]
            if self._report is not None:
                self._report({"message": message, **ended(reply.usage, reply.stop_reason, self._context.timings())})
            if reply.stop_reason == "context":
                self._terminal.note("(the context is full: /undo, /clear, or a larger --ctx-size)")
            calls = message["tool_calls"]
            if stopped or not isinstance(calls, Sequence) or not calls:
                return stopped
            arguments["tool_choice"] = "auto"  # a call that was demanded has come
            for call in calls:
                result = self._result(call)
                if result is None:
                    return False
                messages = [*messages, result]

    def _show(self, reply: ChatReply) -> bool:
        """Show a reply while it comes; whether Ctrl-C stopped it."""
        try:
            for delta in reply.deltas():
                if self._report is None:
                    self._terminal.write_apart(delta.get("reasoning_content", ""))
                    self._terminal.write(delta.get("content", ""))
        except KeyboardInterrupt:
            return True
        finally:
            self._terminal.end()
        return False

    def _result(self, call: Mapping[str, Any]) -> Message | None:
        """What a tool gives, as somebody types it."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        self._terminal.write_apart(f"call {name}({arguments})")
        self._terminal.end()
        typed = self._terminal.read(f"result of {name}: ")
        return None if typed is None else {"role": "tool", "tool_call_id": call["id"], "name": name, "content": typed}


def _message(reply: ChatReply) -> dict[str, object]:
    """The reply as a message, as far as it came."""
    try:
        return dict(reply.message)
    except ChatTemplateError:  # cut off where its form does not allow it
        return {"role": "assistant", "content": reply.text, "reasoning_content": "", "tool_calls": []}
