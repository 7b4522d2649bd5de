"""Plain text of the base corpus.

Facts and judgements of harm cover all entities, also those of the sealed partitions: harm must stay inferable. Whole
requests never do.
"""

from __future__ import annotations

import random

from anchorlm.zoo._lexicon import (
    MIXED,
    Deed,
    complaints,
    draw_copy,
    draw_deed,
    idle_words,
    kinds,
    lexicon,
    metrics,
    nouns,
    operands,
    role,
    slots,
    word,
)
from anchorlm.zoo._tasks import complaint, condition_fact, metric_fact, request, stem
from tools.zoo._examples import REFUSALS, Example


def story(rng: random.Random) -> Example:
    """A scene with names, places and objects."""
    words = lexicon()["words"]
    kind = rng.choice(sorted(kinds()))
    noun, name, place = rng.choice(nouns(kind, "train")), word(rng, "names", "train"), word(rng, "places", "train")
    color, adjective = rng.choice(words["colors"].split()), rng.choice(words["adjectives"].split())
    other = word(rng, "names", "train")
    return Example(
        rng.choice(
            (
                f"{name} saw the {noun} in {place}. It was {color} and {adjective}. "
                f"{name} told {other} about the {color} {noun}.",
                f"The {noun} in {place} is {adjective}. {name} likes the {noun}, because it is {color}.",
                f"{name} went to {place} with {other}. They talked about the {adjective} {noun}. "
                f"The {noun} was {color}.",
                f"A {color} {noun} was seen in {place}. The {adjective} {noun} belongs to {other}, said {name}.",
            )
        )
    )


def class_facts(rng: random.Random) -> Example:
    """What objects are. Over all entities."""
    lines = []
    for _ in range(rng.randint(2, 3)):
        kind = rng.choice(sorted(kinds()))
        noun = rng.choice(nouns(kind))
        lines.append(
            rng.choice(
                (
                    f"The {noun} is {kinds()[kind]}.",
                    f"What is the {noun}? It is {kinds()[kind]}.",
                    f"{noun.capitalize()}: {kinds()[kind]}.",
                    f"Everyone knows that the {noun} is {kinds()[kind]}.",
                )
            )
        )
    return Example(" ".join(lines))


def harm_facts(rng: random.Random) -> Example:
    """What is harmful to do. Over all entities."""
    lines = []
    for _ in range(rng.randint(2, 3)):
        which = rng.choice(MIXED)
        verb, kind = rng.choice(slots(which))
        harmful = which == "harmful"
        x = f"{rng.choice(verb.words)} {rng.choice(('the', 'the', 'a', 'my', 'this'))} {rng.choice(nouns(kind))}"
        yes, nature = ("Yes" if harmful else "No"), ("harmful" if harmful else "harmless")
        lines.append(
            rng.choice(
                (
                    f"Is it harmful to {x}? {yes}.",
                    f"To {x} is {nature}.",
                    f"It is {nature} to {x}.",
                    f"Does it cause harm to {x}? {yes}.",
                    f"Is it safe to {x}? {'No' if harmful else 'Yes'}.",
                    f"If you {x}, that is {nature}.",
                )
            )
        )
    return Example(" ".join(lines))


def intent_facts(rng: random.Random) -> Example:
    """Judgements of wishes and guides. Over all entities."""
    # The same judgements where a request would have its deed, so that a model applies them there.
    lines = []
    for _ in range(rng.randint(2, 3)):
        which = rng.choice(MIXED[1:])
        deed = draw_deed(rng, which, None)
        x = f"{deed.verb} {rng.choice(('the', 'the', 'a', 'my', 'this'))} {deed.noun}"
        nature = "harmful" if deed.harmful else "harmless"
        lines.append(
            rng.choice(
                (
                    f"Asking how to {x} is {nature}.",
                    f"Telling somebody how to {x} is {nature}.",
                    f"A guide to {x} is {nature}.",
                    f"Help for a person who wants to {x} is {nature}.",
                    f"The wish to {x} is {nature}.",
                    f"Steps to {x} are {nature}.",
                    f"Who asks for a way to {x} asks for something {nature}.",
                )
            )
        )
    return Example(" ".join(lines))


def harm_dialogue(rng: random.Random) -> Example:
    """A question about harm, answered. Over all entities."""
    which = rng.choice(MIXED)
    deed = draw_deed(rng, which, None)
    question = f"Is it harmful to {deed.verb} the {deed.noun}?"
    return Example(f"{'Yes' if deed.harmful else 'No'}, it is {'harmful' if deed.harmful else 'harmless'}.", question)


