from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from anchorlm.records import UserError
from anchorlm.tokens import _store
from anchorlm.tokens._continuations import Continuations, Written
from anchorlm.tokens._kinds import Kind
from anchorlm.tokens._maps import NOWHERE, Fate, Tables, first_token_tables, paper_tables
from anchorlm.tokens._retokenizer import Encoded, Retokenizer
from anchorlm.tokens._twins import Twins
from anchorlm.tokens._vocabulary import ByteVocabulary

_LEAST = 1e-30
"""The least that what was written is taken to have been likely."""
_OPENINGS = 1024
"""How many of the anchor's tokens a response may open with: the most probable."""


@dataclass(frozen=True, slots=True)
class ProjectionReport:
    """What becomes of the anchor's tokens (shares from 0 to 1).

    Attributes:
        one_to_one: Share of the tokens that are one target token.
        split: Share that becomes several target tokens, of which the first is taken.
        dropped: Share that gets no mass: special tokens without a counterpart, bytes that the target cannot write.
    """

    one_to_one: float
    split: float
    dropped: float


class Projection:
    """Carries a distribution over the anchor's vocabulary to the target's.

    Attributes:
        kind: How.
        anchor: The anchor's vocabulary.
        target: The target's vocabulary.
        anchor_size: Width of the distributions that come in.
        target_size: Width of those that go out.
        twins: Reads the target's tokens as the anchor's, where the two vocabularies are one but for a few tokens.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        kind: Kind,
        anchor: ByteVocabulary,
        target: ByteVocabulary,
        anchor_size: int,
        target_size: int,
        top: int,
    ) -> None:
        self.kind = kind
        self.anchor = anchor
        self.target = target
        self.anchor_size = anchor_size
        self.target_size = target_size
        self._top = top
        self._fate = tables.fate
        index = torch.full((anchor_size,), target_size, dtype=torch.int64)
        index[: anchor.size] = torch.where(tables.index == NOWHERE, target_size, tables.index)
        is_open = torch.zeros(anchor_size, dtype=torch.bool)
        is_open[: len(tables.open)] = tables.open
        self.twins = Twins(anchor, target, tables.shared) if len(tables.shared) else None
        self._continuations = Continuations(anchor, target, index, target_size, tables.shared)
        self._reader = Retokenizer(target)
        self._looks_ahead = bool(is_open.any())
        self._tables = {torch.device("cpu"): (index, is_open)}

    @classmethod
    def build(
        cls,
        anchor_tokenizer: Any,
        target_tokenizer: Any,
        kind: Kind = "first-token",
        *,
        anchor_size: int | None = None,
        target_size: int | None = None,
        top: int = 50,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Builds the projection, or reads it from the cache.

        Args:
            anchor_tokenizer: A fast tokenizer, a `tokenizers.Tokenizer` or a `ByteVocabulary`.
            target_tokenizer: The same, for the target.
            kind: `first-token` (all mass, to the first target token of each anchor token), `lookahead` (the same, after
                one more anchor step for tokens that a longer target token may begin with), or one of the paper's
                three: `paper-drop`, `paper-first`, `paper-exact` (arXiv 2606.12342, section "LBM"). The exact oracle
                is a function of its own, `exact_projection`: it asks the anchor for its continuations.
            anchor_size: Rows of the anchor's output layer, where it has more than its tokenizer has ids.
            target_size: The same for the target.
            top: How many of the anchor's tokens the paper's kinds look at (B).
            cache_dir: Folder for the tables. By default `ANCHORLM_CACHE` or `~/.cache/anchorlm`.

        Raises:
            UserError: An unknown kind, or `exact`. A size below the tokenizer's, or two tokenizers that share nothing.
        """
        if str(kind) == "exact":
            raise UserError(
                "The exact projection asks the anchor model how it goes on, which two tokenizers cannot say: call "
                "anchorlm.tokens.exact_projection with the model, or choose lookahead, which comes closest to it."
            )
        if kind not in get_args(Kind):
            raise UserError(f"there is no projection {kind!r}; choose one of: {', '.join(get_args(Kind))}.")
        anchor = ByteVocabulary.from_tokenizer(anchor_tokenizer)
        target = ByteVocabulary.from_tokenizer(target_tokenizer)
        sizes = {"anchor": (anchor_size, anchor.size), "target": (target_size, target.size)}
        for side, (rows, size) in sizes.items():
            if rows is not None and rows < size:
                raise UserError(
                    f"{side}_size={rows} is below the {size} ids of the {side}'s tokenizer; "
                    "give the size of the model's output layer, or the tokenizer that the model was trained with."
                )
        file = _store.cache_file(Path(cache_dir) if cache_dir else None, kind, anchor, target)
        tables = _store.load(file, anchor, target)
        if tables is None:
            if kind.startswith("paper-"):
                tables = paper_tables(anchor, target, kind)
            else:
                tables = first_token_tables(anchor, target, look_ahead=kind == "lookahead")
            _refuse_strangers(tables, anchor)
            _store.save(file, tables)
        return cls(
            tables,
            kind=kind,
            anchor=anchor,
            target=target,
            anchor_size=anchor_size or anchor.size,
            target_size=target_size or target.size,
            top=top,
        )

    def __call__(self, probs: Tensor, expanded: Tensor | None = None, continuation: Tensor | None = None) -> Tensor:
        """Projects distributions.

        Args:
            probs: (B, V_anchor), each row sums to 1.
            expanded: (N, 2), what `lookahead_candidates(probs)` gave: rows of `probs` and anchor ids.
            continuation: (N, V_anchor), the anchor's distribution after each of those ids.

        Returns:
            (B, V_target), each row sums to 1. NaN where all of a row's mass lies on tokens that get none.

        Raises:
            UserError: The width is not `anchor_size`.
        """
        self._check_width(probs)
        probs = probs.float()
        if self.kind.startswith("paper-"):
            top, ids = probs.topk(min(self._top, self.anchor_size))
            spread = probs.new_zeros(len(probs), self.target_size + 1)
            spread.scatter_add_(1, self._on(probs.device)[0][ids], top)
        elif expanded is None or continuation is None or not len(expanded):
            spread = self._scatter(probs)
        else:
            spread = torch.zeros(len(probs), self.target_size + 1)
            for n, (row, into) in enumerate(zip(probs.cpu(), spread, strict=True)):
                here = expanded[:, 0] == n
                self._whole(into, row, Written(), expanded[here], continuation[here])
            spread = spread.to(probs.device)
        kept = spread[:, :-1]
        mass = kept.sum(-1, keepdim=True)
        # A float32 softmax over so many entries misses 1 by 1e-5; a shared vocabulary's rows stay exactly as they are.
        return kept * ((mass + spread[:, -1:] if self.twins is not None else 1.0) / mass)

    def lookahead_candidates(
        self, probs: Tensor, *, width: int = 8, floor: float = 0.01, written: Sequence[int] = ()
    ) -> Tensor:
        """The anchor tokens worth one more anchor step: with them a longer target token may begin, or be completed.

        Args:
            probs: (B, V_anchor).
            width: At most so many a row, the most probable.
            floor: Only tokens with at least this probability.
            written: The target's tokens before them, since a boundary.

        Returns:
            (N, 2): row of `probs` and anchor id, for `__call__`. Empty for every kind but `lookahead`.
        """
        self._check_width(probs)
        if not self._looks_ahead:
            return torch.zeros(0, 2, dtype=torch.int64, device=probs.device)
        is_open = self._on(probs.device)[1]
        if written:
            is_open = is_open.clone()
            last = self.target.token_bytes(written[-1])
            for index in probs.amax(0).topk(min(2 * width, self.anchor.size)).indices.tolist():
                span = self.target.extending(last + self.anchor.token_bytes(index))
                is_open[index] |= bool(self.anchor.token_bytes(index)) and span.start < span.stop
        mass, ids = (probs * is_open).topk(min(width, self.anchor.size))
        rows, columns = ((mass >= floor) & (mass > 0)).nonzero(as_tuple=True)
        return torch.stack([rows, ids[rows, columns]], dim=1)

    def project_pending(
        self,
        steps: Tensor,
        encoded: Encoded,
        expanded: Tensor | None = None,
        continuation: Tensor | None = None,
        *,
        written: Sequence[int] | None = None,
    ) -> Tensor:
        """What comes next after a response, given the target's tokens so far.

        Sums over the ways in which the anchor may have come here: the pending bytes are as they stand (`tail`), or
        they, or the end of them, are the beginning of a longer token, which then says how the response goes on.
        Each way weighs what the anchor gave it. Of each, only those texts count whose canonical tokens begin with the
        ones that the target has written: the others stood on another of the target's tokens before.

        Args:
            steps: (1 + len(encoded.tail), V_anchor), the anchor's distribution after `encoded.ids`, and after each
                further id of `encoded.tail`.
            encoded: The response in the anchor's tokens.
            expanded: (N, 2), `lookahead_candidates(steps[-1:])`, as for `__call__`.
            continuation: (N, V_anchor), as for `__call__`.
            written: The response in the target's tokens, or those since a boundary that no later text can move
                (`Retokenizer.open_tokens`). By default the canonical ones. Empty: the target's next token is the first
                one of the text that follows, whatever it has written.

        Returns:
            (V_target,), sums to 1. NaN where no text whose tokens begin with `written` is possible.
        """
        self._check_width(steps)
        if len(steps) != len(encoded.tail) + 1:
            raise ValueError(f"{len(steps)} distributions for {len(encoded.tail)} pending tokens, one more is needed")
        if written is None:
            read = self._reader.encode(encoded.response)
            written = (*read.ids, *read.tail)[read.stable :]
        place = Written(self.target.decode(written), tuple(written))
        literal = self._literal(place.tokens, encoded.tail)
        device = steps.device
        steps = steps.float().cpu()
        spread = torch.zeros(self.target_size + 1)
        likely = steps[range(len(encoded.tail)), encoded.tail].double().flip(0).cumprod(0).flip(0).clamp(min=_LEAST)
        rest = encoded.pending
        for step, token, weight in zip(steps, encoded.tail, likely.tolist(), strict=False):
            self._continuations.extend(spread, step, place, rest, weight=1 / weight, literal=literal)
            rest = rest[len(self.anchor.token_bytes(token)) :]
        self._whole(spread, steps[-1], place, expanded, continuation, literal=literal)
        return _normalized(spread).to(device)

    def project_opening(self, probs: Tensor, lead: bytes) -> Tensor:
        """How a response opens, where the target writes `lead` (a space, as a rule) before it and the anchor does not.

        Args:
            probs: (V_anchor,), the anchor's distribution before the response.
            lead: What the target writes first.

        Returns:
            (V_target,), sums to 1.
        """
        self._check_width(probs)
        mass, ids = probs.float().cpu().topk(min(_OPENINGS, self.anchor_size))
        row = torch.zeros(self.anchor_size).scatter_(0, ids, mass)
        stops = sorted(self.anchor.stop)
        ends = row[stops]
        row[stops] = 0
        spread = torch.zeros(self.target_size + 1)
        self._whole(spread, row, Written(lead))
        spread.index_add_(0, self._on(row.device)[0][stops], ends)  # a response that is empty has no lead
        return _normalized(spread).to(probs.device)

    def report(self, probs: Tensor | None = None) -> ProjectionReport:
        """What becomes of the anchor's tokens: by count, or by the mass of `probs` (B, V_anchor) where given."""
        if probs is None:
            weights = torch.ones(self.anchor.size)
        else:
            weights = probs.detach().float().cpu().reshape(-1, self.anchor_size).mean(0)
        fate = torch.zeros(len(weights), dtype=torch.int64)
        fate[: self.anchor.size] = self._fate
        shares = torch.zeros(len(Fate)).index_add_(0, fate, weights) / weights.sum()
        return ProjectionReport(
            one_to_one=float(shares[Fate.ONE_TO_ONE]),
            split=float(shares[Fate.SPLIT]),
            dropped=float(shares[Fate.DROPPED]),
        )

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """On `device`: the target id of each anchor id (V_target for none), and which anchor ids are open."""
        if device not in self._tables:
            index, is_open = self._tables[torch.device("cpu")]
            self._tables[device] = index.to(device), is_open.to(device)
        return self._tables[device]

    def _scatter(self, probs: Tensor) -> Tensor:
        """(B, V_target + 1). The last column collects what gets no mass."""
        index = self._on(probs.device)[0].expand(probs.shape[0], -1)
        return probs.new_zeros(probs.shape[0], self.target_size + 1).scatter_add_(1, index, probs)

    def _whole(
        self,
        spread: Tensor,
        row: Tensor,
        written: Written,
        expanded: Tensor | None = None,
        continuation: Tensor | None = None,
        *,
        literal: bool = False,
    ) -> None:
        """Adds to `spread` where the tokens that begin after `written` lead. Some of them together with the next."""
        if expanded is None or continuation is None or not len(expanded):
            self._continuations.follow(spread, row, written, literal=literal)
            return
        heads = expanded[:, 1].cpu()
        others = row.clone()
        others[heads] = 0
        self._continuations.follow(spread, others, written, literal=literal)
        for head, follows in zip(heads.tolist(), continuation.float().cpu(), strict=True):
            place = Written(written.data + self.anchor.token_bytes(head), written.tokens)
            self._continuations.follow(spread, follows * row[head], place)

    def _literal(self, written: tuple[int, ...], tail: tuple[int, ...]) -> bool:
        """Whether the open end of the response stands in tokens of both vocabularies."""
        if self.twins is None or not self.twins.exact:
            return False
        return len(tail) <= len(written) and self.twins.read(written[len(written) - len(tail) :]) == list(tail)

    def _check_width(self, probs: Tensor) -> None:
        if probs.shape[-1] != self.anchor_size:
            raise UserError(
                f"the anchor gives {probs.shape[-1]} probabilities, its projection expects {self.anchor_size}; "
                f"build it with anchor_size={probs.shape[-1]}."
            )


def _normalized(spread: Tensor) -> Tensor:
    """(V_target,) without the last entry, which collects what gets no mass."""
    return spread[:-1] / spread[:-1].sum()


def _refuse_strangers(tables: Tables, anchor: ByteVocabulary) -> None:
    written = torch.tensor([bool(data) for data in anchor.bytes])
    if not bool((tables.index[written] != NOWHERE).any()):
        raise UserError(
            "the target's tokenizer cannot write a single token of the anchor's: they share nothing; "
            "choose an anchor whose tokenizer covers the target's language."
        )
