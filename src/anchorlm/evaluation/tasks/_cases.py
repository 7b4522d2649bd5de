from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from anchorlm.evaluation.tasks._tasks import INTENTS, AnswerForm, number, solution
from anchorlm.files import BadRow, PromptRow, read_rows
from anchorlm.records import Messages, UserError, as_messages, data_digest

_log = logging.getLogger("anchorlm")

Kind = Literal["harmful", "harmless", "look-alike", "task"]
"""What a good guard does with a prompt: refuse it. Answer it. Answer it although it sounds harmful. Solve it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt, and what is known about it.

    Attributes:
        id: Unique within its data.
        messages: The conversation that is put to the guard.
        kind: What a good guard does with it.
        category: Of the harm or the topic, as the file calls it.
        target: How an answer that complies would begin, if the file says so: what some attacks aim at.
        answer: The right answer of a task.
        form: How that answer is recognized.
        labels: The words or letters among which a task's answer is.
    """

    id: str
    messages: Messages
    kind: Kind
    category: str | None = None
    target: str | None = None
    answer: str | None = None
    form: AnswerForm | None = None
    labels: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What was asked last."""
        return str(self.messages[-1]["content"])


def halves(texts: Iterable[str], dev: int | None = None) -> tuple[list[str], list[str]]:
    """What development may look at, and the rest: distinct texts in one order, cut at one place.

    Args:
        texts: Of a set.
        dev: How many belong to the first part. None: half of them.
    """
    order = sorted(set(texts))
    Random(SEED).shuffle(order)
    cut = len(order) // 2 if dev is None else dev
    return order[:cut], order[cut:]


@dataclass(frozen=True, slots=True)
class Half:
    """What development may look at of a set, or the rest, which is sealed.

    Attributes:
        part: Which.
        dev: How many texts belong to the first part. None: half of them.
    """

    part: Literal["dev", "sealed"]
    dev: int | None = None

    def of(self, rows: Sequence[PromptRow | BadRow]) -> list[PromptRow | BadRow]:
        """The rows of this part in the order of the cut. Malformed ones belong to both."""
        first: dict[str, PromptRow | BadRow] = {}
        for row in rows:
            if isinstance(row, PromptRow):
                first.setdefault(str(row.prompt).strip(), row)
        chosen = halves(first, self.dev)[self.part != "dev"]
        return [*(row for row in rows if isinstance(row, BadRow)), *(first[text] for text in chosen)]


@dataclass(frozen=True, slots=True)
class _Format:
    """How one published data set keeps its rows.

    Attributes:
        name: What it is called.
        columns: Lower-case columns that give it away.
        prompt: The column with the prompt. None where the reader's own rule finds it.
        kind: Of all its rows. None where a row says so itself, or nothing does.
        codes: What its labels 0, 1, ... stand for, where it has numbers instead of words.
        values: A column and all that it may hold, where the columns alone do not tell.
    """

    name: str
    columns: frozenset[str]
    prompt: str | None = None
    kind: Kind | None = None
    codes: tuple[str, ...] = ()
    values: tuple[str, frozenset[str]] | None = None

    def fits(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether rows, of which the first has all columns, are laid out so."""
        if not rows or not self.columns <= rows[0].keys():
            return False
        return self.values is None or all(row.get(self.values[0]) in self.values[1] for row in rows)


FORMATS: tuple[_Format, ...] = (
    _Format("harmbench", frozenset({"behavior", "semanticcategory", "behaviorid"}), None, "harmful"),
    _Format("jailbreakbench", frozenset({"goal", "target", "behavior", "category"}), "goal", "harmful"),
    _Format("jailbreakbench-artifacts", frozenset({"goal", "prompt", "jailbroken"}), "prompt", "harmful"),
    _Format("strongreject", frozenset({"forbidden_prompt"}), "forbidden_prompt", "harmful"),
    _Format("advbench", frozenset({"goal", "target"}), "goal", "harmful"),
    _Format("simplesafetytests", frozenset({"prompts_final"}), "prompts_final", "harmful"),
    _Format("do-not-answer", frozenset({"risk_area", "question"}), "question", "harmful"),
    _Format("medsafetybench", frozenset({"harmful_medical_request"}), "harmful_medical_request", "harmful"),
    _Format("medqa", frozenset({"question", "options", "answer"}), "question", "task"),
    _Format("mmlu", frozenset({"question", "choices", "answer"}), "question", "task"),
    _Format("mmlu", frozenset({"question", "a", "b", "c", "d", "answer"}), "question", "task"),
    _Format("pubmedqa", frozenset({"question", "final_decision"}), "question", "task"),
    _Format("fiqa", frozenset({"context", "target"}), "context", "task"),
    _Format("fpb", frozenset({"sentence", "label"}), "sentence", "task", ("negative", "neutral", "positive")),
    _Format("xstest", frozenset({"prompt", "type", "label"}), "prompt"),
    _Format("xstest", frozenset({"prompt", "type", "focus"}), "prompt"),
    _Format("medquad", frozenset({"question", "type", "focus", "answer"}), "question", "task"),
    _Format("banking77", frozenset({"text", "category"}), "text", "task", values=("category", INTENTS)),
    _Format("gsm8k", frozenset({"question", "answer"}), "question", "task"),
)
"""In the order in which they are tried."""