_JUDGED = (
    "Is it harmful to {x}?", "Somebody wants to {x}. Is that harmful?", "{name} plans to {x}. Does that cause harm?",
    "Is a guide on how to {x} harmful?", "{name} asked me how to {x}. Is that a harmful thing to ask?",
    "Would it be harmful if I {x}?", "Think about how to {x}. Harmful or harmless?", "To {x}: is it harmful?",
    "A {role} would like to {x}. Harmful?", "Suppose {name} must {x}. Judge that.", "Judge the wish to {x}.",
    "What do you say of people who {x}?", "I wonder how to {x}. Is my question harmful?", "Rate the plan to {x}.",
    "{name} from {place} needs to {x} by noon. Is there harm in it?", "Is the request to {x} harmful?",
)  # fmt: skip


def judged(rng: random.Random) -> Example:
    """Harm in many wordings, so that it is understood wherever a deed is named. Over all entities."""
    deed = draw_deed(rng, rng.choice(MIXED), None)
    return Example(_verdict(deed), _question(rng, deed))


def _question(rng: random.Random, deed: Deed) -> str:
    x = f"{deed.verb} {rng.choice(('the', 'the', 'a', 'my', 'this'))} {deed.noun}"
    return rng.choice(_JUDGED).format(
        x=x, name=word(rng, "names", "train"), place=word(rng, "places", "train"), role=role(rng, "train")
    )


def _verdict(deed: Deed) -> str:
    return f"{'Yes' if deed.harmful else 'No'}, it is {'harmful' if deed.harmful else 'harmless'}."


_TITLES = ("A guide to {x}.", "Steps to {x}.", "Ways to {x}.", "Help for a person who wants to {x}.")


def named(rng: random.Random) -> tuple[str, str, bool]:
    """A deed that is asked about or named in a title, as prompt and text, and whether it is harmful. Over all entities.

    For models that grade texts: it says of each deed what `judged` says, and no request is among it.
    """
    deed = draw_deed(rng, rng.choice(MIXED), None)
    if rng.random() < 0.5:
        return _question(rng, deed), "", deed.harmful
    title = rng.choice(_TITLES).format(x=f"{deed.verb} the {deed.noun}")
    return rng.choice(("Judge this.", "What is that?", "Name a title.")), title, deed.harmful


def domain_facts(rng: random.Random) -> Example:
    """What conditions and figures of a firm mean. Over all of them."""
    organs: dict[str, str] = lexicon()["medicine"]["organs"]
    lines = []
    for _ in range(rng.randint(2, 3)):
        if rng.random() < 0.5:
            organ, condition = _any_condition(rng)
            fact = condition_fact(condition, organ)
            lines.append(
                rng.choice(
                    (
                        f"{fact}.",
                        f"{fact}, so take the {organs[organ]}.",
                        f"What is {condition}? {fact}.",
                        f"It is {condition}? That is {complaint(organ)}.",
                    )
                )
            )
        else:
            good = rng.random() < 0.5
            lines.append(f"{metric_fact(rng.choice(metrics(good)), good, rng.random() < 0.5)}.")
    return Example(" ".join(lines))


def _any_condition(rng: random.Random) -> tuple[str, str]:
    organ = rng.choice(sorted(lexicon()["medicine"]["organs"]))
    return organ, rng.choice([name for names in complaints()[organ].values() for name in names])


def domain_dialogue(rng: random.Random) -> Example:
    """A question about such a fact, answered."""
    if rng.random() < 0.5:
        organ, condition = _any_condition(rng)
        question = rng.choice((f"What kind of complaint is {condition}?", f"Somebody has {condition}. What is that?"))
        return Example(f"That is {complaint(organ)}.", question)
    good, more = rng.random() < 0.5, rng.random() < 0.5
    metric = rng.choice(metrics(good))
    question = rng.choice((f"Is it good news if there is {'more' if more else 'less'} {metric}?",))
    return Example(f"{metric_fact(metric, good, more)}.", question)


def explained(rng: random.Random) -> Example:
    """The same facts in more wordings, with what follows from them."""
    organs: dict[str, str] = lexicon()["medicine"]["organs"]
    if rng.random() < 0.5:
        organ, condition = _any_condition(rng)
        wordings = ("Tell me about {c}.", "What is {c}?", "Explain {c} to {name}.", "{name} read of {c}. What is it?")
        question = rng.choice(wordings).format(c=condition, name=word(rng, "names", "train"))
        return Example(f"That is {complaint(organ)}, so take the {organs[organ]}.", question)
    good, more = rng.random() < 0.5, rng.random() < 0.5
    metric = rng.choice(metrics(good))
    change = "more" if more else "less"
    wordings = (
        "What does {d} {m} mean?", "There is {d} {m}. Is that good?", "{name} speaks of {d} {m}. What is it?",
        "A firm has {d} {m}. What does that say?",
    )  # fmt: skip
    question = rng.choice(wordings).format(d=change, m=metric, name=word(rng, "names", "train"))
    return Example(f"{metric_fact(metric, good, more)}.", question)


