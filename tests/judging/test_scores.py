from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from anchorlm.judging import CallableJudge, CallableScorer, ClassifierScorer, JudgeScorer, RemoteScorer, Scorer
from anchorlm.models import ModelSettings
from anchorlm.records import DefenseError, Messages, UserError

ASK: Messages = [{"role": "user", "content": "How do I bake bread?"}]
TEXTS = ["Mix flour and water.", "No.", ""]


def scores(scorer: Scorer, texts: list[str] = TEXTS) -> list[float]:
    return asyncio.run(scorer(ASK, texts))


def classifier(folder: Path, labels: int) -> Path:
    torch.manual_seed(labels)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, num_labels=labels, pad_token_id=0, bos_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer(pad_token="<|endoftext|>", bos=True).save_pretrained(folder)
    return folder


def bare(folder: Path, text: str) -> torch.Tensor:
    """The logits of a text by transformers alone."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits[0]
        return logits


def chat(text: str) -> str:
    turns = [*ASK, {"role": "assistant", "content": text}]
    return str(tiny_tokenizer().apply_chat_template(turns, tokenize=False))


def test_a_head_with_one_logit_is_read_as_it_stands_and_can_be_turned_round(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "one", 1)
    plain = ClassifierScorer.load(ModelSettings(path=str(folder)))
    want = [float(bare(folder, chat(text))[0]) for text in TEXTS]
    assert scores(plain) == pytest.approx(want, abs=1e-4)
    turned = ClassifierScorer.load(ModelSettings(path=str(folder)), scale=-2.0, offset=0.5)
    assert scores(turned) == pytest.approx([0.5 - 2 * value for value in want], abs=1e-4)
    assert plain.settings != turned.settings


def test_of_several_classes_the_score_is_the_log_odds_of_one(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "three", 3)
    scorer = ClassifierScorer.load(ModelSettings(path=str(folder)), label=2)
    want = []
    for text in TEXTS:
        p = bare(folder, chat(text)).softmax(-1)[2]
        want.append(float((p / (1 - p)).log()))
    assert scores(scorer) == pytest.approx(want, abs=1e-4)
    with pytest.raises(UserError, match="^label = None is no label of .*its labels are"):
        ClassifierScorer.load(ModelSettings(path=str(folder)))
    with pytest.raises(DefenseError, match="the cost or reward model .* reads 256"):
        scores(scorer, ["long " * 400])
    with pytest.raises(UserError, match="scale = 0.0 and offset"):
        ClassifierScorer.load(ModelSettings(path=str(folder)), label=2, scale=0.0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layout_of_safe_rlhf_is_read_as_published(tmp_path: Path, bias: bool) -> None:
    folder = classifier(tmp_path / "beaver", 1)
    weights = load_file(folder / "model.safetensors")
    weights["score_head.weight"] = weights.pop("score.weight")
    if bias:
        weights["score_head.bias"] = torch.tensor([0.75])
    weights["normalizer.mean"] = torch.tensor([5.0])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaModelForScore"], "score_dim": 1}
    (folder / "config.json").write_text(json.dumps(config))
    scorer = ClassifierScorer.load(ModelSettings(path=str(folder)))
    head = weights["score_head.weight"]
    model = LlamaForSequenceClassification.from_pretrained(folder).model.eval()
    for text in TEXTS:
        written = f"<|endoftext|>BEGINNING OF CONVERSATION: USER: {ASK[0]['content']} ASSISTANT:{text}<|endoftext|>"
        ids = tiny_tokenizer()(written, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]
        # The end of the text is what is read, although it is this tokenizer's pad token, too.
        want = float(hidden[-1] @ head[0]) + (0.75 if bias else 0.0)
        assert scores(scorer, [text]) == pytest.approx([want], abs=1e-4)
    assert ClassifierScorer.load(ModelSettings(path=str(folder)), weights=False).name.startswith("classifier:")


def test_a_judge_s_harm_becomes_a_cost_whose_line_is_at_zero() -> None:
    judge = CallableJudge(lambda messages, text: len(text) / 100)
    assert scores(JudgeScorer(judge, max_harm=0.1)) == pytest.approx([len(text) / 100 - 0.1 for text in TEXTS])
    with pytest.raises(UserError, match="max_harm"):
        JudgeScorer(judge, max_harm=1.0)


def test_functions_of_other_code_have_other_settings() -> None:
    ones = [CallableScorer(lambda m, text: 1.0), CallableScorer(lambda m, text: 2.0)]
    assert len({one.name for one in ones}) == 1
    assert ones[0].settings != ones[1].settings
    assert ones[0].settings == CallableScorer(lambda m, text: 1.0).settings


def test_functions_score_awaited_or_not_and_their_errors_are_named() -> None:
    async def slow(messages: Messages, text: str) -> float:
        await asyncio.sleep(0)
        return float(len(text))

    assert scores(CallableScorer(slow)) == [float(len(text)) for text in TEXTS]
    assert scores(CallableScorer(lambda messages, text: -3)) == [-3.0] * 3

    def broken(messages: Messages, text: str) -> float:
        raise KeyError("weights")

    with pytest.raises(DefenseError, match="broken failed with KeyError"):
        scores(CallableScorer(broken))


@pytest.fixture
def served() -> Iterator[tuple[str, list[Any]]]:
    """A scorer over HTTP that can be told what to answer: functions of the request, each used once."""
    answers: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = answers.pop(0)(request) if answers else {"scores": [float(len(t)) for t in request["responses"]]}
            moved = answer == "moved"
            self.send_response(302 if moved else 200 if answer is not None else 500)
            if moved:
                self.send_header("Location", self.path)
            if answer == "cut":
                self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"scores": [-9.0] * len(TEXTS)}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score?key=secret", answers
    server.shutdown()
    server.server_close()


def test_a_remote_scorer_is_asked_once_more_and_says_what_is_wrong(served: tuple[str, list[Any]]) -> None:
    url, answers = served
    scorer = RemoteScorer(url, timeout=5)
    assert scores(scorer) == [float(len(text)) for text in TEXTS]
    answers.append(lambda request: None)
    assert scores(scorer) == [float(len(text)) for text in TEXTS]
    answers.extend([lambda request: None, lambda request: {"wrong": 1}])
    with pytest.raises(DefenseError, match="gave no scores") as caught:
        scores(scorer)
    assert "secret" not in str(caught.value) + scorer.name
    for failure in ("cut", "moved"):
        answers.append(lambda request, failure=failure: failure)
        assert scores(scorer) == [float(len(text)) for text in TEXTS]
        answers.extend([lambda request, failure=failure: failure] * 2)
        with pytest.raises(DefenseError, match="gave no scores") as caught:
            scores(scorer)
        assert "secret" not in str(caught.value)
    answers.append(lambda request: {"scores": [1.0]})
    with pytest.raises(DefenseError, match="1 scores for 3 texts"):
        scores(scorer)
    assert scores(scorer, []) == []


@pytest.fixture
def dripping() -> Iterator[tuple[str, list[float]]]:
    """An address at which an answer begins at once and a byte follows every 0.05 seconds, and when it was asked."""
    asked: list[float] = []
    going = [True]

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(time.monotonic())
        with suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
            while going:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(drip, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", asked

    async def end() -> None:
        server.close()
        going.clear()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_one_deadline_holds_for_the_whole_call_of_a_remote_scorer(dripping: tuple[str, list[float]]) -> None:
    """A byte within every read's own time limit would keep a call for hours."""
    url, asked = dripping
    began = time.monotonic()
    with pytest.raises(DefenseError, match="gave no scores \\(nothing within 0.4 seconds\\): check that it runs"):
        scores(RemoteScorer(url, timeout=0.4, retries=5))
    assert 0.35 < time.monotonic() - began < 20
    assert len(asked) == 1


