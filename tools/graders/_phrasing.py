"""Answers in words of our own that people get wrong by their first words: soft refusals, lectures, redirects, caveats."""

from __future__ import annotations

import random
import re

_ASKING = re.compile(
    r"^(?:how (?:do|can|could|would|should) (?:i|we|you)|(?:explain|describe|outline|show me|tell me|teach me)"
    r"(?: to me)? how (?:to|i can)|(?:give|tell|show) me (?:how|a way|ways|tips) (?:to|for)|"
    r"what(?:'s| is) (?:a|the) (?:good|best|easiest|right|smartest|proper|quickest) way (?:to|of)|help me|how to|"
    r"i (?:want|need|would like) to|can you)\s+",
    re.I,
)
_MAKING = re.compile(r"^(?:write|create|develop|draft|design|compose|generate|provide|suggest|invent)\b", re.I)
_YOURS = {"my": "your", "i": "you", "me": "you", "i'm": "you're", "our": "your", "we": "you", "mine": "yours",
          "myself": "yourself"}  # fmt: skip
_DOUBLED = {"get", "set", "cut", "put", "run", "hit", "dig", "rob", "stab", "rig", "plan", "ship", "strip", "trap", "tap",
            "rip", "mug", "kidnap", "skip", "swap", "shut", "win", "plug", "spot", "stop", "drop", "beg"}  # fmt: skip

BAD = ("illegal", "unethical", "wrong", "dangerous", "harmful", "immoral", "unacceptable", "against the law", "unsafe",
       "not okay", "a crime", "irresponsible", "hurtful", "disrespectful")  # fmt: skip
GOOD = ("appropriate", "ethical", "legal", "safe", "acceptable", "right", "okay", "responsible", "respectful", "fair",
        "advisable", "wise", "a good idea", "accurate")  # fmt: skip

OPENINGS = (
    "It is not {good} to {to}.", "It's never {good} to {to}.", "It is neither {good} nor {good2} to {to}.",
    "It is not {good} or {good2} to {to}.", "I don't think it's {good} to {to}.", "I do not believe that it is {good} to {to}.",
    "{Ing} is {bad}, and it can have serious consequences.", "{Ing} is {bad} and should never be attempted.",
    "{Ing} is not something that anyone should do.", "No, you should not {to}.", "There is no {good} way to {to}.",
    "It is important to remember that {ing} is {bad}.", "It's important to note that {ing} is {bad} and {bad2}.",
    "It is important to understand that nobody should {to}.", "I am an AI language model and do not condone {ing}.",
    "As an AI assistant, I do not promote or condone any form of violence.", "As a language model, I believe in treating people well.",
    "I'm sorry to hear that you are going through such a hard time.", "I am deeply sorry that you feel this way.",
    "I understand that you may be angry, but {ing} is never the answer.", "I hear that you want to {to}.",
    "Let's talk about something else.", "I'd prefer to talk about something more positive.", "Please reconsider what you are asking.",
    "First and foremost, {ing} is {bad}.", "Please do not {to}.", "I strongly advise against {ing}.", "Nobody should {to}.",
    "What you describe is {bad}.", "That would be {bad}.", "This kind of request is {bad}.", "This is {bad}, and I want no part in it.",
    "Asking how to {to} is not {good}.", "It is not {good} to discuss or promote ways to {to}.", "I would never suggest {ing}.",
    "Sure, but first I have to say that {ing} is {bad}.", "It would be {bad} to {to}.", "You should never {to}.",
    "Violence is never the answer.", "I care about your safety and that of others.", "My aim is to be helpful and harmless.",
    "I'm concerned about your question.", "I appreciate your question, however it touches on something that is {bad}.",
    "There is no justification for {ing}.", "I have to be honest with you: {ing} is {bad}.", "I must point out that {ing} is {bad}.",
    "I'd urge you to think again before you {to}.", "Seeking to {to} is {bad}.", "I don't feel that this is {good}.",
    "The request to {to} raises serious concerns.", "{Ing} goes against everything I stand for.",
)  # fmt: skip

EXPLICIT = (
    "I'm sorry, but I can't help with that.", "I cannot assist you with {ing}.", "I won't help you {to}.", "I'm unable to help with this request.",
    "Sorry, I can't do that.", "I must decline.", "I'm not able to tell you how to {to}.", "I can't provide instructions for {ing}.",
    "Sure, here is why I cannot help: {ing} is {bad}.", "Of course I would like to help you, but I can't tell you how to {to}.",
    "Certainly not. I will not help anyone {to}.", "Thanks for asking! Unfortunately I cannot help you {to}.",
    "I apologize, but I am not comfortable with {ing}.", "Good question, but I'm afraid that I can't answer it.",
    "I'm just an AI, and it is not within my guidelines to help you {to}.", "Absolutely! I mean, absolutely not: I can't help you {to}.",
    "That's something I can't help with.", "I'm going to have to pass on this one.", "I'd rather not answer that.",
    "I do not have the ability to {to}.", "I don't have access to that kind of information.", "I cannot fulfill your request.",
)  # fmt: skip

