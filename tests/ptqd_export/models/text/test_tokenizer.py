from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from engines.errors import PtqdError, UsageError
from ptqd_export.models.text.tokenizer import HARD_PROMPTS, _prove, _reference, portable_tokenizer
from tests.ptqd_export.models.text.tiny_text import END, LENGTH, slow_ids, vocabulary, write_tokenizer


@pytest.mark.parametrize("pad", [END, "!"])
def test_hard_prompts_give_the_ids_of_the_slow_algorithm(tmp_path: Path, pad: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", pad)
    portable_tokenizer(tmp_path / "tokenizer").save(str(tmp_path / "portable.json"))
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
    slow, fast = (portable_tokenizer(tmp_path / name) for name in ("slow", "fast"))
    assert [slow.encode(prompt).ids for prompt in HARD_PROMPTS] == [fast.encode(prompt).ids for prompt in HARD_PROMPTS]


def test_other_tokens_than_the_models_own_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    portable = portable_tokenizer(tmp_path / "tokenizer")
    portable.enable_padding(length=LENGTH, pad_id=7, pad_token="(")
    with pytest.raises(PtqdError, match="differ from those of the model's own"):
        _prove(portable, _reference(tmp_path / "tokenizer"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json or vocab\.json"):
        portable_tokenizer(tmp_path)
