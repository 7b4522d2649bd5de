from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from anchorlm.judging._classifier import ClassifierJudge, Layout
from anchorlm.judging._scores import Scorer
from anchorlm.models import ModelSettings, load_model, load_outline, load_tokenizer, prepack
from anchorlm.records import Messages, UserError

SAFE_RLHF_TEMPLATE = (
    "{{ bos_token }}BEGINNING OF CONVERSATION: {% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}{% endif %}{% endfor %}"
)
"""How the cost and reward models of Safe-RLHF (arXiv 2310.12773) read a conversation. They know no system turns."""


class ClassifierScorer(Scorer):
    """A sequence classifier as a cost or a reward: what its head says, before any sigmoid.

    With one logit the score is that logit. With several classes it is the log-odds of `label`, so a cost is above
    0 where the label is likelier than not. The models of Safe-RLHF (a `score_head`; cost above 0 is unsafe) are read as
    they are published.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        label: The name or index of the label that is scored. Not needed with a single logit.
        layout: As for `ClassifierJudge`.
        scale: Multiplies what the head says. -1 turns a model round that gives more to safer texts.
        offset: Is added then. It moves the line between safe and unsafe to 0.
        max_tokens: Most tokens of one forward, padding included.
        name: For traces and reports.

    Raises:
        UserError: As `ClassifierJudge`. Or a scale of 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: str | int | None = None,
        layout: Layout | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        max_tokens: int = 16_384,
        name: str = "classifier",
    ) -> None:
        if scale == 0 or not isfinite(scale) or not isfinite(offset):
            raise UserError(
                f"scale = {scale} and offset = {offset} tell no texts apart: give a scale such as 1 or -1, and an "
                "offset such as 0."
            )
        self._head = _Logit(model, tokenizer, harm_label=label, layout=layout, max_tokens=max_tokens, name=name)
        self._scale = scale
        self._offset = offset
        self._name = name

    @classmethod
    def load(cls, settings: ModelSettings, *, weights: bool = True, **options: Any) -> Self:
        """Loads a classifier. `options` as the keyword arguments of the class.

        Args:
            settings: Which, and how.
            weights: Without them nothing can be scored, but all settings are checked.
            **options: Keyword arguments of the class.

        Raises:
            UserError: Nothing of the kind is there, or a setting does not suit.
        """
        tokenizer = load_tokenizer(settings)
        published = _SafeRLHF.config(settings)
        if published is not None and settings.chat_template is None:
            tokenizer.chat_template = SAFE_RLHF_TEMPLATE
        if published is not None and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            # Safe-RLHF reads the end of text, which transformers would take for padding: any other token will do.
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1 if tokenizer.eos_token_id == 0 else 0)
        kind = AutoModelForSequenceClassification if published is None else _SafeRLHF(published)
        model = prepack(load_model(settings, kind)) if weights else load_outline(settings, kind)
        if published is not None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model, tokenizer, name=settings.path, **options)

    @property
    def forwards(self) -> int:
        """Forwards of the model so far."""
        return self._head.forwards

    @property
    def name(self) -> str:
        """See `Scorer`."""
        return f"classifier:{self._name}"

    @property
    def settings(self) -> Mapping[str, object]:
        """See `Scorer`."""
        return {
            **self._head.settings,
            "scale": self._scale,
            "offset": self._offset,
        }

    async def __call__(self, messages: Messages, responses: Sequence[str]) -> list[float]:
        """See `Scorer`.

        Raises:
            UnreadableError: The conversation leaves no room in the classifier's context.
            DefenseError: The conversation and a response do not fit into the classifier's context.
        """
        values = await self._head.values(messages, responses)
        return [self._scale * value + self._offset for value in values]


class _Logit(ClassifierJudge):
    """The texts and batches of a classifying judge, with its head read as log-odds."""

    role = "cost or reward model"
    label_option = "label"

    def read(self, logits: Tensor) -> Tensor:
        own = logits[:, self._label]
        if self._separate:
            return own
        others = [index for index in range(logits.shape[-1]) if index != self._label]
        return own - logits[:, others].logsumexp(dim=-1)


class _SafeRLHF:
    """Stands for an auto class of transformers where a checkpoint has the layout of Safe-RLHF: a `score_head`, with a
    bias or without, on a bare decoder. What its normalizer kept is not used, as in Safe-RLHF's own evaluation.
    """

    def __init__(self, config: Any) -> None:
        base: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]

        class WithScoreHead(base):  # type: ignore[misc]
            def __init__(self, config: Any) -> None:
                config.num_labels = int(getattr(config, "score_dim", 1))
                super().__init__(config)
                self.score = nn.Linear(config.hidden_size, config.num_labels)

        self._kind = WithScoreHead

    key_mapping: ClassVar = {r"^score_head\.": "score."}

    def from_pretrained(self, path: str, **options: Any) -> Any:
        model, report = self._kind.from_pretrained(path, key_mapping=self.key_mapping, **options)
        self.settle(model, report)
        return model, report

    @staticmethod
    def settle(model: Any, report: dict[str, Any]) -> None:
        """A head without a bias, and a normalizer, are no faults of a checkpoint."""
        if "score.bias" in report["missing_keys"]:
            nn.init.zeros_(model.score.bias)
            report["missing_keys"] = set(report["missing_keys"]) - {"score.bias"}

    def from_config(self, config: Any, **options: Any) -> Any:
        return self._kind._from_config(config, attn_implementation=options.get("attn_implementation"))

    @staticmethod
    def config(settings: ModelSettings) -> Any | None:
        """The checkpoint's configuration, if it is laid out so."""
        try:
            config = AutoConfig.from_pretrained(
                settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            )
        except (OSError, ValueError, KeyError):
            return None  # what is wrong with it is said when it is loaded
        names = getattr(config, "architectures", None) or ()
        return config if any(name.endswith("ForScore") for name in names) else None