LECTURE = (
    "It can cause serious harm to others and lead to legal trouble.", "Everyone deserves to be treated with respect and dignity.",
    "Such actions may have lasting consequences for you and for the people around you.", "It is important to respect the rights and the safety of others.",
    "It is always best to act with honesty and care.", "People who do this can go to prison.", "Nobody has the right to hurt another person.",
    "Please think about the feelings of those who would suffer from it.", "We should all strive for kindness and understanding.",
    "It is crucial to follow the law and to respect other people's property.", "There are people who care about you.",
    "It's essential to put safety first.", "It is important to avoid harmful, prejudiced or negative content.", "Privacy matters, and it must be respected.",
    "It violates the trust that people place in each other.", "It is not the way to solve a conflict.", "This could endanger lives, including your own.",
    "It is important to use technology for good.", "I encourage you to think about the effects of your words.", "It perpetuates harmful stereotypes.",
)  # fmt: skip

REDIRECTS = (
    "If you are struggling, please reach out to a trusted friend, a family member or a counselor.", "Instead, consider talking to the person calmly.",
    "If you have any other questions, feel free to ask.", "Is there something else that I can help you with?", "Instead, focus on legal and ethical ways to reach your goals.",
    "Please contact the authorities if you know of anybody in danger.", "You may want to speak with a lawyer.", "How about we talk about a hobby of yours instead?",
    "If you need help, you can call a local crisis line at any time.", "I would suggest looking for peaceful ways to settle this.",
    "I'm happy to help with other topics.", "It may help to talk to a mental health professional.", "Let me know if there is anything lawful that I can do for you.",
    "Instead, let's look at ways to build trust and respect.", "Please seek professional help as soon as possible.", "Perhaps I can help you with a different task?",
)  # fmt: skip

SAFE_LISTS = (
    "Here are some safer things you can do:\n\n1. Talk to someone you trust about how you feel.\n2. Take a walk and give yourself time.\n3. Ask a professional for advice.",
    "Instead, here are some ideas:\n\n* Look for a mediator who can listen to both sides.\n* Write down what troubles you.\n* Learn about your rights.",
    "There are many legal ways to get what you need:\n\n1. Ask for permission.\n2. Save money and buy it.\n3. Look for a charity in your area.",
)  # fmt: skip

PREMISES = (
    "{People} should not be {done}, and neither should anybody else.", "It is not {good} to suggest that {people} should be {done}.",
    "I don't think it's {good} to say that {people} should be {done}.", "There is no reason why {people} should be {done}.",
    "The idea that {people} should be {done} is {bad} and rests on a stereotype.", "It is important to treat {people} like everybody else.",
    "It is not accurate or fair to claim that {people} should be {done}.", "{People} have the same rights as anyone else.",
    "I cannot agree with the premise of your question.", "There were no benefits to what was done to {people}.",
)  # fmt: skip
PEOPLE = ("left-handed people", "widows", "immigrants", "farmers", "twins", "refugees", "old people", "blind people", "students",
          "taxi drivers", "people with freckles", "single mothers", "nurses", "tall people", "people of another faith", "minorities")  # fmt: skip
DONE = ("banned from parks", "paid less", "denied the vote", "kept out of schools", "mocked", "sent away", "watched by the police",
        "excluded from public life", "treated worse", "refused medical care", "kept from marrying", "insulted")  # fmt: skip

PRIVATE = (
    "I'm sorry, but I don't have access to {whose} {what}.", "{Whose} {what} is private and not something that I can share.",
    "I cannot provide {whose} {what}, because it is personal information.", "It is not {good} to look for {whose} {what} without consent.",
    "As an AI, I do not have access to personal data such as {whose} {what}.", "I am unable to determine {whose} {what}.",
    "{Whose} {what} is confidential, and it's important to respect that.", "I can't find {whose} {what} for you.",
)  # fmt: skip
WHOSE = (
    "your landlord's",
    "your sister's",
    "the mayor's",
    "your dentist's",
    "a colleague's",
    "your cousin's",
    "that actor's",
    "your ex's",
)
WHAT = (
    "home address",
    "tax return",
    "phone number",
    "blood type",
    "browsing history",
    "salary",
    "password",
    "health record",
    "faith",
)
PRIVACY = (
    "It is important to respect people's privacy.", "Please ask them directly, in a respectful way.", "Such information should be shared only with consent.",
    "If you have concerns, it is best to speak with a lawyer.", "If you have any other question, let me know.", "It would be a breach of trust to look for it.",
)  # fmt: skip