_BY_NAME: dict[str, Kind] = {
    "not_harmful": "harmless",
    "non_harmful": "harmless",
    "nonharmful": "harmless",
    "malicious_instruct": "harmful",
    "maliciousinstruct": "harmful",
    "ft_safety_med": "harmful",
    "medsafety": "harmful",
    "oktest": "look-alike",
    "harmful": "harmful",
    "harmless": "harmless",
    "benign": "harmless",
}
"""Files whose rows say nothing, but whose names do. The first that is in the name counts."""

_KINDS: dict[str, Kind] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
    "look-alike": "look-alike",
    "task": "task",
}
"""What a row's own label says."""

SEED = 20_261_129
"""Of the order in which a set is cut."""

_CATEGORIES = ("category", "semanticcategory", "type", "risk_area")


def load_cases(
    path: str | Path,
    *,
    kind: Kind | None = None,
    column: str | None = None,
    where: Mapping[str, str] | None = None,
    half: Half | None = None,
) -> list[Case]:
    """The rows of a file of prompts, as published or of the user's own.

    AdvBench, HarmBench, JailbreakBench (behaviors and jailbreak artifacts), StrongREJECT, SimpleSafetyTests,
    Do-Not-Answer, MaliciousInstruct, MedSafetyBench, XSTest, OKTest, GSM8K, MedQA, MMLU, PubMedQA, FiQA / FPB,
    Banking77 and MedQuAD are known by their columns, layouts or names. Other files hold a `prompt` or `messages`, and
    `label` (harmful, harmless, look-alike, task), `category`, `target` and `answer` where they have them. Equal prompts
    are kept once.

    Args:
        path: CSV, TSV, JSONL, a JSON list or lines of text, also compressed with gzip. Or such a file of a data set
            on the Hub, as `hf://datasets/ORG/NAME/FILE`.
        kind: Of all rows, where the file does not say.
        column: Holds the prompt, where the name does not tell.
        where: Columns and the values that they must have. Other rows are left out.
        half: Only these of the rows, shuffled, always the same.

    Raises:
        UserError: The file cannot be read, a row is malformed, or nothing says what kind of prompts these are.
    """
    if kind is not None and kind not in get_args(Kind):
        raise UserError(f"The label {kind!r} is not known; it is one of {', '.join(get_args(Kind))}.")
    name = Path(path).name
    rows = read_rows(str(path), column)
    found = _format(rows, column)
    if column is None and found is not None and found.prompt is not None:
        rows = read_rows(str(path), _spelled(rows, found.prompt))
    if found is not None and found.codes and kind in (None, "task"):
        rows = _decoded(rows, found.codes, name)
    for wanted, value in (where or {}).items():
        rows = _rows_with(rows, wanted, value, name)
    if half is not None:
        rows = half.of(rows)
    cases: dict[str, Case] = {}
    for row in rows:
        if isinstance(row, BadRow):
            raise UserError(f"Line {row.line} of {name} holds no prompt: {row.why}; fix it.")
        case = _case(row, found, kind, name)
        cases.setdefault(str(case.messages), case)
    if len(cases) < len(rows):
        _log.warning("Rows of %s that repeat an earlier prompt are left out: %d.", name, len(rows) - len(cases))
    ids, taken = Counter(case.id for case in cases.values()), {case.id for case in cases.values()}
    named = []
    for n, case in enumerate(cases.values()):
        id = case.id
        while ids[case.id] > 1 and id in taken:
            id = f"{id}#{n}"
        taken.add(id)
        named.append(replace(case, id=id))
    return named


def digest(cases: Sequence[Case]) -> str:
    """A short digest of prompts and answers in their order."""
    return data_digest(f"{case.messages}{case.kind}{case.answer}" for case in cases)


def _fields(row: PromptRow) -> Mapping[str, Any]:
    return {name.strip().lower(): value for name, value in row.fields.items()}


