from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchorlm.records._errors import UserError

MOST_TOOLS = 128
"""Tools that one request may offer."""

_NAME = re.compile(r"[\w.\-]{1,64}", re.ASCII)
_ESCAPED = re.compile(r'\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(["\'\\/bfnrt]))')
_SIGNS = {"b": " ", "f": " ", "n": "\n", "r": "\n", "t": "\t"}
_NESTED = 4
"""How often escapes may stand within escapes."""
_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool, as the model has asked for it.

    Attributes:
        id: Names it in the turn that brings its result.
        name: Of the tool.
        arguments: A JSON object, as text.
    """

    id: str
    name: str
    arguments: str

    @property
    def data(self) -> dict[str, Any]:
        """In OpenAI's form, as a turn of the assistant holds it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    @property
    def text(self) -> str:
        """For people, and for those who judge texts."""
        return call_text(self.name, self.arguments)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a request offers.

    Attributes:
        tools: Each as `{"type": "function", "function": {"name", "description", "parameters"}}`.
        several: Whether one answer may hold several calls.
        must: Names of the tools of which one must be called; none: the model may answer with a text.
        strict: Names of the tools whose calls are to fit their schemas.
    """

    tools: tuple[Mapping[str, Any], ...]
    several: bool = True
    must: tuple[str, ...] = ()
    strict: frozenset[str] = frozenset()

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """The schema of each tool's arguments, by its name."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.tools}


def checked_tools(tools: Any, choice: Any = None, *, several: bool = True) -> ToolUse | None:
    """The tools of a request in OpenAI's form. None where there are none to call.

    Args:
        tools: A list of them, or None.
        choice: `auto`, `none`, `required`, or the form that names one tool. None: `auto`.
        several: Whether one answer may hold several calls.

    Raises:
        UserError: Something else than that, or a choice that cannot be kept.
    """
    if not isinstance(tools, Sequence | None) or isinstance(tools, str):
        raise UserError('tools is a list of {"type": "function", "function": {"name": ...}}: give one.')
    if len(tools or ()) > MOST_TOOLS:
        raise UserError(f"A request offers at most {MOST_TOOLS} tools: give fewer.")
    found = tuple(_checked(tool) for tool in tools or ())
    names = [tool["function"]["name"] for tool in found]
    if len(set(names)) < len(names):
        raise UserError("Two tools have the same name: give each its own.")
    must = _chosen(choice, names)
    if choice == "none" or not found:
        return None
    strict = frozenset(name for name, tool in zip(names, tools or (), strict=True) if _is_strict(tool))
    named = isinstance(choice, Mapping)
    return ToolUse(found, several and not named, must, strict)


def _is_strict(tool: Mapping[str, Any]) -> bool:
    """Whether a tool says so: in its function as in chats, or next to it."""
    return tool["function"].get("strict") is True or tool.get("strict") is True


def _chosen(choice: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The tools of which one must be called."""
    if choice in (None, "auto", "none"):
        return ()
    if choice == "required":
        if not names:
            raise UserError("tool_choice is required, but there are no tools: offer one, or leave tool_choice out.")
        return tuple(names)
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, Mapping) or choice.get("type") != "function" or not isinstance(name, str):
        raise UserError(
            'tool_choice is auto, none, required or {"type": "function", "function": {"name": ...}}: choose one of '
            "these."
        )
    if name not in names:
        raise UserError(f"tool_choice names {name!r:.80}, which is none of the tools: name one of them.")
    return (name,)


def _checked(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise UserError('A tool is {"type": "function", "function": {"name": ...}}: others are not called here.')
    name, about = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError("A tool's name has 1 to 64 letters, digits, dots, dashes or underscores: give it such a name.")
    schema = function.get("parameters")
    if not isinstance(about, str | None) or not isinstance(schema, Mapping | None):
        raise UserError(f"The tool {name} needs a text as its description and a JSON schema as its parameters.")
    if not _is_unicode(json.dumps([about, schema], ensure_ascii=False)):
        raise UserError(f"The tool {name} is not described in valid Unicode: mend its description and its schema.")
    # Templates read all three, whether they are there or not.
    given = dict(schema) if schema else {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": about or "", "parameters": given}}


def json_text(value: Any) -> str:
    """Arguments as JSON that can be sent, half of a character among them as an escape, NaN and infinity as texts."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # Python reads and writes what no other JSON knows
        return json_text(json.loads(json.dumps(value), parse_constant=str))
    return text if _is_unicode(text) else json.dumps(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def call_text(name: str, arguments: str) -> str:
    """A call as one line of text, with its words as they are meant."""
    return f"[calls the tool {name} with {readable(arguments)}]"


def readable(text: str) -> str:
    """A text with what JSON and Python write in escapes as it is meant: no word of a call's arguments can hide in them.

    Arguments may be a text that holds JSON again, so escapes are looked for until there are none.
    """
    plain, left = text, _NESTED
    while left and (found := _ESCAPED.sub(_meant, plain)) != plain:
        plain, left = found, left - 1
    plain = _PAIRS.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), plain)
    return plain.encode("utf-8", "replace").decode()


