from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anchorlm.serving.session._stops import StopText

texts = st.text("ab\n", max_size=30)


@given(st.lists(texts, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_what_goes_out_is_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    stream = StopText(stops)
    said = "".join(map(stream.feed, pieces)) + stream.flush()
    # The oracle reads letter by letter, as a client that stops by itself would.
    seen = ""
    for letter in "".join(pieces):
        seen += letter
        ended = [stop for stop in stops if seen.endswith(stop)]
        if ended:
            seen = seen[: len(seen) - max(map(len, ended))]
            break
    else:
        ended = []
    assert stream.hit == bool(ended)
    assert said == seen


@given(st.lists(texts, max_size=8))
def test_nothing_is_held_back_that_cannot_begin_a_stop(pieces: list[str]) -> None:
    stream = StopText(["xyz"])
    assert "".join(map(stream.feed, pieces)) == "".join(pieces)


def test_a_refusal_is_said_to_its_end() -> None:
    stream = StopText(["can't"])
    stream.off()
    assert stream.feed("I can't help.") == "I can't help."
