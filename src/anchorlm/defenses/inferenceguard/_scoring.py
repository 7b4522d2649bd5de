from __future__ import annotations

from asyncio import gather
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from anchorlm.defenses._base import Defense
from anchorlm.defenses.inferenceguard._work import Work

if TYPE_CHECKING:
    from anchorlm.defenses.inferenceguard._critic import Critic
    from anchorlm.search import Beam


class Scoring:
    """What beams are worth, by cost model, judge, critic and reward model.

    Args:
        defense: Asks its scorers and its judge.
        critic: Scores beams that are not finished. None: the reward model does.
    """

    def __init__(self, defense: Defense, critic: Critic | None) -> None:
        self._defense = defense
        self._critic = critic
        self._model = defense.target.model

    async def score(self, work: Work, beams: Sequence[Beam], *, ranked: bool) -> None:
        """Sets cost, state and score of each beam: its reward, or what the critic expects. `-inf` over budget."""
        from anchorlm.search import blank

        request, settings = work.request, work.settings
        costs = await self._defense.scores("cost", request, [work.counted(self.text(beam)) for beam in beams])
        for beam, cost in zip(beams, costs, strict=True):
            beam.state = beam.state.after(len(beam.tokens) - beam.start, cost, settings.gamma)
            beam.cost = cost
            whole = beam.reason is not None
            work.least = min(work.least, cost) if whole else work.least
            empty = whole and blank(request.cut(self.text(beam)))  # no answer, however little it costs
            beam.score = 0.0 if beam.state.within and not (whole and cost > settings.budget) and not empty else -inf
        if self._defense.team.judge is not None:
            # What is released block by block cannot be taken back, so the judge reads every block then.
            ready = [beam for beam in beams if beam.reason is not None or settings.release == "blocks"]
            await self.hear(work, [beam for beam in ready if beam.score == 0.0])
        safe = [beam for beam in beams if beam.score == 0.0]
        if not ranked or not safe:
            return
        if self._critic is not None:
            await self.expect([beam for beam in safe if beam.reason is None])
        known = [beam for beam in safe if self._critic is None or beam.reason is not None]
        rewards = await self._defense.scores("reward", request, [self.text(beam) for beam in known])
        for beam, reward in zip(known, rewards, strict=True):
            beam.score = beam.reward = reward

    async def hear(self, work: Work, beams: Sequence[Beam]) -> None:
        """The judge has the last word on what is given: it can turn down what the cost model finds safe.

        Where a gate stayed closed it is asked if there is doubt: the gate is near its threshold, or the cost near the
        budget.
        """
        comfortable = work.settings.budget - work.settings.comfort
        beams = [beam for beam in beams if work.guided or work.doubtful or beam.cost > comfortable]
        if not beams:
            return
        grades = await self._defense.grades(work.request, [self.text(beam) for beam in beams])
        for beam, grade in zip(beams, grades, strict=True):
            if not grade.harm <= work.settings.max_harm:
                beam.score = -inf
                work.vetoed += 1

    async def expect(self, beams: Sequence[Beam]) -> None:
        """Unfinished beams are worth what the critic expects of them, if it expects them to end within budget."""
        import torch

        if self._critic is None or not beams:
            return
        states = await gather(*(beam.proposal.row.activations() for beam in beams))
        left = torch.tensor([beam.state.left for beam in beams])
        safety, reward = self._critic(torch.stack([state[-1, -1] for state in states]), left)
        for beam, safe, worth in zip(beams, safety.tolist(), reward.tolist(), strict=True):
            beam.score = worth if safe >= self._critic.threshold else -inf

    def shown(self, beam: Beam) -> tuple[int, ...]:
        """Its tokens, but for those of an unfinished beam that may begin another turn."""
        ends = self._model.answer_ends
        return beam.tokens if beam.reason is not None else beam.tokens[: ends.settled(beam.tokens)]

    def text(self, beam: Beam) -> str:
        """What would be emitted. At the end of an unfinished beam a character may wait for its last bytes."""
        text = self._model.vocabulary.decode(self.shown(beam)).decode("utf-8", errors="replace")
        return text if beam.reason is not None else text.rstrip("\ufffd")
