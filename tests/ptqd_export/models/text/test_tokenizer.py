from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from engines.errors import PtqdError, UsageError
from engines.networks.prompts import PLAIN
from ptqd_export.models.text.tokenizer import HARD_PROMPTS, TokenLimits, _prove, _reference, portable_tokenizer
from tests.ptqd_export.models.text.tiny_text import END, LENGTH, slow_ids, vocabulary, write_tokenizer

LIMITS = TokenLimits(LENGTH, len(vocabulary()))


@pytest.mark.parametrize("pad", [END, "!"])
def test_hard_prompts_give_the_ids_of_the_slow_algorithm(tmp_path: Path, pad: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", pad)
    portable_tokenizer(tmp_path / "tokenizer", LIMITS).tokenizer.save(str(tmp_path / "portable.json"))
    portable = tokenizers.Tokenizer.from_file(str(tmp_path / "portable.json"))
    ids = [encoding.ids for encoding in portable.encode_batch(list(HARD_PROMPTS))]
    assert ids == [slow_ids(prompt, pad) for prompt in HARD_PROMPTS]
    assert {len(row) for row in ids} == {LENGTH}
    assert ids[1] == ids[2]  # case and blanks do not count
    assert len({tuple(row) for row in ids}) == len(HARD_PROMPTS) - 1


def test_merges_padding_and_truncation_by_hand() -> None:
    vocab = vocabulary()
    start, end, cat, bang = (vocab[token] for token in ("<|startoftext|>", END, "cat</w>", "!"))
    assert slow_ids("Cat", "!") == [start, cat, end] + [bang] * 74
    assert slow_ids("cat " * 100, END) == [start] + [cat] * 75 + [end]


def test_a_folder_with_a_fast_tokenizer_gives_the_same(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "slow", "!")
    _reference(tmp_path / "slow").save_pretrained(tmp_path / "fast")
    assert (tmp_path / "fast" / "tokenizer.json").exists()
    assert not (tmp_path / "fast" / "merges.txt").exists()
    slow, fast = (portable_tokenizer(tmp_path / name, LIMITS).tokenizer for name in ("slow", "fast"))
    assert [slow.encode(prompt).ids for prompt in HARD_PROMPTS] == [fast.encode(prompt).ids for prompt in HARD_PROMPTS]


def test_other_tokens_than_the_models_own_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    portable = portable_tokenizer(tmp_path / "tokenizer", LIMITS).tokenizer
    portable.enable_padding(length=LENGTH, pad_id=7, pad_token="(")
    with pytest.raises(PtqdError, match="differ from those of the model's own"):
        _prove(portable, _reference(tmp_path / "tokenizer"), PLAIN, LENGTH)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json or vocab\.json"):
        portable_tokenizer(tmp_path, LIMITS)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_max_length": 1e30}, r"model_max_length 1e\+30\n.*a whole number from 3 to 77, the positions of the text encoder"),
        ({"model_max_length": None}, "model_max_length missing"),
        ({"model_max_length": "77"}, "model_max_length '77'"),
        ({"model_max_length": 78}, "model_max_length 78"),
        ({"model_max_length": 2}, "model_max_length 2"),
        ({"model_max_length": -1}, "model_max_length -1"),
        ({"pad_token": None}, r"pad_token None\n.*a token of the vocabulary"),
        ({"pad_token": "[PAD]"}, r"the token \[PAD\] with the id 533\n.*ids below 533"),
        ({"unk_token": "<none>"}, r"unk_token <none>\n.*a token of the vocabulary"),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_settings_that_the_text_encoder_cannot_take_are_named(tmp_path: Path, settings: dict[str, Any], message: str, fast: bool) -> None:
    folder = tmp_path / "slow"
    write_tokenizer(folder, "!")
    if fast:
        folder = tmp_path / "fast"
        _reference(tmp_path / "slow").save_pretrained(folder)
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if path.exists():
            edit(path, **settings)
    with pytest.raises(UsageError, match=f"(?s)does not fit its text encoder.*{message}.*correct tokenizer_config.json"):
        portable_tokenizer(folder, LIMITS)


def test_a_length_that_is_not_given_is_missing(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}))
    with pytest.raises(UsageError, match="model_max_length missing"):
        portable_tokenizer(tmp_path / "tokenizer", LIMITS)


def test_a_vocabulary_larger_than_the_encoders_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    with pytest.raises(UsageError, match=r"<\|endoftext\|> with the id 532\n.*ids below 532"):
        portable_tokenizer(tmp_path / "tokenizer", TokenLimits(LENGTH, len(vocabulary()) - 1))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 1}', "{half"])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    (tmp_path / "tokenizer" / name).write_text(content)
    with pytest.raises(PtqdError):
        portable_tokenizer(tmp_path / "tokenizer", LIMITS)