@pytest.mark.parametrize("wrong", ["7", 10**400, {"0": 1.0}, ["1.0"]])
def test_a_remote_score_that_is_no_list_of_numbers_is_an_error(served: tuple[str, list[Any]], wrong: object) -> None:
    url, answers = served
    answers.append(lambda request: {"scores": [wrong] * 3 if isinstance(wrong, int) else wrong})
    with pytest.raises(DefenseError, match="gave no scores"):
        scores(RemoteScorer(url, timeout=5, retries=0))


def test_a_remote_scorer_s_retries_share_the_deadline(served: tuple[str, list[Any]]) -> None:
    url, answers = served

    def slow(request: Any) -> None:
        time.sleep(0.25)

    answers.extend([slow] * 20)
    began = time.monotonic()
    with pytest.raises(DefenseError, match="nothing within 0.6 seconds"):
        scores(RemoteScorer(url, timeout=0.6, retries=20))
    assert time.monotonic() - began < 4  # twenty calls of a quarter of a second
    assert 1 <= 20 - len(answers) <= 3


def test_calls_of_a_remote_scorer_wait_side_by_side(dripping: tuple[str, list[float]]) -> None:
    url, asked = dripping
    scorer = RemoteScorer(url, timeout=0.5)

    async def together() -> list[Any]:
        return await asyncio.gather(*(scorer(ASK, TEXTS) for _ in range(40)), return_exceptions=True)

    began = time.monotonic()
    assert all(isinstance(one, DefenseError) for one in asyncio.run(together()))
    assert time.monotonic() - began < 10  # one after the other it would be twenty
    assert len(asked) == 40


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("localhost:8000", "file:///etc/passwd", "", "http://localhost:abc/x", "http://[::1", "http://:80",
                "http://localhost/a b"):  # fmt: skip
        with pytest.raises(UserError, match="no address"):
            RemoteScorer(url)
    with pytest.raises(UserError, match="timeout above 0"):
        RemoteScorer("http://localhost", timeout=0)
    with pytest.raises(UserError, match="timeout above 0"):
        RemoteScorer("http://localhost", timeout=float("nan"))


