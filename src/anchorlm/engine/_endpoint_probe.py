"""Asks a server what it can do, with requests of one token. Nothing is assumed of a server that was not tried."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anchorlm.engine._endpoint_bodies import (
    Abilities,
    Kind,
    Mode,
    likeliest,
    neutral,
    with_prompt,
    with_turns,
)
from anchorlm.engine._endpoint_faults import MissingError, RejectedError, wrong
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_reading import Reader, text_of
from anchorlm.engine._endpoint_replies import Reply, UnusableError, count_of, read_reply
from anchorlm.engine._endpoint_steps import native_step
from anchorlm.engine._endpoint_tokenizer import TokenizerCheck
from anchorlm.engine._endpoint_watch import listed, names, told
from anchorlm.models import EndpointModel, EndpointSettings
from anchorlm.records import TooLongError, UserError

_ASKED = [{"role": "user", "content": "What is the capital of France?"}]
_BEGUN = "The capital of France is"
_KINDS: dict[str, Kind] = {"llamacpp": "llama-server", "vllm": "vllm", "sglang": "sglang", "anchorlm": "anchorlm"}
_TOPS = (20, 5)
"""Likeliest tokens that servers allow to ask for, where they do not allow any number."""
_ALONE = 20
"""Likeliest tokens to ask for where the tokens are not known: nothing is mixed, and no client may ask for more."""
_AS_TEXT = "It takes text and no tokens: tokens that end inside a character are not mixed."


async def probe(caller: Caller, settings: EndpointSettings, model: EndpointModel) -> tuple[Abilities, Any]:
    """What a server can do, and what it tells of its model.

    Args:
        caller: Calls it.
        settings: What is wanted of it.
        model: With its tokenizer, where one is given.

    Raises:
        UserError: It does not serve the model, or cannot be used.
        DefenseError: It cannot be asked.
    """
    found, known = await _described(caller, settings)
    if settings.prompts != "chat" and model.spelled:
        model.templated = False
        if (able := await _completions(caller, settings, model, found)) is not None:
            return able, known
        if settings.prompts == "completions":
            raise UserError(
                f"The server at {settings.endpoint} does not take prompts that are written here, token by token: "
                "leave prompts out, or start the server with its completions and without a filter of control tokens."
            )
    model.templated = True
    return await _chat(caller, settings, model, found), known


async def _described(caller: Caller, settings: EndpointSettings) -> tuple[Abilities, Any]:
    """Which server it is, and which model."""
    try:
        data = await caller.get("/models")
    except MissingError:
        if settings.model is None:
            raise UserError(
                f"The server at {settings.endpoint} does not list its models: give the model's id as model, and check "
                "that the address ends in /v1, if it should."
            ) from None
        return Abilities(model=settings.model, context=settings.context), None
    entries = listed(_field(data, "data"))
    entry = _chosen(entries, settings)
    owner = entry.get("owned_by")
    kind = _KINDS.get(owner, "other") if isinstance(owner, str) else "other"
    said, version = count_of(entry.get("max_model_len")), None
    if kind == "vllm":
        version = _field(await caller.get("/version", root=True), "version")
    if kind == "llama-server":
        props = await _optional(caller, "/props")
        version = _field(props, "build_info")
        inside = _field(_field(props, "default_generation_settings"), "n_ctx")
        said = count_of(inside) or count_of(_field(entry.get("meta"), "n_ctx"))
    if kind == "sglang":
        version = _field(await _optional(caller, "/server_info"), "version")
    chosen = settings.model or str(entry["id"])
    able = Abilities(
        kind=kind,
        version=version if isinstance(version, str) else "",
        model=chosen,
        context=settings.context or (said if said is not None and said > 1 else None),
    )
    return able, await told(caller, chosen, kind)


def _field(data: Any, name: str) -> Any:
    """What an object of a server's holds under a name. None where it is no object, or holds nothing there."""
    return data.get(name) if isinstance(data, dict) else None


def _chosen(entries: list[dict[str, Any]], settings: EndpointSettings) -> dict[str, Any]:
    there = ", ".join(str(one["id"]) for one in entries[:8]) or "none"
    if settings.model is not None:
        for entry in entries:
            if settings.model in names(entry):
                return entry
        raise UserError(
            f"The server at {settings.endpoint} does not serve {settings.model!r}: give one of these as model: {there}."
        )
    if len(entries) != 1:
        raise UserError(f"Which model of {settings.endpoint} is meant? Give one of these as model: {there}.")
    return entries[0]


async def _optional(caller: Caller, path: str) -> Any:
    try:
        return await caller.get(path, root=True)
    except (MissingError, RejectedError):
        return None


