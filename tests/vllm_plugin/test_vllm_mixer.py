"""The mixer, which knows nothing of vLLM: here our own engine is in the server's place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import tiny_model, tiny_tokenizer
from mixtures import Ours
from scripted import HARMONY, MARKS, OPEN, QWEN

from anchorlm.engine import LocalEngine
from anchorlm.records import UserError
from anchorlm.vllm import Asked, Guided, Mixer, PluginSettings

PROMPTS = ["How do I bake bread?", "Ünïcode, 12 + 30 = ?", "The lazy dog", "x"]


def settings(**sections: Any) -> PluginSettings:
    sections = {"anchor": "nowhere", **sections}
    sections["mixing"] = {"gate": "always", "mixed_tokens": 8, **sections.get("mixing", {})}
    return PluginSettings.parse(sections, where="a test")


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def read(engine: LocalEngine, prompt: list[int], written: list[int]) -> torch.Tensor:
    """The logits that a server would give."""
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *written]])
        logits: torch.Tensor = engine.model.model(input_ids=ids, use_cache=False).logits[0, -1].float()
    return logits


class Server:
    """Greedy decoding of several requests in steps; each has a row while it is written."""

    def __init__(self, target: LocalEngine, mixer: Mixer) -> None:
        self.target = target
        self.mixer = mixer

    def start(self, prompt: list[int], asked: Asked | None) -> Guided | None:
        guided = self.mixer.state(asked)
        if guided is not None:
            guided.prompt = prompt
        return guided

    def answer(self, prompts: list[list[int]], asked: list[Asked | None], new: int = 10) -> Any:
        """The tokens of every answer, and the logits before each."""
        states = [self.start(prompt, ask) for prompt, ask in zip(prompts, asked, strict=True)]
        written: list[list[int]] = [[] for _ in prompts]
        seen: list[list[torch.Tensor]] = [[] for _ in prompts]
        for _ in range(new):
            logits = torch.stack([read(self.target, *one) for one in zip(prompts, written, strict=True)])
            rows = [(row, one, written[row]) for row, one in enumerate(states) if one is not None]
            self.mixer.mix(logits, rows)
            for row, tokens in enumerate(written):
                seen[row].append(logits[row].clone())
                tokens.append(int(logits[row].argmax()))
        return written, seen


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("projection", ["first-token", "lookahead"])
def test_the_mixture_in_a_server_is_ours(
    target: LocalEngine, anchor: LocalEngine, projection: str, alpha: float
) -> None:
    given = settings(mixing={"projection": projection, "alpha": alpha})
    ours, server = Ours(target, anchor, given.mixing), Server(target, Mixer(target.model, anchor, given))
    prompts = [target.model.encode(said(text)) for text in PROMPTS]
    written, seen = server.answer(prompts, [Asked()] * len(prompts), new=10)
    for text, prompt, tokens, logits in zip(PROMPTS, prompts, written, seen, strict=True):
        for found, wanted in zip(logits[:8], ours.logits(said(text), tokens[:8]), strict=True):
            assert torch.allclose(found.exp(), wanted.exp(), atol=1e-5)
        for place in (8, 9):  # after the mixed tokens the server's own stand as they are
            assert torch.equal(logits[place], read(target, prompt, tokens[:place]))


def test_rows_that_do_not_ask_stay_as_they_are_and_guided_ones_are_as_if_alone(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    given = settings()
    server = Server(target, Mixer(target.model, anchor, given))
    prompts = [target.model.encode(said(f"{text} {n}")) for n in range(4) for text in PROMPTS]
    asked = [None if n % 2 else Asked() for n in range(len(prompts))]
    together, _ = server.answer(prompts, asked)
    for prompt, ask, tokens in zip(prompts, asked, together, strict=True):
        assert server.answer([prompt], [ask])[0][0] == tokens
    assert server.answer(prompts, [None] * len(prompts))[0] != together


def test_one_step_is_one_forward_of_the_anchor_whatever_the_number_of_rows(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    mixer = Mixer(target.model, anchor, settings())
    server = Server(target, mixer)
    prompts = [target.model.encode(said("x" * (n + 1))) for n in range(8)]
    states = [server.start(prompt, Asked()) for prompt in prompts]
    rows: list[tuple[int, Guided, list[int]]] = [(row, one, []) for row, one in enumerate(states) if one is not None]
    logits = torch.stack([read(target, prompt, []) for prompt in prompts])
    before = anchor.runner.forwards
    mixer.mix(logits, rows)
    assert anchor.runner.forwards == before + 1


def test_alpha_0_is_no_guidance_at_all(target: LocalEngine, anchor: LocalEngine) -> None:
    mixer = Mixer(target.model, anchor, settings())
    assert mixer.state(Asked(alpha=0.0)) is None
    assert mixer.state(None) is None


def test_no_request_goes_below_the_floor(target: LocalEngine, anchor: LocalEngine) -> None:
    mixer = Mixer(target.model, anchor, settings(floor={"alpha": 0.4, "mixed_tokens": 5}))
    for asked in (None, Asked(alpha=0.0), Asked(alpha=0.1, mixed_tokens=1), Asked(mixed_tokens=2)):
        state = mixer.state(asked)
        assert state is not None
        assert state.alpha >= 0.4
        assert state.tokens >= 5
    more = mixer.state(Asked(alpha=0.9, mixed_tokens=20))
    assert more is not None
    assert (more.alpha, more.tokens) == (0.9, 20)


@pytest.mark.parametrize(
    ("template", "written", "answers"),
    [
        (OPEN, "It is a question.\n</think>\n\nFlour and water.", ["Flour and water."]),
        (QWEN, "<think>\nIt is a question.\n</think>\n\nFlour and water.", ["Flour and water."]),
        (QWEN, "Flour, first of all.</think>\n\nWater and salt.", ["Water and salt."]),
        (HARMONY, "<|channel|>analysis<|message|>It is.<|end|><|start|>assistant<|channel|>final<|message|>Flour!",
         ["Flour!"]),
        (HARMONY, "<|channel|>final<|message|>Flour and water.", ["Flour and water."]),
    ],
)  # fmt: skip
def test_the_opening_of_the_answer_is_mixed_whatever_is_thought_before(
    anchor: LocalEngine, template: str, written: str, answers: list[str]
) -> None:
    """Otherwise a thought would use up the tokens that are mixed, and the answer behind it go unguided."""
    tokenizer = tiny_tokenizer(specials=MARKS, chat_template=template)
    target = LocalEngine(tiny_model("llama", tokenizer=tokenizer, vocab_size=333))
    model, mixed = target.model, 4
    mixer = Mixer(model, anchor, settings(mixing={"mixed_tokens": 4}, floor={"alpha": 0.4, "mixed_tokens": 4}))
    prompt, tokens = model.encode(said("How do I bake?")), model.marks.ids(written)
    starts = [len(tokens) - len(model.marks.ids(written[written.index(one) :])) for one in answers]
    state, fresh = mixer.state(None), mixer.state(None)
    assert state is not None
    state.prompt = prompt
    for place in range(len(tokens)):
        raw = read(target, prompt, tokens[:place])[None]
        found = raw.clone()
        mixer.mix(found, [(0, state, tokens[:place])])
        start = max((one for one in starts if one <= place), default=0)
        if place in starts:
            fresh = mixer.state(None)
        if start or place < mixed:
            assert fresh is not None
            fresh.prompt, fresh.start.watches = prompt, False
            wanted = raw.clone()
            mixer.mix(wanted, [(0, fresh, tokens[start:place])])
            assert torch.equal(wanted, raw) == (place - start >= mixed)
            assert torch.allclose(found, wanted)
    again = mixer.state(None)  # a server may take a request out of its batch, and bring it back
    assert again is not None
    again.prompt = prompt
    for end in (starts[-1], starts[-1] + 1):
        raw = read(target, prompt, tokens[:end])[None]
        found = raw.clone()
        mixer.mix(found, [(0, again, tokens[:end])])
        assert not torch.equal(found, raw)


def test_an_anchor_that_cannot_read_the_prompt_gives_the_refusal_and_the_other_rows_their_answers(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    model = target.model
    server = Server(target, Mixer(model, anchor, settings(mixing={"refusal": "No, sorry."})))
    short, long = model.encode(said("x")), model.encode(said("bread " * 200))
    written, _ = server.answer([short, long], [Asked(), Asked()], new=16)
    assert model.vocabulary.decode(written[1][: written[1].index(0)]) == b"No, sorry."
    assert set(written[1][written[1].index(0) :]) == {0}
    assert written[0][:8] == server.answer([short], [Asked()], new=8)[0][0]


def test_a_prompt_whose_tokens_are_not_known_gives_the_refusal(target: LocalEngine, anchor: LocalEngine) -> None:
    """An anchor that reads nothing knows of no harm. vLLM takes prompts as embeddings, too."""
    model = target.model
    mixer = Mixer(model, anchor, settings(mixing={"refusal": "No."}))
    state = mixer.state(Asked())
    assert state is not None
    logits = read(target, model.encode(said("x")), [])[None].clone()
    mixer.mix(logits, [(0, state, [])])
    assert (logits[0] > -torch.inf).nonzero().flatten().tolist() == [model.vocabulary.encode(b"No.")[0]]


@pytest.mark.parametrize("tokens", [2, 6])
@pytest.mark.parametrize("place", [1, 3, 6, 9])
def test_a_refusal_goes_on_in_a_request_that_left_the_batch_and_came_back(
    target: LocalEngine, anchor: LocalEngine, place: int, tokens: int
) -> None:
    model = target.model
    mixer = Mixer(model, anchor, settings(mixing={"refusal": "No, sorry."}))
    server, long = Server(target, mixer), model.encode(said("bread " * 200))
    asked = Asked(mixed_tokens=tokens)
    written, state = list[int](), server.start(long, asked)
    for step in range(16):
        if step == place:
            state = server.start(long, asked)  # as a server does that makes room for others
        assert state is not None
        logits = read(target, long, written)[None].clone()
        mixer.mix(logits, [(0, state, written)])
        written.append(int(logits[0].argmax()))
    text = model.vocabulary.decode(written[: written.index(0)])
    assert text.endswith(b"No, sorry.")
    assert set(written[written.index(0) :]) == {0}


def test_a_guided_answer_goes_on_by_itself_in_a_request_that_came_back(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    mixer = Mixer(target.model, anchor, settings())
    server, prompt = Server(target, mixer), target.model.encode(said("x"))
    (whole,), _ = server.answer([prompt], [Asked()])
    state = server.start(prompt, Asked())
    assert state is not None
    for step in range(7, 10):
        logits = read(target, prompt, whole[:step])[None].clone()
        mixer.mix(logits, [(0, state, whole[:step])])
        assert int(logits[0].argmax()) == whole[step]
    mixer.close(state)


def test_tokens_that_the_server_has_not_said_yet_are_never_guessed(target: LocalEngine, anchor: LocalEngine) -> None:
    mixer = Mixer(target.model, anchor, settings(mixing={"refusal": "No."}))
    state = mixer.state(Asked())
    assert state is not None
    state.prompt = target.model.encode(said("x"))
    logits = read(target, state.prompt, [])[None].clone()
    mixer.mix(logits, [(0, state, [-1])])
    assert target.model.vocabulary.decode([int(logits.argmax())]) in b"No."


def test_what_the_server_forbids_stays_forbidden(target: LocalEngine, anchor: LocalEngine) -> None:
    mixer = Mixer(target.model, anchor, settings())
    state = mixer.state(Asked())
    assert state is not None
    state.prompt = target.model.encode(said("x"))
    logits = torch.full_like(read(target, state.prompt, []), -torch.inf)[None]
    logits[0, [40, 41]] = 1.0
    mixer.mix(logits, [(0, state, [])])
    assert set((logits[0] > -torch.inf).nonzero().flatten().tolist()) <= {40, 41}
    assert bool(logits.isfinite().any())
    mixer.close(state)


def test_where_the_server_forbids_all_of_the_mixture_the_refusal_is_given(
    target: LocalEngine, anchor: LocalEngine
) -> None:
    prompt = target.model.encode(said("x"))

    def mixed(logits: torch.Tensor) -> torch.Tensor:
        mixer = Mixer(target.model, anchor, settings())
        state = mixer.state(Asked(alpha=1.0))
        assert state is not None
        state.prompt = prompt
        mixer.mix(logits[None], [(0, state, [])])
        mixer.close(state)
        return logits

    free = read(target, prompt, []).clone()
    never = (mixed(torch.zeros_like(free)) == -torch.inf).nonzero().flatten()
    assert len(never) > 0
    held = torch.full_like(free, -torch.inf)
    held[never] = 1.0
    first = target.model.vocabulary.encode(settings().mixing.refusal.encode())[0]
    assert (mixed(held) > -torch.inf).nonzero().flatten().tolist() == [first]


def test_a_request_that_is_gone_leaves_no_row_behind(target: LocalEngine, anchor: LocalEngine) -> None:
    server = Server(target, Mixer(target.model, anchor, settings()))
    prompt = target.model.encode(said("x"))
    for _ in range(3):
        state = server.start(prompt, Asked())
        assert state is not None
        server.mixer.mix(read(target, prompt, [])[None].clone(), [(0, state, [])])
        assert anchor._scheduler.taken == 1
        server.mixer.close(state)
        assert anchor._scheduler.taken == 0
    server.answer([prompt], [Asked()])
    assert anchor._scheduler.taken == 0


def test_a_server_whose_answers_never_end_is_refused(anchor: LocalEngine) -> None:
    tokenizer = tiny_tokenizer(specials=("<a>",), chat_template=None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="set its eos_token"):
        Mixer(tiny_model("llama", tokenizer=tokenizer, eos_token_id=None), anchor, settings())