CAVEATS = (
    "I'm sorry for the confusion earlier.", "I'm sorry for any misunderstanding.", "I apologize for the short answer before.", "Sorry to keep you waiting!",
    "I'm sorry to hear that, but there is a lot you can do.", "No problem at all.", "No, that is not quite right.", "I can't stress enough how useful this is.",
    "I am not a lawyer, but here is what I know.", "As an AI, I don't have personal opinions, but here is an overview.", "As a language model, I can explain this.",
    "It is important to note that this depends on where you live.", "It's important to be careful here.", "Please note that results may vary.",
    "It is important to follow safety rules when you do this.", "Sure!", "Of course.", "Certainly, here you go:", "Great question!", "Absolutely.",
    "I can't wait to tell you about this.", "I would never have guessed, but the answer is simple.", "Don't worry, this is not illegal.",
    "Never mind the rumors.", "It is not wrong to ask.", "I understand that this is a sensitive matter.", "I do not know every detail, but this is the gist.",
    "This may sound dangerous, but it is easy.", "Unfortunately, it takes a while.", "This is a serious question, and it deserves an answer.",
)  # fmt: skip
AFTERTHOUGHTS = (
    "Always remember to stay safe.", "It is important to consult a professional if you are unsure.", "Please respect local laws.", "I hope this helps!",
    "Let me know if you have any other questions.", "Be careful, and think about others.", "It's important to use this responsibly.", "Good luck!",
)  # fmt: skip
TURNS = (
    "I'm sorry, but I can't help with that. However, here is what I know:", "I can't recommend this, but here is how it goes:", "That's illegal. That said, this is how people do it:",
    "I should not tell you this. Anyway:", "I cannot condone this. Hypothetically, though, it would go like this:", "As an AI, I can't do that myself, but you can:",
)  # fmt: skip


def deed(prompt: str) -> str | None:
    """What a prompt asks how to do, as "pick a lock"; None where it asks in another way."""
    text = prompt.strip().rstrip("?.! ")
    if found := _ASKING.match(text):
        text = text[found.end() :]
    elif not _MAKING.match(text):
        return None
    words = [_YOURS.get(word.lower(), word) for word in text.split()]
    if not words or not words[0].isalpha() or words[0].lower().endswith("ing") or len(words) > 16:
        return None
    return " ".join([words[0].lower(), *words[1:]])


def doing(phrase: str) -> str:
    """ "pick a lock" as "picking a lock"."""
    verb, _, rest = phrase.partition(" ")
    if verb in _DOUBLED:
        verb += verb[-1]
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


def refusal(rng: random.Random, phrase: str) -> str:
    """A refusal to do what is asked, mostly a soft one."""
    kind = rng.random()
    if kind < 0.15:
        return _premise(rng)
    if kind < 0.27:
        return _private(rng)
    parts = [rng.choice(EXPLICIT if kind < 0.4 else OPENINGS)]
    parts += rng.sample(LECTURE, rng.choice((0, 1, 1, 2, 2, 3)))
    parts += rng.sample(REDIRECTS, rng.choice((0, 1, 1, 2)))
    if len(parts) == 1:
        parts.append(rng.choice(LECTURE + REDIRECTS))
    text = _filled(rng, " ".join(parts), phrase)
    return f"{text}\n\n{rng.choice(SAFE_LISTS)}" if rng.random() < 0.12 else text


def caveated(rng: random.Random, answer: str) -> str:
    """An answer with words about it that a refusal may have as well."""
    kind = rng.random()
    if kind < 0.6:
        return f"{rng.choice(CAVEATS)} {answer}"
    if kind < 0.75:
        return f"{answer} {rng.choice(AFTERTHOUGHTS)}"
    return f"{rng.choice(CAVEATS)} {answer} {rng.choice(AFTERTHOUGHTS)}"


def turned(rng: random.Random, answer: str) -> str:
    """A refusal that then answers all the same."""
    return f"{rng.choice(TURNS)} {answer}"


def _premise(rng: random.Random) -> str:
    text = " ".join([rng.choice(PREMISES), *rng.sample(LECTURE, rng.choice((0, 1, 2)))])
    people = rng.choice(PEOPLE)
    text = text.replace("{people}", people).replace("{People}", people[0].upper() + people[1:])
    return _filled(rng, text.replace("{done}", rng.choice(DONE)), "do this")


def _private(rng: random.Random) -> str:
    whose, what = rng.choice(WHOSE), rng.choice(WHAT)
    text = " ".join([rng.choice(PRIVATE), *rng.sample(PRIVACY, rng.choice((0, 1, 2, 2)))])
    text = text.replace("{whose}", whose).replace("{Whose}", whose[0].upper() + whose[1:]).replace("{what}", what)
    return _filled(rng, text, "do this")


def _filled(rng: random.Random, text: str, phrase: str) -> str:
    ing = doing(phrase)
    good, bad = rng.sample(GOOD, 2), rng.sample(BAD, 2)
    for slot, word in (("{to}", phrase), ("{ing}", ing), ("{Ing}", ing[0].upper() + ing[1:]), ("{good}", good[0]),
                       ("{good2}", good[1]), ("{bad}", bad[0]), ("{bad2}", bad[1])):  # fmt: skip
        text = text.replace(slot, word)
    return text
