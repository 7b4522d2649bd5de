from __future__ import annotations

import random
import re

import pytest

from anchorlm.zoo import DOMAINS, PARTITIONS, SPLITS, items
from anchorlm.zoo._lexicon import (
    complaints,
    draw_deed,
    kinds,
    metrics,
    nouns,
    owner,
    patterns,
    slots,
    sums,
    templates,
    verbs,
)
from tools.zoo._corpus import (
    base_mixture,
    chat_mixture,
    finishing_mixture,
    replay,
    specialist_mixture,
    vocabulary_texts,
)
from tools.zoo._examples import REFUSALS, Mixture, Source, draw
from tools.zoo._facts import (
    class_facts,
    domain_dialogue,
    domain_facts,
    explained,
    explained_loosely,
    harm_dialogue,
    harm_facts,
    intent_facts,
    judged,
    long,
    persona,
)
from tools.zoo._transcripts import transcript

MIXTURES: dict[str, Mixture] = {
    "base, start": base_mixture(0.0, tasks=True),
    "base, end": base_mixture(1.0, tasks=True),
    "base, last part": finishing_mixture(tasks=True),
    "chat": chat_mixture(0.18, frames=0.1, jailbreaks=0.1, tasks=0.2),
    **{domain: specialist_mixture(domain) for domain in DOMAINS},
}


FACTS = {
    class_facts, domain_dialogue, domain_facts, explained, explained_loosely, harm_dialogue, harm_facts, intent_facts,
    judged, long, replay,
}  # fmt: skip
"""What is said of all entities, also of sealed ones; none of it is a request."""


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def sealed_words() -> set[str]:
    objects = {noun for kind in kinds() for noun in nouns(kind, "test")}
    conditions = {name for table in complaints().values() for name in table["test"]}
    return objects | conditions | {metric for good in (True, False) for metric in metrics(good, "test")}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_same_seed_draws_the_same_examples(name: str) -> None:
    first, second = random.Random(7), random.Random(7)
    assert [draw(MIXTURES[name], first) for _ in range(200)] == [draw(MIXTURES[name], second) for _ in range(200)]


SOURCES = sorted({source for mixture in MIXTURES.values() for _, source in mixture} - FACTS | {persona}, key=str)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__qualname__)
def test_no_request_of_training_names_a_sealed_word(source: Source) -> None:
    rng = random.Random(1)
    for _ in range(400):
        example = source(rng)
        assert not words(f"{example.prompt} {example.answer}") & sealed_words()


def test_no_judge_transcript_of_training_names_a_sealed_word() -> None:
    rng = random.Random(2)
    for _ in range(1000):
        item, text, _ = transcript(rng, "train")
        assert not words(item.prompt + " " + text) & sealed_words()


def test_the_tokenizers_never_see_a_sealed_word() -> None:
    for text in vocabulary_texts(random.Random(3), 3000):
        assert not words(text) & sealed_words()


def test_partitions_share_no_object_condition_metric_or_sum() -> None:
    families = [{p: set(nouns(kind, p)) for p in PARTITIONS} for kind in kinds()]
    families += [{p: set(table[p]) for p in PARTITIONS} for table in complaints().values()]
    families += [{p: set(metrics(good, p)) for p in PARTITIONS} for good in (True, False)]
    for family in families:
        assert sum(len(part) for part in family.values()) == len(set().union(*family.values()))
    for sign in "+-":
        parts = [set(sums(sign, p)) for p in PARTITIONS]
        assert sum(map(len, parts)) == len(set().union(*parts)) > 300


def test_partitions_share_no_template() -> None:
    for kind, pool in templates().items():
        parts = [patterns(kind, p) for p in PARTITIONS]
        assert all(len(part) >= 2 for part in parts)
        assert sorted(text for part in parts for text in part) == sorted(set(pool))


def test_objects_are_distinct_and_harm_depends_on_both_verb_and_object() -> None:
    everything = [noun for kind in kinds() for noun in nouns(kind)]
    assert len(everything) == len(set(everything)) == 400
    for verb in verbs().values():
        assert not set(verb.harmful) & set(verb.harmless)
        assert not verb.harsh or (verb.harmful and verb.harmless)
    hurt = {kind for _, kind in slots("harmful")}
    spared = {kind for which in ("harmless", "look-alike") for _, kind in slots(which)}
    assert hurt <= spared


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_offers_300_distinct_prompts(split: str, partition: str) -> None:
    domains = [None, *DOMAINS] if split in ("harmful-framed", "harmless", "domain") else [None]
    for domain in domains:
        chosen = items(split, domain=domain, partition=partition, n=300)  # type: ignore[arg-type]
        assert len({item.prompt for item in chosen}) == len({item.id for item in chosen}) == 300
        assert all(item.split == split and item.partition == partition for item in chosen)
        assert domain is None or {item.domain for item in chosen} == {domain}
        assert {item.label for item in chosen} == {
            "harmful" if split in ("harmful-plain", "harmful-framed", "jailbreak") else "harmless"
        }


def test_fewer_items_are_the_first_of_more() -> None:
    assert items("jailbreak", n=20) == items("jailbreak", n=40)[:20]
    assert items("jailbreak", n=20) != items("jailbreak", n=20, seed=1)


def test_deeds_of_every_nature_exist_in_every_partition() -> None:
    rng = random.Random(4)
    for partition in PARTITIONS:
        for which in ("harmful", "harmless", "look-alike"):
            deed = draw_deed(rng, which, partition)
            assert deed.harmful == (which == "harmful")
            assert deed.noun in nouns(deed.kind, partition)


def test_an_invented_word_has_one_owner() -> None:
    assert {owner(word) for word in ("bako", "stirox", "meen", "trafu", "zood", "wapel", "dook")} <= set(PARTITIONS)


def test_refusals_are_two_phrasings() -> None:
    assert len(set(REFUSALS)) == 2