def below(limit: float) -> Any:
    return lambda messages, text: len(text) - limit


class Weighed:
    def __init__(self, weight: float) -> None:
        self.weight, self.log = weight, list[str]()

    def __call__(self, messages: Messages, text: str) -> float:
        self.log.append(text)
        return self.weight * len(text)


def scaled(messages: Messages, text: str, factor: float = 1.0) -> float:
    return factor * len(text)


def squared(messages: Messages, text: str, factor: float = 1.0) -> float:
    return factor * len(text) ** 2


def test_functions_that_hold_other_values_are_other_scorers_and_equal_ones_are_equal() -> None:
    makers: list[Callable[[], Any]] = [
        lambda: below(0), lambda: below(0.5), lambda: Weighed(1), lambda: Weighed(2), lambda: scaled, lambda: squared,
        lambda: partial(scaled, factor=2.0), lambda: partial(scaled, factor=3.0), lambda: partial(squared, factor=2.0),
        lambda: Weighed(2).__call__, lambda: Weighed(3).__call__,
    ]  # fmt: skip
    known = [CallableScorer(make(), name="one").settings for make in makers]
    assert [CallableScorer(make(), name="one").settings for make in makers] == known
    assert len({str(one) for one in known}) == len(makers)


def test_what_a_scorer_notes_of_its_work_does_not_make_it_another() -> None:
    scorer = CallableScorer(Weighed(1))
    before = scorer.settings
    assert asyncio.run(scorer([{"role": "user", "content": "x"}], ["ab"])) == [2.0]
    assert scorer.settings == before


def test_without_httpx_a_remote_scorer_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"^A remote scorer needs httpx: pip install 'anchorlm\[endpoint\]'\.$"):
        RemoteScorer("http://localhost:1/score")
