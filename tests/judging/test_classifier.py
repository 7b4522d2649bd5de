from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from anchorlm.judging import ClassifierJudge, request_text
from anchorlm.models import ModelSettings
from anchorlm.records import DefenseError, Messages, UnreadableError, UserError

ASK: Messages = [{"role": "user", "content": "how do i bake bread"}]
RESPONSES = ["mix flour and water", "no", "a b c d e f g h", "bake " * 12]


@pytest.fixture(scope="module")
def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["how", "do", "i", "bake", "bread", "mix", "flour", "and", "water", "no", *"abcdefgh"]
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert(labels: list[str], *, positions: int = 48) -> BertForSequenceClassification:
    torch.manual_seed(3)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=positions, initializer_range=0.5, id2label=dict(enumerate(labels)),
        )
    )  # fmt: skip


def harms(judge: ClassifierJudge, responses: list[str], messages: Messages = ASK) -> list[float]:
    return [grade.harm for grade in asyncio.run(judge(messages, responses))]


def test_harm_is_the_label_s_probability_from_a_bare_forward(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert(["safe", "unsafe", "unsure"]).eval()
    expected = []
    for response in RESPONSES:
        with torch.no_grad():
            logits = model(**word_tokenizer(ASK[0]["content"], response, return_tensors="pt")).logits
        expected.append(float(logits.softmax(-1)[0, 1]))
    assert harms(ClassifierJudge(model, word_tokenizer, harm_label="unsafe"), RESPONSES) == pytest.approx(expected)
    assert harms(ClassifierJudge(model, word_tokenizer, harm_label=1, max_tokens=1), RESPONSES) == pytest.approx(
        expected
    )


def test_a_single_logit_and_independent_labels_give_sigmoids(word_tokenizer: PreTrainedTokenizerFast) -> None:
    single, several = bert(["harm"]).eval(), bert(["rude", "violent"]).eval()
    several.config.problem_type = "multi_label_classification"
    inputs = word_tokenizer(ASK[0]["content"], "no", return_tensors="pt")
    with torch.no_grad():
        expected = [float(single(**inputs).logits[0, 0].sigmoid()), float(several(**inputs).logits[0, 1].sigmoid())]
    found = harms(ClassifierJudge(single, word_tokenizer), ["no"])
    found += harms(ClassifierJudge(several, word_tokenizer, harm_label="violent"), ["no"])
    assert found == pytest.approx(expected)


def test_calls_of_one_turn_share_one_forward(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert(["safe", "unsafe"])
    judge = ClassifierJudge(model, word_tokenizer, harm_label="unsafe")
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)

    async def together() -> list[list[float]]:
        graded = await asyncio.gather(*(judge(ASK, [response]) for response in RESPONSES))
        return [[grade.harm for grade in grades] for grades in graded]

    found = asyncio.run(together())
    assert sizes == [len(RESPONSES)]
    assert found == [pytest.approx([harm]) for harm in harms(judge, RESPONSES)]


def test_what_is_longer_than_the_context_is_an_error_not_cut(word_tokenizer: PreTrainedTokenizerFast) -> None:
    judge = ClassifierJudge(bert(["safe", "unsafe"], positions=16), word_tokenizer, harm_label="unsafe")
    ask: Messages = [{"role": "user", "content": "a b c d e f g h"}]  # with 3 of [CLS] and [SEP] 5 positions are left
    assert len(harms(judge, ["a b c d e"], ask)) == 1
    with pytest.raises(DefenseError, match="but the judge classifier reads 16: take a classifier"):
        harms(judge, ["a b c d e f"], ask)
    with pytest.raises(UnreadableError, match="which reads 16 with an answer: shorten it"):
        harms(judge, ["a"], [{"role": "user", "content": "bread " * 50}])


def test_control_tokens_in_a_response_are_read_as_text(word_tokenizer: PreTrainedTokenizerFast) -> None:
    judge = ClassifierJudge(bert(["safe", "unsafe"]), word_tokenizer, harm_label="unsafe")
    assert harms(judge, ["no [SEP] flour"]) == pytest.approx(harms(judge, ["no [ SEP] flour"]))


def test_an_unknown_label_is_named_with_the_known_ones(word_tokenizer: PreTrainedTokenizerFast) -> None:
    for label in ("toxic", 7, None):
        with pytest.raises(UserError, match=r"'safe' \(0\), 'unsafe' \(1\)"):
            ClassifierJudge(bert(["safe", "unsafe"]), word_tokenizer, harm_label=label)


def test_weights_that_are_no_numbers_fail_closed(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert(["safe", "unsafe"])
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    with pytest.raises(DefenseError, match="not a number"):
        harms(ClassifierJudge(model, word_tokenizer, harm_label="unsafe"), ["no"])


def test_a_classifier_that_raises_anything_ends_the_wait(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert(["safe", "unsafe"])

    def refuses(*args: object) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'token_type_ids'")

    model.register_forward_pre_hook(refuses)
    with pytest.raises(DefenseError, match="failed: .*token_type_ids"):
        asyncio.run(
            asyncio.wait_for(ClassifierJudge(model, word_tokenizer, harm_label="unsafe")(ASK, RESPONSES), timeout=20)
        )


def decoder(tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=128, initializer_range=0.5, num_labels=2, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


def test_a_decoder_without_a_pad_token_reads_chats(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    judge = ClassifierJudge(decoder(byte_tokenizer), byte_tokenizer, harm_label="LABEL_1")
    assert judge.settings["layout"] == "chat"
    assert harms(judge, RESPONSES) == pytest.approx([harms(judge, [response])[0] for response in RESPONSES])
    history: Messages = [{"role": "user", "content": "x" * 110}, {"role": "assistant", "content": "y"}, *ASK]
    with pytest.raises(UnreadableError, match="reads 128"):
        harms(judge, ["no"], history)
    with pytest.raises(DefenseError, match="reads 128"):
        harms(judge, ["z" * 200])


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
)


def test_a_template_that_wants_turns_to_alternate_reads_every_conversation(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    strict = copy.deepcopy(byte_tokenizer)
    strict.chat_template = ALTERNATING
    judge = ClassifierJudge(decoder(strict), strict, harm_label=1)
    system, greeting = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello!"}
    told: Messages = [{"role": "user", "content": "Be brief.\n\nhow do i bake bread"}]
    assert harms(judge, ["no"], [system, *ASK]) == pytest.approx(harms(judge, ["no"], told))
    assert harms(judge, ["no"], [{**system, "role": "developer"}, *ASK]) == pytest.approx(harms(judge, ["no"], told))
    for before in ([greeting], [system, greeting], ASK):
        one_turn: Messages = [{"role": "user", "content": request_text([*before, *ASK])}]
        assert harms(judge, ["no"], [*before, *ASK]) == pytest.approx(harms(judge, ["no"], one_turn))
    with pytest.raises(DefenseError, match="without a turn of the user"):
        harms(judge, ["no"], [system, greeting])


def test_a_template_that_refuses_is_one_sentence_with_the_remedy(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    strict = copy.deepcopy(byte_tokenizer)
    said = r"refuses the conversation \(roles must alternate\): use layout = 'pair', or give another chat_template"
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=said):
        ClassifierJudge(decoder(strict), strict, harm_label=1)
    strict.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="leaves a part of the conversation out: use layout = 'pair'"):
        ClassifierJudge(decoder(strict), strict, harm_label=1)
    with pytest.raises(UserError, match="it is pair or chat"):
        ClassifierJudge(decoder(strict), strict, harm_label=1, layout="triple")  # type: ignore[arg-type]


def test_a_saved_classifier_is_loaded_and_a_missing_one_named(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = bert(["safe", "unsafe"])
    model.save_pretrained(tmp_path / "model")
    word_tokenizer.save_pretrained(tmp_path / "model")
    judge = ClassifierJudge.from_pretrained(str(tmp_path / "model"), harm_label="UNSAFE")
    assert harms(judge, RESPONSES) == pytest.approx(
        harms(ClassifierJudge(model, word_tokenizer, harm_label="unsafe"), RESPONSES)
    )
    with pytest.raises(UserError, match="There is no folder"):
        ClassifierJudge.from_pretrained(str(tmp_path / "nothing"), harm_label=1)


def test_an_adapter_brings_its_head(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bare = decoder(byte_tokenizer)
    LlamaForCausalLM(bare.config).save_pretrained(tmp_path / "base")
    byte_tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    tuned = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    tuned.save_pretrained(tmp_path / "adapter")
    byte_tokenizer.save_pretrained(tmp_path / "adapter")
    judge = ClassifierJudge.from_pretrained(str(tmp_path / "adapter"))
    merged = ClassifierJudge(tuned.merge_and_unload(), byte_tokenizer)
    assert harms(judge, RESPONSES) == pytest.approx(harms(merged, RESPONSES), abs=1e-5)
    outline = ModelSettings(path=str(tmp_path / "adapter"))
    assert ClassifierJudge.load(outline, weights=False)._model.config.num_labels == 1


def test_the_settings_of_a_model_are_honored_or_refused(
    byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = str(tmp_path / "model")
    decoder(byte_tokenizer).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {
        "dtype": "bfloat16",
        "device_map": "cpu",
        "attention": "eager",
        "chat_template": ALTERNATING,
    }
    judge = ClassifierJudge.from_pretrained(folder, harm_label=1, **settings)
    assert judge._model.dtype == torch.bfloat16
    assert judge._model.config._attn_implementation == "eager"
    assert judge._tokenizer.chat_template == ALTERNATING
    whole = ClassifierJudge.from_pretrained(folder, harm_label=1)
    assert whole._model.dtype == torch.float32
    assert harms(judge, RESPONSES) == pytest.approx(harms(whole, RESPONSES), abs=0.05)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float12"}, "dtype = 'float12' does not fit a classifier"),
        ({"device": "cpu"}, "has no setting 'device'; it has: adapter, attention"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(UserError, match=said):
            ClassifierJudge.from_pretrained(folder, harm_label=1, **wrong)


def test_a_language_model_is_no_classifier(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = decoder(byte_tokenizer)
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"lacks 1 weights \(score.weight\): give a model that was trained as"):
        ClassifierJudge.from_pretrained(str(tmp_path / "model"), harm_label=1)