def _meant(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    return chr(int(code, 16)) if code else _SIGNS.get(found[3], found[3])


def calls_of(turn: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The calls in a turn: id, name, and arguments as text."""
    found = []
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        found.append((str(call.get("id") or ""), str(function["name"]), text))
    return found


def uses_tools(messages: Any) -> bool:
    """Whether a conversation has calls of tools, or their results."""
    return not isinstance(messages, str) and any(
        isinstance(turn, Mapping) and (turn.get("role") == "tool" or turn.get("tool_calls")) for turn in messages
    )


def checked_calls(messages: Any) -> Any:
    """A conversation whose turns of tools are whole: each result names the tool whose call it answers.

    Raises:
        UserError: A call without a name or arguments, or a result of no call.
    """
    if not uses_tools(messages):
        return messages
    found: list[Any] = []
    open_: dict[str, str] = {}
    for turn in messages:
        if isinstance(turn, Mapping) and turn.get("tool_calls"):
            calls = [_call(call, number) for number, call in enumerate(turn["tool_calls"], len(found))]
            if turn.get("role") != "assistant":
                raise UserError("Only a turn of the assistant calls tools: leave tool_calls out of the others.")
            open_ |= {call["id"]: call["function"]["name"] for call in calls}
            turn = {**turn, "content": turn.get("content") or "", "tool_calls": calls}
        elif isinstance(turn, Mapping) and turn.get("role") == "tool":
            id = turn.get("tool_call_id") or next(iter(open_), "")
            if id not in open_:
                raise UserError("A turn of the role tool answers no call before it: give it the tool_call_id of one.")
            turn = {**turn, "content": turn.get("content") or "", "tool_call_id": id, "name": open_[id]}
        found.append(turn)
    return found


def _call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError('A call is {"id": ..., "type": "function", "function": {"name": ..., "arguments": text}}.')
    given = function.get("arguments") or "{}"
    try:
        arguments = json.loads(given) if isinstance(given, str) else dict(given)
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UserError(f"The arguments of an earlier call of {name} are no JSON object: send them as they came.")
    own = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not _is_unicode(own["arguments"]):
        raise UserError(f"The arguments of an earlier call of {name} are not valid Unicode: mend them.")
    return {"id": str(call.get("id") or f"call{number:05d}"), "type": "function", "function": own}


def told(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A conversation in which calls and their results are texts, for those who know no tools.

    A result is a turn of the user's, for it comes from outside. It joins the turns of the user's next to it.
    """
    found: list[Mapping[str, Any]] = []
    after_result = False
    for turn in messages:
        if turn["role"] == "tool":
            name = f" {turn['name']}" if isinstance(turn.get("name"), str) else ""
            turn = {"role": "user", "content": f"[result of the tool{name}]\n{_plain(turn)}"}
            joins, after_result = bool(found) and found[-1]["role"] == "user", True
        else:
            joins, after_result = after_result and turn["role"] == "user", False
        if turn.get("tool_calls"):
            lines = [_plain(turn), *(call_text(name, arguments) for _, name, arguments in calls_of(turn))]
            turn = {"role": turn["role"], "content": "\n".join(filter(None, lines))}
        if joins and isinstance(found[-1]["content"], str):
            turn = {"role": "user", "content": f"{found.pop()['content']}\n\n{_plain(turn)}"}
        found.append(turn)
    return found


def _plain(turn: Mapping[str, Any]) -> str:
    content = turn.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) if part["type"] == "text" else "[image]" for part in content)
