from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokens.conftest import SMALL, small_tokenizer, small_vocabulary
from torch import Tensor

from anchorlm.records import UserError
from anchorlm.tokens import ByteVocabulary, Kind, Projection, Retokenizer

NAMES = [*SMALL, "wordpiece"]
PAIRS = [(one, other) for one in NAMES for other in NAMES if one != other]
KINDS: tuple[Kind, ...] = ("first-token", "lookahead", "paper-drop", "paper-first", "paper-exact")


def distributions(size: int, rows: int = 2, seed: int = 0) -> Tensor:
    return (3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def naive_first_token(anchor: ByteVocabulary, target: ByteVocabulary, row: Tensor) -> Tensor:
    found = torch.zeros(target.size)
    for index, mass in enumerate(row.tolist()):
        if index in anchor.stop:
            turn = index in anchor.end_of_turn or not anchor.end_of_turn
            ids = sorted(target.end_of_turn if turn and target.end_of_turn else target.eos)
            found[ids[0]] += mass
        elif mass and anchor.token_bytes(index):
            first = target.encode(anchor.token_bytes(index))[:1]
            if first and first[0] not in target.special:
                found[first[0]] += mass
    return found / found.sum()


def naive_paper(anchor: Tokenizer, target: Tokenizer, row: Tensor, kind: str, top: int) -> Tensor:
    """The paper's loop: decode the top B, encode each, skip or cut what splits, renormalize."""
    read, found = ByteVocabulary.from_tokenizer(anchor), torch.zeros(target.get_vocab_size())
    known = ByteVocabulary.from_tokenizer(target)
    for index in row.topk(top).indices.tolist():
        if index in read.stop:
            found[known.stop_id] += row[index]
        if index in read.special:
            continue
        text = anchor.decode([index], skip_special_tokens=False)
        ids = target.encode(text, add_special_tokens=False).ids
        if not ids or ids[0] in known.special:
            continue
        same = len(ids) == 1 and (kind == "paper-drop" or target.decode(ids, skip_special_tokens=False) == text)
        if kind == "paper-first" or same:
            found[ids[0]] += row[index]
    return found / found.sum()


def test_roles_that_differ_leave_every_other_token_as_it_is() -> None:
    tokenizer = small_tokenizer("byte-level")
    base = ByteVocabulary.from_tokenizer(tokenizer)
    token = max(base.bytes.index(data) for data in base.bytes if len(data) > 2)
    chat = ByteVocabulary.from_tokenizer(tokenizer, stop_ids=[token])
    probs = distributions(base.size)
    probs[:, [token, *base.special]] = 0
    probs /= probs.sum(-1, keepdim=True)
    torch.testing.assert_close(Projection.build(base, chat)(probs), probs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_first_token_is_what_encoding_every_token_gives(one: str, other: str) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    probs = distributions(anchor.size)
    found = Projection.build(anchor, target)(probs)
    for row, got in zip(probs, found, strict=True):
        torch.testing.assert_close(got, naive_first_token(anchor, target, row), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS[2:])
@pytest.mark.parametrize(("one", "other"), [pair for pair in PAIRS if "wordpiece" not in pair])
def test_the_papers_kinds_are_its_loop_of_decoding_and_encoding(one: str, other: str, kind: Kind) -> None:
    anchor, target = small_tokenizer(one), small_tokenizer(other)
    probs = distributions(anchor.get_vocab_size(), rows=3)
    found = Projection.build(anchor, target, kind, top=20)(probs)
    for row, got in zip(probs, found, strict=True):
        torch.testing.assert_close(got, naive_paper(anchor, target, row, kind, 20), atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_mass_is_conserved_on_every_pair(one: str, other: str, kind: Kind) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    projection = Projection.build(anchor, target, kind, anchor_size=anchor.size + 7, target_size=target.size + 64)
    probs = distributions(anchor.size + 7)
    expanded = projection.lookahead_candidates(probs, floor=0.0)
    found = projection(probs, expanded, distributions(anchor.size + 7, rows=len(expanded), seed=1))
    lost = found.isnan().all(-1)  # the paper's may drop all of its top B
    assert not (lost.any() and kind in KINDS[:2])
    found = found[~lost]
    torch.testing.assert_close(found.sum(-1), torch.ones(len(found)), atol=1e-5, rtol=0)
    assert bool((found >= 0).all())
    assert not found[:, target.size :].any()
    unwanted = sorted(target.special - target.stop)
    assert not found[:, unwanted].any()


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_vocabulary_keeps_the_distribution(name: str, kind: Kind) -> None:
    read = small_vocabulary(name)
    probs = distributions(read.size)
    projection = Projection.build(read, ByteVocabulary.from_tokenizer(small_tokenizer(name)), kind)
    assert not len(projection.lookahead_candidates(probs))
    torch.testing.assert_close(projection(probs), probs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("one", "other"), [("unigram", "byte-level"), ("byte-level", "sentencepiece")])
def test_looking_ahead_sends_each_expanded_token_where_the_two_together_go(one: str, other: str) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    projection = Projection.build(anchor, target, "lookahead")
    probs = distributions(anchor.size, rows=1)
    expanded = projection.lookahead_candidates(probs, width=4, floor=0.0)
    further = distributions(anchor.size, rows=len(expanded), seed=2)
    naive = torch.zeros(target.size)
    chosen = dict(zip(expanded[:, 1].tolist(), further, strict=True))
    for index, mass in enumerate(probs[0].tolist()):
        one_row = torch.zeros(anchor.size)
        one_row[index] = 1
        alone = naive_first_token(anchor, target, one_row)
        if index not in chosen:
            naive += mass * alone.nan_to_num(0)
            continue
        both = target.encode_batch([anchor.token_bytes(index) + data for data in anchor.bytes])
        for after, share in enumerate(chosen[index].tolist()):
            if after in anchor.stop:
                naive[int(alone.argmax())] += mass * share
            elif both[after] and after not in anchor.special:
                naive[both[after][0]] += mass * share
    torch.testing.assert_close(projection(probs, expanded, further)[0], naive / naive.sum(), atol=1e-3, rtol=0)


def test_the_bare_word_boundary_of_unigram_is_looked_beyond() -> None:
    anchor, target = small_vocabulary("unigram"), small_vocabulary("byte-level")
    boundary = small_tokenizer("unigram").token_to_id("▁")
    probs = torch.full((1, anchor.size), 1e-4)
    probs[0, boundary] = 1
    probs /= probs.sum()
    candidates = Projection.build(anchor, target, "lookahead").lookahead_candidates(probs)
    assert candidates.tolist() == [[0, boundary]]


@pytest.mark.parametrize(
    ("text", "one", "other"), [(b" refuse", "byte-level", "unigram"), (b"I", "unigram", "byte-level")]
)
def test_spaces_and_first_words_go_to_tokens_that_write_the_same(text: bytes, one: str, other: str) -> None:
    anchor, target = small_vocabulary(one), small_vocabulary(other)
    projection = Projection.build(anchor, target)
    probs = torch.zeros(1, anchor.size)
    probs[0, anchor.encode(text)[0]] = 1
    written = target.token_bytes(int(projection(probs)[0].argmax()))
    assert text.startswith(written)


def test_ends_go_by_role_and_other_special_tokens_give_their_mass_away() -> None:
    anchor, target = small_vocabulary("byte-level"), small_vocabulary("unigram")
    projection = Projection.build(anchor, target)
    probs = torch.zeros(1, anchor.size)
    probs[0, sorted(anchor.eos)] = 0.2
    probs[0, sorted(anchor.end_of_turn)] = 0.2
    probs[0, sorted(anchor.other)] = 0.5
    probs[0, anchor.encode(b"I")[0]] = 0.1
    found = projection(probs)[0]
    assert float(found[sorted(target.eos)].sum()) == pytest.approx(0.4)
    assert float(found[sorted(target.end_of_turn)].sum()) == pytest.approx(0.4)
    assert projection.report(probs).dropped == pytest.approx(0.5)
    only_eos = Projection.build(small_vocabulary("sentencepiece"), target)
    ends = torch.zeros(1, only_eos.anchor_size)
    ends[0, sorted(only_eos.anchor.eos)] = 1
    assert float(only_eos(ends)[0, sorted(target.end_of_turn)]) == pytest.approx(1)


def test_a_row_without_any_mass_that_can_be_carried_is_not_a_distribution() -> None:
    anchor = small_vocabulary("byte-level")
    probs = torch.zeros(1, anchor.size)
    probs[0, sorted(anchor.other)] = 1
    assert bool(Projection.build(anchor, small_vocabulary("unigram"))(probs).isnan().all())


def test_the_report_counts_tokens_and_weighs_mass() -> None:
    anchor, target = small_vocabulary("byte-level"), small_vocabulary("unigram")
    projection = Projection.build(anchor, target)
    counted = projection.report()
    naive = [len(target.encode(data)) for data in anchor.bytes if data]
    assert counted.split == pytest.approx(sum(n > 1 for n in naive) / anchor.size)
    assert counted.one_to_one + counted.split + counted.dropped == pytest.approx(1)
    sure = torch.zeros(1, anchor.size)
    sure[0, next(i for i, data in enumerate(anchor.bytes) if data and len(target.encode(data)) > 1)] = 1
    assert projection.report(sure).split == pytest.approx(1)


def test_pending_bytes_sum_over_the_ways_in_which_they_may_have_come_about() -> None:
    anchor, target = small_vocabulary("byte-level"), small_vocabulary("unigram")
    projection = Projection.build(anchor, target)
    encoded = Retokenizer(anchor).encode(b" re")
    assert encoded.tail
    steps = distributions(anchor.size, rows=len(encoded.tail) + 1)
    naive = torch.zeros(target.size)
    written = target.encode(b" re")
    weight = 1.0
    for n, row in enumerate(steps):
        rest = b"".join(anchor.token_bytes(i) for i in encoded.tail[n:])
        for index, data in enumerate(anchor.bytes):
            ids = target.encode(b" re" + data[len(rest) :])
            if data.startswith(rest) and data != rest and ids[: len(written)] == written:
                naive[ids[len(written)]] += weight * row[index]
            elif index in anchor.stop and not rest:
                naive += weight * row[index] * naive_first_token(anchor, target, torch.eye(anchor.size)[index])
        weight *= float(row[encoded.tail[n]]) if rest else 1.0
    torch.testing.assert_close(projection.project_pending(steps, encoded), naive / naive.sum(), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="one more is needed"):
        projection.project_pending(steps[:1], encoded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_gives_the_same_and_mends_itself(kind: Kind, tmp_path: Path) -> None:
    anchor, target = small_vocabulary("unigram"), small_vocabulary("byte-level")
    probs = distributions(anchor.size)
    built = Projection.build(anchor, target, kind, cache_dir=tmp_path)(probs)
    (file,) = (tmp_path / "projections").iterdir()
    whole = file.read_bytes()
    for damaged in (whole, whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(damaged)
        assert torch.equal(Projection.build(anchor, target, kind, cache_dir=tmp_path)(probs), built)
        assert file.read_bytes() == whole


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHORLM_CACHE", str(tmp_path / "here"))
    Projection.build(small_vocabulary("unigram"), small_vocabulary("byte-level"))
    assert len(list((tmp_path / "here" / "projections").glob("*.safetensors"))) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    anchor, target = small_vocabulary("unigram"), small_vocabulary("byte-level")
    projection = Projection.build(anchor, target, cache_dir=tmp_path / "file")
    assert float(projection(distributions(anchor.size)).sum()) == pytest.approx(2)


def only(*words: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(("[UNK]", *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def test_mistakes_are_named_in_one_sentence() -> None:
    anchor, target = small_vocabulary("unigram"), small_vocabulary("byte-level")
    with pytest.raises(UserError, match="share nothing"):
        Projection.build(only("你", "好"), only("hello"))
    with pytest.raises(UserError, match="first-token"):
        Projection.build(anchor, target, "paper")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="anchor_size=3"):
        Projection.build(anchor, target, anchor_size=3)
    with pytest.raises(UserError, match="build it with anchor_size=5"):
        Projection.build(anchor, target)(torch.ones(1, 5) / 5)


@pytest.mark.parametrize(("one", "other"), [("llama2", "gpt2"), ("gpt-neox", "mistral")])
def test_real_pairs_conserve_mass_and_keep_words_whole(
    one: str, other: str, real_vocabularies: dict[str, ByteVocabulary]
) -> None:
    anchor, target = real_vocabularies[one], real_vocabularies[other]
    for kind in KINDS[: 2 if one == "llama2" else 1]:
        projection = Projection.build(anchor, target, kind)
        probs = distributions(anchor.size)
        expanded = projection.lookahead_candidates(probs, floor=0.0)
        found = projection(probs, expanded, distributions(anchor.size, rows=len(expanded), seed=1))
        torch.testing.assert_close(found.sum(-1), torch.ones(2), atol=1e-5, rtol=0)
        for word in (b" the", b" I", b"I", b"\n"):
            sure = torch.zeros(1, anchor.size)
            (token,) = anchor.encode(word)
            sure[0, token] = 1
            assert target.token_bytes(int(projection(sure)[0].argmax())) == word


def test_what_a_response_goes_on_with_does_not_depend_on_what_others_asked_in_the_same_place() -> None:
    """Tokens that others needed there are known by then, and may be far below what matters here."""
    anchor = ByteVocabulary.from_tokenizer(tiny_tokenizer(420, text="Sorry, I cannot help you with that request. "))
    target = ByteVocabulary.from_tokenizer(tiny_tokenizer(380))
    used = Projection.build(anchor, target)
    for response in (b"Sorry, I c", b"brown fo", b"How do ", b"th"):
        encoded = Retokenizer(anchor).encode(response)
        count = 1 + len(encoded.tail)
        used.project_pending(torch.full((count, anchor.size), 1 / anchor.size), encoded)  # every token matters
        steps = torch.full((count, anchor.size), 0.9e-5)  # none does but one
        steps[:, list(anchor.encode(b"e"))] = 1 - 0.9e-5 * (anchor.size - 1)
        fresh = Projection.build(anchor, target).project_pending(steps, encoded)
        assert torch.allclose(used.project_pending(steps, encoded), fresh, rtol=0, atol=1e-6)
