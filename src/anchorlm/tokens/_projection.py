from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from anchorlm.records import UserError
from anchorlm.tokens import _store
from anchorlm.tokens._continuations import Continuations
from anchorlm.tokens._maps import NOWHERE, Fate, Tables, first_token_tables, paper_tables
from anchorlm.tokens._retokenizer import Encoded
from anchorlm.tokens._vocabulary import ByteVocabulary

_FOLLOWERS = 256
"""How many of the tokens after one that is looked beyond are told apart; the others count as if nothing followed."""
_EXTENSIONS = 2048
"""How many of the tokens that go beyond pending bytes count: the most probable."""

Kind = Literal["first-token", "lookahead", "paper-drop", "paper-first", "paper-exact"]


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
        self._same = anchor.digest == target.digest
        self._fate = tables.fate
        self._continuations = Continuations(anchor, target)
        index = torch.full((anchor_size,), target_size, dtype=torch.int64)
        index[: anchor.size] = torch.where(tables.index == NOWHERE, target_size, tables.index)
        is_open = torch.zeros(anchor_size, dtype=torch.bool)
        is_open[: len(tables.open)] = tables.open
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
            cache_dir: Folder for the tables; by default `ANCHORLM_CACHE` or `~/.cache/anchorlm`.

        Raises:
            UserError: An unknown kind, or `exact`; a size below the tokenizer's, or two tokenizers that share nothing.
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
            (B, V_target), each row sums to 1; NaN where all of a row's mass lies on tokens that get none.

        Raises:
            UserError: The width is not `anchor_size`.
        """
        self._check_width(probs)
        probs = probs.float()
        paper = self.kind.startswith("paper-")
        if paper:
            top, ids = probs.topk(min(self._top, self.anchor_size))
            spread = probs.new_zeros(len(probs), self.target_size + 1)
            spread.scatter_add_(1, self._on(probs.device)[0][ids], top)
        else:
            spread = self._scatter(probs)
            if expanded is not None and continuation is not None and len(expanded):
                self._look_ahead(spread, probs, expanded, continuation.float())
        kept = spread[:, :-1]
        mass = kept.sum(-1, keepdim=True)
        # A float32 softmax over so many entries misses 1 by 1e-5; a shared vocabulary's rows stay exactly as they are.
        return kept * ((mass + spread[:, -1:] if self._same and not paper else 1.0) / mass)

    def lookahead_candidates(self, probs: Tensor, *, width: int = 8, floor: float = 0.01) -> Tensor:
        """The anchor tokens worth one more anchor step: with them a longer target token may begin.

        Args:
            probs: (B, V_anchor).
            width: At most so many a row, the most probable.
            floor: Only tokens with at least this probability.

        Returns:
            (N, 2): row of `probs` and anchor id, for `__call__`; empty for every kind but `lookahead`.
        """
        self._check_width(probs)
        if not self._looks_ahead:
            return torch.zeros(0, 2, dtype=torch.int64, device=probs.device)
        mass, ids = (probs * self._on(probs.device)[1]).topk(min(width, self.anchor.size))
        rows, columns = (mass >= floor).nonzero(as_tuple=True)
        return torch.stack([rows, ids[rows, columns]], dim=1)

    def project_pending(
        self,
        steps: Tensor,
        encoded: Encoded,
        expanded: Tensor | None = None,
        continuation: Tensor | None = None,
    ) -> Tensor:
        """What the anchor says next when the response ends in bytes that one of its tokens may yet go beyond.

        Sums over the ways in which the anchor may have come here: the pending bytes are as they stand (`tail`), or
        they, or the end of them, are the beginning of a longer token, which then says how the response goes on.
        Each way weighs what the anchor gave it.

        Args:
            steps: (1 + len(encoded.tail), V_anchor), the anchor's distribution after `encoded.ids`, and after each
                further id of `encoded.tail`.
            encoded: The response in the anchor's tokens.
            expanded: (N, 2), `lookahead_candidates(steps[-1:])`, as for `__call__`.
            continuation: (N, V_anchor), as for `__call__`.

        Returns:
            (V_target,), sums to 1.
        """
        self._check_width(steps)
        if len(steps) != len(encoded.tail) + 1:
            raise ValueError(f"{len(steps)} distributions for {len(encoded.tail)} pending tokens, one more is needed")
        steps = steps.float()
        whole = self(steps[-1:], expanded, continuation)[0]
        if not encoded.tail:
            return whole
        weight = 1.0
        rest = encoded.pending
        spread = steps.new_zeros(self.target_size + 1)
        for step, written in zip(steps, encoded.tail, strict=False):
            longer = self.anchor.by_bytes[self.anchor.extending(rest)]
            if len(longer):
                mass, order = step[longer.to(step.device)].topk(min(_EXTENSIONS, len(longer)))
                targets = self._continuations.first_ids(longer[order.cpu()], written=len(rest))
                spread.index_add_(0, torch.where(targets < 0, self.target_size, targets).to(step.device), mass * weight)
            weight *= max(float(step[written]), 1e-6)
            rest = rest[len(self.anchor.token_bytes(written)) :]
        mixed = spread[:-1] + weight * whole
        return mixed / mixed.sum()

    def project_opening(self, probs: Tensor, lead: bytes) -> Tensor:
        """How a response opens, where the target writes `lead` (a space, as a rule) before it and the anchor does not.

        Looks at the anchor's likeliest tokens only: there is one such step in a response.

        Args:
            probs: (V_anchor,), the anchor's distribution before the response.
            lead: What the target writes first.

        Returns:
            (V_target,), sums to 1.
        """
        self._check_width(probs)
        stops = self(probs[None])[0]  # where tokens that end a response go is known here
        mass, ids = probs[: self.anchor.size].float().topk(min(_FOLLOWERS, self.anchor.size))
        written = torch.tensor([bool(self.anchor.token_bytes(index)) for index in ids.tolist()], device=probs.device)
        targets = self._continuations.first_ids(ids.cpu(), head=lead).to(probs.device)
        spread = probs.new_zeros(self.target_size + 1, dtype=torch.float32)
        spread.index_add_(0, torch.where((targets < 0) | ~written, self.target_size, targets), mass)
        opening = spread[:-1]
        for index in self.target.stop:
            opening[index] = stops[index]
        return opening / opening.sum()

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
        """(B, V_target + 1); the last column collects what gets no mass."""
        index = self._on(probs.device)[0].expand(probs.shape[0], -1)
        return probs.new_zeros(probs.shape[0], self.target_size + 1).scatter_add_(1, index, probs)

    def _look_ahead(self, spread: Tensor, probs: Tensor, expanded: Tensor, continuation: Tensor) -> None:
        """Moves the mass of each expanded token to the first target tokens of what follows it; in place."""
        rows, heads = expanded.unbind(1)
        mass = probs[rows, heads]
        follow, ids = continuation[:, : self.anchor.size].topk(min(_FOLLOWERS, self.anchor.size))
        unmoved = self._on(probs.device)[0][heads]
        targets = torch.stack(
            [
                self._continuations.first_ids(after, head=self.anchor.token_bytes(head))
                for head, after in zip(heads.tolist(), ids.cpu(), strict=True)
            ]
        ).to(probs.device)
        targets = torch.where(targets < 0, unmoved[:, None], targets)
        moved = mass[:, None] * follow
        spread.index_put_((rows[:, None].expand_as(targets), targets), moved, accumulate=True)
        spread.index_put_((rows, unmoved), -moved.sum(1), accumulate=True)
        spread.clamp_(min=0)

    def _check_width(self, probs: Tensor) -> None:
        if probs.shape[-1] != self.anchor_size:
            raise UserError(
                f"the anchor gives {probs.shape[-1]} probabilities, its projection expects {self.anchor_size}; "
                f"build it with anchor_size={probs.shape[-1]}."
            )


def _refuse_strangers(tables: Tables, anchor: ByteVocabulary) -> None:
    written = torch.tensor([bool(data) for data in anchor.bytes])
    if not bool((tables.index[written] != NOWHERE).any()):
        raise UserError(
            "the target's tokenizer cannot write a single token of the anchor's: they share nothing; "
            "choose an anchor whose tokenizer covers the target's language."
        )
