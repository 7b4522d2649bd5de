from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.browser import CHROMIUM, Browser
from serving.servers import LIMITS, Live

from anchorlm.guard import Guard
from anchorlm.serving import ModelServing, ServedModel, new_key
from anchorlm.serving.http._shapes import Shape

PAGES = ("playground.html", "docs.html")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium")


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_ask_nobody_else_for_anything(page: str) -> None:
    text = files("anchorlm.serving").joinpath(page).read_text("utf-8")
    assert not re.findall(r"https?://|@import|url\(|//cdn", text)


def test_the_pages_are_served_under_a_policy_that_forbids_it(live: Live) -> None:
    for path in ("/", "/docs"):
        answer = httpx.get(f"{live.url}{path}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.fixture(scope="module")
def page(
    start_live: Callable[..., Live],
    make_guard: Callable[..., Guard],
    plain: Guard,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Browser]:
    live = start_live(
        [ServedModel.of("guarded", make_guard(), ModelServing(limits=LIMITS)), ServedModel.of("plain", plain)]
    )
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(live.url)
        browser.wait("document.querySelectorAll('[data-knob]').length === 3")
        yield browser
        assert not browser.problems
        assert all(url.startswith(("http://127.0.0.1:", "data:", "about:")) for url in browser.requests)


def ask(page: Browser, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter")
    page.wait("!document.getElementById('send').disabled && document.getElementById('left-badge').textContent !== ''"
              " && document.querySelectorAll('#left-log .assistant').length > 0")  # fmt: skip


@needs_browser
def test_a_question_is_answered_on_both_sides_and_the_decision_shown(
    page: Browser, make_guard: Callable[..., Guard], plain: Guard
) -> None:
    ask(page, "bake bread")
    turns = [{"role": "user", "content": "bake bread"}]
    expected = make_guard().chat(turns)
    said = "[...document.querySelectorAll('#{}-log .assistant span:last-child')].at(-1).textContent"
    assert page.run(said.format("left")) == expected.text
    assert page.run(said.format("right")) == plain.chat(turns).text
    assert page.run("document.getElementById('left-badge').textContent") == "answered"
    assert page.run("document.querySelectorAll('#candidates tr').length") == 1 + 2
    assert page.run("document.querySelectorAll('#candidates tr.chosen').length") == 1
    assert page.run("document.querySelectorAll('#tokens .token').length") == 2
    assert page.run("document.getElementById('why-note').textContent").startswith("alignbeam: answered")


@needs_browser
def test_the_slider_moves_by_keyboard_and_changes_the_answer(page: Browser, make_guard: Callable[..., Guard]) -> None:
    page.run("document.getElementById('clear').click()")
    page.run("document.getElementById('knob-alpha').focus()")
    page.press("Home")
    assert page.run("document.querySelector('output[for=knob-alpha]').textContent") == "0.3"
    ask(page, "bake bread")
    trace = page.run("JSON.parse(document.getElementById('trace').textContent)")
    assert next(step for step in trace if step["kind"] == "mix")["steps"][0]["weight"] == 0.3
    expected = make_guard().chat([{"role": "user", "content": "bake bread"}], knobs={"alpha": 0.3})
    assert page.run("document.querySelector('#left-log .assistant span:last-child').textContent") == expected.text


@needs_browser
def test_gates_and_budgets_of_other_defenses_are_drawn(page: Browser) -> None:
    told: dict[str, Any] = {"defense": "inferaligner", "decision": "answer", "request_id": "0123456789"}
    told |= {"chosen": None, "scores": None}
    told["gate"] = {"open": True, "score": 1.25, "threshold": 0.1}
    told["trace"] = [{"kind": "draft", "least cost": 2.0, "responses": [{"text": "<b>no</b>", "cost": 2.0}]}]
    told["trace"] += [{"kind": "search", "least cost": -1.0, "responses": [{"text": "yes", "cost": -1.0}]}]
    told["trace"] += [{"kind": "chosen", "limit": 0.5}]
    page.run(f"explain({json.dumps(told)})")
    assert page.run("document.getElementById('gate-words').textContent") == (
        "Open: the prompt looks harmful (value 1.25, threshold 0.10)."
    )
    left = "parseFloat(document.querySelector('#meter {}').style.{})"
    assert page.run(left.format(".value", "width")) > page.run(left.format(".mark", "left")) > 50
    words = page.run("document.querySelector('#budget svg').getAttribute('aria-label')")
    assert words.endswith("2.00, -1.00; at most 0.50 may be said")
    assert page.run("document.querySelectorAll('#budget circle').length") == 2
    assert page.run("document.querySelector('#candidates td').textContent") == "yes"


@needs_browser
def test_everything_that_can_be_used_has_a_name_and_the_keyboard_reaches_it(page: Browser) -> None:
    nameless = page.run(
        "[...document.querySelectorAll('button,select,input,textarea')].filter(x => x.offsetParent)"
        ".filter(x => !(x.textContent.trim() && x.tagName === 'BUTTON') && !x.getAttribute('aria-label')"
        " && !(x.labels && x.labels.length)).map(x => x.outerHTML)"
    )
    assert nameless == []
    page.run("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.press("Tab")
        reached.add(page.run("document.activeElement.id"))
    assert {"left-model", "right-model", "left-log", "prompt", "send", "knob-alpha"} <= reached


@needs_browser
def test_the_page_can_be_photographed_in_both_schemes(page: Browser, tmp_path: Path) -> None:
    colors = set()
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / f"{scheme}.png").stat().st_size > 10_000
        colors.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2


@needs_browser
def test_a_screen_reader_hears_conversations_states_and_one_sentence_of_the_decision(page: Browser) -> None:
    live = "[...document.querySelectorAll('[aria-live],[role=status],[role=alert]')].map((x) => x.id).sort()"
    assert page.run(live) == ["left-badge", "left-log", "note", "right-badge", "right-log", "why-note"]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_darkest_token_can_be_read_in_both_schemes(page: Browser, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    told = {"defense": "alignbeam", "decision": "answer", "request_id": "0123456789", "chosen": 0, "scores": [0.0]}
    step = {"weight": 1.0, "mixture": [["bread", 1.0]], "anchor": [["bread", 1.0]]}
    told["trace"] = [{"kind": "mix", "candidate": 0, "steps": [step]}]
    page.run(f"explain({json.dumps(told)})")
    assert "100.0 %" in page.run("document.querySelector('#tokens .token').title")
    style = "getComputedStyle(document.querySelector('#tokens .token')).{}"
    ink, ground = (luminance(page.run(style.format(name))) for name in ("color", "backgroundColor"))
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5


def luminance(color: str) -> float:
    """As WCAG defines it, of `rgb(255 ...)` or of `color(srgb 1 ...)`."""
    parts = [float(part) / (1 if "srgb" in color else 255) for part in re.findall(r"[\d.]+", color)][:3]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


class Patient:
    """A judge that says nothing until it is let."""

    def __init__(self) -> None:
        self.free = True
        self.asked = 0

    async def judge(self, messages: Any, response: str) -> float:
        self.asked += 1
        while not self.free:
            await asyncio.sleep(0.01)
        return 0.0


@pytest.fixture(scope="module")
def patient() -> Patient:
    return Patient()


@pytest.fixture(scope="module")
def slow(start_live: Callable[..., Live], make_guard: Callable[..., Guard], plain: Guard, patient: Patient) -> Live:
    return start_live([ServedModel.of("guarded", make_guard(patient.judge)), ServedModel.of("plain", plain)])


@pytest.fixture
def waiting(page: Browser, slow: Live, patient: Patient) -> Iterator[Browser]:
    """A page that waits for its left model, while the right one has answered."""
    page.open(slow.url)
    page.wait("document.getElementById('left-model').value === 'guarded'")
    patient.free, before = False, patient.asked
    page.run("document.getElementById('prompt').focus()")
    page.type("bake bread")
    page.press("Enter")
    page.wait("document.getElementById('right-badge').textContent === 'answered'")
    slow.wait(lambda: patient.asked > before)
    yield page
    patient.free = True
    slow.wait(lambda: not slow.state.admission.running)


def text(page: Browser, id: str) -> str:
    return str(page.run(f"document.getElementById('{id}').textContent"))


BUSY = "['left', 'right'].map((side) => document.getElementById(side + '-log').getAttribute('aria-busy')).join()"


@needs_browser
def test_stop_ends_what_runs_and_leaves_the_rest(waiting: Browser, slow: Live) -> None:
    assert waiting.run(BUSY) == "true,false"
    assert text(waiting, "left-badge") == "deciding…"
    waiting.run("document.getElementById('stop').click()")
    waiting.wait("document.getElementById('left-badge').textContent === 'stopped'")
    assert waiting.run(BUSY) == "false,false"
    assert text(waiting, "right-badge") == "answered"
    assert waiting.run("[histories.left.length, histories.right.length]") == [0, 2]
    assert waiting.run("[document.getElementById('send').disabled, document.getElementById('stop').disabled]") == [
        False,
        True,
    ]
    slow.wait(lambda: not slow.state.admission.running)


@needs_browser
@pytest.mark.parametrize("change", ["clear", "model"])
def test_a_late_answer_does_not_land_in_a_new_conversation(
    waiting: Browser, slow: Live, patient: Patient, change: str
) -> None:
    waiting.run(
        "document.getElementById('clear').click()"
        if change == "clear"
        else "document.getElementById('right-model').dispatchEvent(new Event('change'))"
    )
    slow.wait(lambda: not slow.state.admission.running)
    patient.free = True
    assert waiting.run(BUSY) == "false,false"
    ask(waiting, "and butter")
    assert waiting.run("document.querySelectorAll('.turn').length") == 4
    kept = "histories.left.map((turn) => turn.role + ': ' + turn.content.slice(0, 10))"
    assert waiting.run(kept)[0] == "user: and butter"
    assert waiting.run("[histories.left.length, histories.right.length]") == [2, 2]
    assert text(waiting, "left-badge") == "answered"
    assert text(waiting, "note") == ""


@needs_browser
def test_a_stream_that_ends_too_early_is_an_error_that_is_told(
    page: Browser, slow: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def brief(self: Shape, **wanted: bool) -> AsyncIterator[dict[str, str]]:
        yield {"data": "[DONE]"}

    page.open(slow.url)
    page.wait("document.getElementById('left-model').value === 'guarded'")
    with monkeypatch.context() as patch:
        patch.setattr(Shape, "events", brief)
        ask(page, "bake bread")
    assert text(page, "note") == "The answer broke off before its end: ask again."
    assert text(page, "left-badge") == text(page, "right-badge") == "error"
    assert page.run(BUSY) == "false,false"
    assert page.run("histories.left.length") == 0


@needs_browser
def test_a_key_is_asked_for_and_a_wrong_one_is_told(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "keys.toml", "alice")
    live = start_live([ServedModel.of("plain", plain)], keys=tmp_path / "keys.toml")

    def give(key: str) -> None:
        browser.run("document.getElementById('key').value = ''; document.getElementById('key').focus()")
        browser.type(key)
        browser.press("Enter")

    with Browser(tmp_path / "profile") as browser:
        browser.open(live.url)
        browser.wait("!document.getElementById('gate').classList.contains('hidden')")
        assert text(browser, "note") == ""
        for wrong in ("alm-wrong", "ключ"):
            give(wrong)
            browser.wait("document.getElementById('note').textContent.includes('does not know this key')")
            browser.run("note('')")
        give(f" {key} ")
        browser.wait("document.getElementById('gate').classList.contains('hidden')")
        browser.wait("document.getElementById('left-model').value === 'plain'")
        assert text(browser, "note") == ""
        ask(browser, "bake bread")
        assert text(browser, "left-badge") == "answered"
        live.stop()
        browser.run("load()")
        assert text(browser, "note").startswith("The server does not answer")
        assert all("401" in problem or "ERR_CONNECTION" in problem for problem in browser.problems)


@pytest.fixture
def told_page(page: Browser, slow: Live, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """A page where whatever a model says is a refusal in its own words."""
    monkeypatch.setattr("anchorlm.serving.session._answers.RefusalMatcher.is_refusal", lambda self, text: True)
    page.open(slow.url)
    page.wait("document.getElementById('left-model').value === 'guarded'")
    return page


@needs_browser
def test_a_refusal_that_a_candidate_won_does_not_look_like_an_answer(told_page: Browser) -> None:
    ask(told_page, "bake bread")
    for side in ("left", "right"):
        assert text(told_page, f"{side}-badge").startswith("refused")
        assert told_page.run(f"document.getElementById('{side}-badge').className") == "badge refusal"
    assert "refusal" in text(told_page, "why-note")


@needs_browser
def test_an_example_starts_a_conversation_of_its_own(page: Browser, slow: Live) -> None:
    page.open(slow.url)
    page.wait("document.querySelectorAll('#examples button').length > 0")
    ask(page, "bake bread")
    page.run("document.querySelector('#examples button').click()")
    assert page.run("[histories.left.length, histories.right.length]") == [0, 0]
    assert page.run("document.querySelectorAll('.turn').length") == 0
    assert page.run("document.getElementById('prompt').value") != ""


@needs_browser
def test_panes_keep_their_places_and_show_the_end_of_what_comes(page: Browser, slow: Live) -> None:
    page.open(slow.url)
    page.wait("document.getElementById('left-model').value === 'guarded'")
    places = (
        "JSON.stringify([...document.querySelectorAll('.pane, .pane .log, #ask')]"
        ".map((one) => one.getBoundingClientRect()).map((box) => [box.x, box.y, box.width, box.height]))"
    )
    before = page.run(places)
    page.run(
        "window.moved = 0; setInterval(() => { window.moved += " + places + f" !== {json.dumps(before)}" + " }, 5)"
    )
    for number in range(4):
        ask(page, f"bake bread {number}")
    assert page.run("window.moved") == 0
    end = "(() => {{ const log = document.getElementById('{}-log'); return log.scrollHeight - log.scrollTop - log.clientHeight }})()"  # noqa: E501
    assert page.run(
        "document.getElementById('left-log').scrollHeight > document.getElementById('left-log').clientHeight"
    )
    assert abs(page.run(end.format("left"))) < 3
    assert page.run("window.scrollY") == 0
    page.run("document.getElementById('left-log').scrollTop = 0; follow('left', () => {})")
    assert page.run("document.getElementById('left-log').scrollTop") == 0, "whoever reads what is above is left there"


@needs_browser
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_narrow_page_is_not_scrolled_sideways(page: Browser, slow: Live, path: str) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=False)
    try:
        page.open(slow.url + path)
        if path == "/":
            page.wait("document.getElementById('left-model').value === 'guarded'")
            ask(page, "bake bread " + "w" * 200)
        else:
            page.wait("document.querySelectorAll('table').length > 1")
        assert page.run("document.documentElement.scrollWidth") <= 320
        wide = "[...document.querySelectorAll('main *')].filter((one) => one.getBoundingClientRect().right > 320.5)"
        assert page.run(f"{wide}.map((one) => one.tagName + '#' + one.id)") == []
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