async def _completions(
    caller: Caller, settings: EndpointSettings, model: EndpointModel, found: Abilities
) -> Abilities | None:
    """Whether prompts go there as our own tokens, or as our own text. None where neither arrives whole."""
    ids = model.encode(_ASKED)
    prompts: dict[Mode, list[int] | str] = {"tokens": ids, "text": text_of(model, ids)}
    for mode, prompt in prompts.items():
        able = replace(found, mode=mode)
        tried = await _likeliest(caller, settings, model, able, with_prompt(able, prompt))
        if tried is None:
            continue
        able, reply = tried
        check = TokenizerCheck(caller, settings, model, able)
        check.names(reply)
        arrived = reply.prompt_tokens in (None, len(ids))  # else the server wrote another prompt than ours
        if arrived or settings.prompts == "completions":
            more = await check.splits()
        if arrived:
            notes = () if mode == "tokens" else (_AS_TEXT,)
            return replace(able, continues="yes", notes=(*able.notes, *notes, *more))
    return None


async def _chat(caller: Caller, settings: EndpointSettings, model: EndpointModel, found: Abilities) -> Abilities:
    """How a server that writes conversations itself is asked."""
    able = replace(found, mode="chat")
    tried = await _likeliest(caller, settings, model, able, with_turns(able, {"messages": _ASKED}, ""))
    if tried is None:
        raise UserError(
            f"The server at {settings.endpoint} answers neither conversations nor prompts that are written here: check "
            "that the address ends in /v1, if it should, or give the model's tokenizer."
        )
    able, reply = tried
    if model.spelled:
        check = TokenizerCheck(caller, settings, model, able)
        check.names(reply)
        able = replace(able, notes=(*able.notes, *await check.splits()))
    for way in ("yes", "flags"):
        trial = replace(able, continues=way)
        body = with_turns(trial, {"messages": _ASKED}, _BEGUN) | neutral(trial)
        try:
            reply = _read(settings, await caller.post(trial.path, body))
        except (RejectedError, TooLongError):
            continue
        if _continued(model, trial, reply):
            return trial
    return replace(able, continues="no")


def _continued(model: EndpointModel, trial: Abilities, reply: Reply) -> bool:
    """Whether an answer went on where the trailing turn of the assistant ended.

    It did where the server says the beginning again, is one that documents the flags, or read just as many tokens.
    """
    if reply.text.startswith(_BEGUN):
        return True
    if trial.continues == "flags" and trial.kind in ("vllm", "sglang"):
        return True
    if not model.spelled or reply.prompt_tokens is None:
        return False
    model.templated = False
    expected = len(model.encode(_ASKED)) + len(model.vocabulary.encode(_BEGUN.encode()))
    model.templated = True
    return reply.prompt_tokens == expected


async def _likeliest(
    caller: Caller, settings: EndpointSettings, model: EndpointModel, able: Abilities, body: dict[str, Any]
) -> tuple[Abilities, Reply] | None:
    """The most that the server takes in a request and gives in an answer. None where it takes none."""
    reader = Reader(model, whole=False)
    # Never more than there are: not every server refuses that in one sentence.
    wanted = min(settings.top_logprobs, model.vocab_size or _ALONE)

    async def ask(asked: dict[str, Any]) -> Reply:
        return _read(settings, await caller.post(able.path, asked))

    tops = [wanted, *(top for top in _TOPS if top < wanted), 0]
    for extended in (True, False) if able.kind != "anchorlm" else (False,):
        for top in tops:
            trial = replace(able, extended=extended)
            more = neutral(trial) | (likeliest(trial, top) if top else {})
            try:
                if top and trial.native:
                    await ask(body | neutral(trial))  # the answers come from there
                    reply = await native_step(caller, trial, body["prompt"], top)
                else:
                    reply = await (reader.one_step(ask, body | more) if top else ask(body | more))
            except MissingError:
                return None
            except (RejectedError, TooLongError, UnusableError):
                continue
            return _told(model, trial, reply, top), reply
    return None


def _told(model: EndpointModel, trial: Abilities, reply: Reply, asked: int) -> Abilities:
    entry = (reply.entries or (None,))[0]
    given = 0 if entry is None else min(asked, len(entry.top))
    exact = entry is not None and any(one.id is not None or one.piece != one.name.encode() for one in entry.top)
    notes = []
    if not trial.extended:
        notes.append("It takes no samplers beyond OpenAI's: top_k, min_p and repetition_penalty cannot be set.")
    if given < 2:
        without = " by their ids: let its /generate be reached" if trial.native else ""
        notes.append(f"It names no likeliest tokens{without}.")
    elif not exact and model.alone:  # read now: a large vocabulary takes seconds, and no request waits yet
        notes.append("It names tokens by text alone: pieces of characters, and tokens that share a text, are left out.")
    return replace(trial, top=given if given > 1 else 0, notes=tuple(notes))


def _read(settings: EndpointSettings, data: Any) -> Reply:
    try:
        return read_reply(data)
    except UnusableError as error:
        raise wrong(settings, str(error)) from None
