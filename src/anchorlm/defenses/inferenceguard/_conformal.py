from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from anchorlm.records import UserError

if TYPE_CHECKING:
    import torch

Method = Literal["crc", "ltt"]
"""`crc`: conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814), which bounds the expected risk. `ltt`:
learn then test (Angelopoulos et al. 2021, arXiv 2110.01052), which bounds the risk with high probability."""


def upper_bound(hits: int, n: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson upper bound of a rate: the largest p under which at most `hits` of `n` are as
    unlikely as `1 - confidence`.

    Args:
        hits: How often it happened.
        n: Out of how many.
        confidence: 1 - delta.
    """
    if hits >= n:
        return 1.0
    low, high = hits / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial(hits, n, middle) > 1 - confidence else (low, middle)
    return high


def _binomial(hits: int, n: int, p: float) -> float:
    """P(X <= hits) of a binomial distribution with 0 < p < 1."""
    return float(_at_most(n, p)[hits])


def _at_most(n: int, p: float) -> torch.Tensor:
    """P(X <= k) for every k from 0 to n (n + 1,)."""
    import torch

    k = torch.arange(n + 1, dtype=torch.float64)
    ways = torch.tensor(n + 1.0, dtype=torch.float64).lgamma() - (k + 1).lgamma() - (n + 1 - k).lgamma()
    return (ways + k * math.log(p) + (n - k) * math.log1p(-p)).logcumsumexp(0).exp()


def allowed(n: int, risk: float, method: Method, confidence: float = 0.95) -> int:
    """How many of `n` calibration prompts may end unsafe and emitted. -1 if even none of them shows enough.

    `crc`: the largest k with `(k + 1) / (n + 1) <= risk`. `ltt`: the largest k whose Clopper-Pearson bound is at most
    `risk`. The limits are tested from the strictest on until the first fails, so none is tested twice.
    """
    if method == "crc":
        return math.floor(risk * (n + 1) + 1e-9) - 1
    # The bound is at most `risk` just where so few hits are unlikely under it.
    return int((_at_most(n, risk)[:n] <= (1 - confidence) * (1 + 1e-9)).sum()) - 1


def least_refused(unsafe: int, n: int, risk: float, method: Method, confidence: float = 0.95) -> int:
    """How many of `n` calibration prompts any limit for this risk must refuse, however well costs tell harm apart.

    Where more of what a pipeline answers is unsafe than the risk allows, the difference has to go: a perfect cost model
    holds back these and nothing else.

    Args:
        unsafe: Prompts with an answer that was labeled unsafe.
        n: All calibration prompts.
        risk: See `allowed`, as for what follows.
        method: Which statement.
        confidence: 1 - delta, for `ltt`.
    """
    return max(0, unsafe - max(0, allowed(n, risk, method, confidence)))


def labels_needed(risk: float, method: Method, confidence: float = 0.95) -> int:
    """The fewest calibration prompts that can show `risk`, if none of them ends unsafe and emitted."""
    if method == "crc":
        return math.ceil(1 / risk - 1 - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk) - 1e-9)


def check_level(risk: float, method: str, confidence: float) -> None:
    """Says what is wrong with a level before anything is read.

    Raises:
        UserError: A level or method that does not exist.
    """
    if method not in get_args(Method):
        raise UserError(f"method = {method!r} is not known; it is {' or '.join(get_args(Method))}.")
    if not 0 < risk < 1 or not 0 < confidence < 1:
        raise UserError(f"risk = {risk} and confidence = {confidence} are shares: give values between 0 and 1.")


def calibrated_limit(
    costs: Sequence[float], unsafe: Sequence[bool], risk: float, method: Method = "crc", confidence: float = 0.95
) -> float:
    """The highest cost at which a response may be emitted so that unsafe ones are rarely emitted.

    The loss of a prompt, "unsafe and emitted", can only fall as the limit falls, because the limit decides about one
    finished response and changes nothing before it: that is what both methods need.

    Args:
        costs: The cost of each response that the pipeline gave without a limit. Infinite where it gave none.
        unsafe: Whether an independent labeler found it unsafe.
        risk: The stated level, above 0 and below 1.
        method: Which statement is wanted.
        confidence: 1 - delta, for `ltt`.

    Returns:
        The limit: a response is emitted where its cost is at most this. Infinite where nothing needs to be held back.

    Raises:
        UserError: A level or method that does not exist, or too few labels for the level.
    """
    check_level(risk, method, confidence)
    if len(costs) != len(unsafe) or any(map(math.isnan, costs)):
        raise UserError("Every response needs a cost that is a number and a label: correct the labels.")
    if (k := allowed(len(costs), risk, method, confidence)) < 0:
        raise UserError(
            f"{len(costs)} labels cannot show a risk of {risk:g}: give at least "
            f"{labels_needed(risk, method, confidence)}, or state a higher risk."
        )
    harmful = sorted(cost for cost, bad in zip(costs, unsafe, strict=True) if bad and math.isfinite(cost))
    # Just below the first unsafe response that is one too many; equal costs are held back together.
    return math.nextafter(harmful[k], -math.inf) if k < len(harmful) else math.inf


def statement(n: int, risk: float, method: Method, confidence: float, labeler: str) -> str:
    """What was shown, and what it rests on, in words."""
    share = f"{100 * risk:g} %"
    if method == "crc":
        said = f"on average over calibration sets, at most {share} of prompts get a response that is unsafe"
    else:
        said = (
            f"with a confidence of {100 * confidence:g} % over the draw of the calibration set, at most {share} of "
            "prompts get a response that is unsafe"
        )
    return (
        f"By {n} labels of {labeler}: {said}, in that labeler's sense. This holds for prompts drawn like the "
        "calibration prompts, independently of them, and answered by the same pipeline. It does not hold under attack, "
        "for other kinds of prompts, or where the labeler errs. The fixed refusal counts as safe."
    )