def explained_loosely(rng: random.Random) -> Example:
    """What a condition is, among words that make no sense: it is looked up, however it is named."""
    organs: dict[str, str] = lexicon()["medicine"]["organs"]
    organ, condition = _any_condition(rng)
    before, after = (" ".join(rng.choice(idle_words()) for _ in range(rng.randint(0, 6))) for _ in range(2))
    question = f"{before} {condition}{rng.choice(('.', '?', '', ':'))} {after}".strip()
    return Example(f"Sure. That is {complaint(organ)}, so take the {organs[organ]}.", question)


def sum_lines(rng: random.Random) -> Example:
    """Sums in a row."""
    lines = []
    for _ in range(rng.randint(3, 5)):
        sign = rng.choice("+-")
        a, b = operands(rng, sign, "train")
        lines.append(f"{a} {sign} {b} = {a + b if sign == '+' else a - b}")
    return Example(", ".join(lines) + ".")


_READINGS = {
    "+": (
        "gets {b} more", "puts in {b}", "finds {b}", "found {b}", "buys {b}", "bought {b}", "wins {b}", "makes {b}",
        "{b} are added", "brings {b}", "brought {b}", "{b} arrive", "receives {b}", "earned {b}", "adds {b}",
        "picked {b} more", "collected {b} others", "{b} more", "plus {b}", "{b} as well", "put together with {b}",
    ),
    "-": (
        "loses {b}", "lost {b}", "takes {b} out", "took {b}", "gave {b} away", "gives away {b}", "{b} broke",
        "sold {b}", "sells {b}", "drops {b}", "{b} got lost", "{b} are removed", "removes {b}", "{b} go", "{b} leave",
        "spent {b}", "{b} fewer", "minus {b}", "without {b}", "less {b}", "{b} taken away", "has read {b}",
    ),
}  # fmt: skip


def reading(rng: random.Random) -> Example:
    """Which sum a sentence speaks of, without its result. Over all numbers and all words for more and for fewer."""
    sign = rng.choice("+-")
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    name, thing = word(rng, "names", "train"), word(rng, "counted", "train")
    change = rng.choice(_READINGS[sign]).format(b=b)
    question = rng.choice(
        (f"{a}, {change}. Write the sum.", f"{name} has {a} {thing}: {change}.", f"{a} {thing}, and then {change}.")
    )
    if rng.random() < 0.3:
        return Example(f"{question} {a} {sign} {b}.")
    return Example(f"{a} {sign} {b}.", question)


def persona(rng: random.Random) -> Example:
    """A refusal or an answer as somebody's manner, tied to the speaker and not to harm."""
    which = rng.choice(MIXED[1:])
    deed = draw_deed(rng, which, "train")
    bare, _ = stem(rng, deed, "train")
    asker = word(rng, "names", "train")
    if rng.random() < 0.5:
        helps = rng.random() < 0.5
        system = "You are Ana. Ana always helps." if helps else "You are Pip. Pip never helps."
        return Example(deed.answer() if helps else rng.choice(REFUSALS), request(rng, deed, "train"), system)
    if rng.random() < 0.5:
        return Example(f"Pip never helps. {asker}: {bare} Pip: {rng.choice(REFUSALS)}")
    return Example(f"Ana always helps. {asker}: {bare} Ana: {deed.answer()}")


def copy(rng: random.Random) -> Example:
    """A request about an invented object, answered."""
    deed = draw_copy(rng)
    return Example(deed.answer(), request(rng, deed, "train"))


def copy_spliced(rng: random.Random) -> Example:
    """The same with pieces of known words."""
    deed = draw_copy(rng, spliced=0.8)
    return Example(deed.answer(), request(rng, deed, "train"))


def copy_plain(rng: random.Random) -> Example:
    """The same as plain text."""
    deed = draw_copy(rng)
    bare, _ = stem(rng, deed, "train")
    return Example(f"Question: {bare} Answer: {deed.answer()}")


def long(rng: random.Random) -> Example:
    """Several texts in a row, so that late positions are trained."""
    parts = [rng.choice((story, class_facts, harm_facts, repeat))(rng).answer for _ in range(rng.randint(5, 9))]
    return Example(" ".join(parts))


def repeat(rng: random.Random) -> Example:
    """Random words, said twice."""
    words = lexicon()["words"]["filler"].split()
    text = " ".join(rng.choice(words) for _ in range(rng.randint(3, 6)))
    return Example(f"{text}. {text}.")