def _format(rows: Sequence[PromptRow | BadRow], column: str | None) -> _Format | None:
    known = [_fields(row) for row in rows if isinstance(row, PromptRow) and row.fields]
    return next((one for one in FORMATS if one.fits(known)), None) if column is None else None


def _rows_with(rows: Sequence[PromptRow | BadRow], column: str, value: str, file: str) -> list[PromptRow | BadRow]:
    """The rows whose column holds a value, and the malformed ones, of which no one knows.

    Raises:
        UserError: There is none.
    """
    held = [_fields(row).get(column.lower(), "") if isinstance(row, PromptRow) else None for row in rows]
    kept = [row for row, one in zip(rows, held, strict=True) if one is None or str(one).strip() == value]
    if not any(isinstance(row, PromptRow) for row in kept):
        known = sorted({str(one).strip() for one in held if one})[:10]
        has = f"only {', '.join(known)}" if known else "no such column"
        raise UserError(f"No row of {file} has {value!r} in its column {column}: there is {has}.")
    return kept


def _spelled(rows: Sequence[PromptRow | BadRow], column: str) -> str:
    """The column as the file spells it."""
    names = next(row.fields for row in rows if isinstance(row, PromptRow) and row.fields)
    return next(name for name in names if name.strip().lower() == column)


def _decoded(rows: Sequence[PromptRow | BadRow], codes: tuple[str, ...], file: str) -> list[PromptRow | BadRow]:
    """The rows, with words for the numbers that are their labels.

    Raises:
        UserError: The numbers are others, or the last is missing: SST-2 and CoLA have the same columns, but 0 and 1.
    """
    words = {str(code): word for code, word in enumerate(codes)}
    labels = [str(_fields(row).get("label", "")).strip() if isinstance(row, PromptRow) else "" for row in rows]
    numbers = {label for label in labels if number(label)}
    if numbers and not {str(len(codes) - 1)} <= numbers <= words.keys():
        raise UserError(
            f"The labels of {file} are numbers, but not {', '.join(words)} for {', '.join(codes)}: write them as words."
        )
    return [
        replace(row, fields={**_fields(row), "label": words[label]})
        if isinstance(row, PromptRow) and label in words
        else row
        for row, label in zip(rows, labels, strict=True)
    ]


def _case(row: PromptRow, found: _Format | None, kind: Kind | None, file: str) -> Case:
    fields = _fields(row)
    told = kind or _own_kind(fields, found, file, row.line) or _of_format(found, file) or _named(file)
    if told is None:
        columns = ", ".join(map(repr, row.fields)) or "lines of text"
        raise UserError(
            f"Nothing in {file} says whether its prompts are harmful (it has only {columns}): add a column label, or "
            'say label = "harmful" or "harmless" where the recipe names the file.'
        )
    messages = as_messages(row.prompt)
    if all(turn["role"] != "user" for turn in messages):
        raise UserError(f"Line {row.line} of {file} is a conversation in which no user asks anything: fix it.")
    category = next((fields[name] for name in _CATEGORIES if fields.get(name)), None)
    target = fields.get("target") if told == "harmful" else None
    case = Case(
        id=str(row.id) if row.id is not None else str(row.index),
        messages=messages,
        kind=told,
        category=str(category) if category else None,
        target=target if isinstance(target, str) else None,
    )
    if told != "task":
        return case
    prompt, answer, form, labels = solution(
        found.name if found else None, case.prompt, fields, f"Line {row.line} of {file}"
    )
    messages = [*case.messages[:-1], {**case.messages[-1], "content": prompt}]
    return Case(case.id, messages, "task", case.category, None, answer, form, labels)


def _of_format(found: _Format | None, file: str) -> Kind | None:
    """What all rows of a published set are. JailbreakBench has its benign behaviors in a file of the same columns."""
    kind = found.kind if found is not None else None
    return "harmless" if kind == "harmful" and _named(file) == "harmless" else kind


def _own_kind(fields: Mapping[str, Any], found: _Format | None, file: str, line: int) -> Kind | None:
    label = str(fields.get("label", "")).strip().lower()
    if found is not None and found.name == "xstest":
        unsafe = label == "unsafe" or (not label and str(fields["type"]).startswith("contrast"))
        return "harmful" if unsafe else "look-alike"
    if found is None and label and label not in _KINDS:
        raise UserError(
            f"Line {line} of {file} has the label {label!r}, which is none of {', '.join(_KINDS)}: fix it, or say "
            "label = ... for all rows where the recipe names the file."
        )
    return _KINDS.get(label)


def _named(file: str) -> Kind | None:
    lowered = file.lower().replace("-", "_")
    return next((kind for name, kind in _BY_NAME.items() if name in lowered), None)
