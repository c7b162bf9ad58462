from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import PromptForm, TextEncoderRecord, TextRecord
from engines.cli import main
from engines.errors import BundleError, MissingBackendError, PtqdError, UsageError
from engines.networks.prompts import (
    BATCH,
    LABEL_LETTERS,
    TextModel,
    TextPart,
    chosen_prompts,
    joined,
    open_text,
    read_prompts,
    read_tokenizer,
    shortened,
)
from tests.conftest import TinyBundle

Array = NDArray[Any]
WORDS = {"<pad>": 0, "a": 1, "red": 2, "cat": 3}
TOKENS = 3
TABLE = np.random.default_rng(0).standard_normal((len(WORDS), 4)).astype(np.float32)


def tokenizer() -> Tokenizer:
    """Word by word, three at most."""
    made = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(TOKENS)
    made.enable_padding(length=TOKENS, pad_id=0, pad_token="<pad>")
    return made


def encoder(scale: float, *, pooled: bool = False, calls: list[int] | None = None) -> Callable[[Array], dict[str, Array]]:
    """Rows of a table, and their mean."""

    def encode(ids: Array) -> dict[str, Array]:
        if calls is not None:
            calls.append(len(ids))
        hidden = np.float32(scale) * TABLE[ids]
        return {"hidden": hidden, "pooled": hidden.mean(axis=1)} if pooled else {"hidden": hidden}

    return encode


def text_model(*, zero: bool = False, calls: list[int] | None = None) -> TextModel:
    first = TextEncoderRecord(graph="text/a.onnx", tokenizer="text/a.json", tokens=TOKENS, inputs=("hidden",))
    second = TextEncoderRecord(graph="text/b.onnx", tokenizer="text/b.json", tokens=TOKENS, inputs=("hidden", "pooled"))
    record = TextRecord(encoders=(first, second), fixed={"sizes": (8.0, 9.0)}, zero_without_negative=zero)
    return TextModel(record, (TextPart(tokenizer(), encoder(1, calls=calls)), TextPart(tokenizer(), encoder(2, pooled=True))))


def test_encoders_are_concatenated_and_fixed_inputs_repeated() -> None:
    found = text_model().condition(["a red cat", "cat"], "red")
    assert found.null is not None
    assert found.rows == 2
    ids = np.array([[1, 2, 3], [3, 0, 0], [2, 0, 0]])
    hidden = np.concatenate([TABLE[ids], 2 * TABLE[ids]], axis=-1)
    pooled = 2 * TABLE[ids].mean(axis=1)
    np.testing.assert_array_equal(found.tables["hidden"], hidden[:2])
    np.testing.assert_array_equal(found.null["hidden"], hidden[2])
    np.testing.assert_allclose(found.tables["pooled"], pooled[:2])
    np.testing.assert_allclose(found.null["pooled"], pooled[2])
    assert found.tables["sizes"].tolist() == [[8, 9], [8, 9]]
    assert found.null["sizes"].tolist() == [8, 9]
    assert {table.dtype for table in (*found.tables.values(), *found.null.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("zero", "negative", "expected"), [(False, None, TABLE[0]), (True, None, 0 * TABLE[0]), (True, "", TABLE[0])])
def test_without_a_negative_prompt_the_model_decides(zero: bool, negative: str | None, expected: Array) -> None:
    null = text_model(zero=zero).condition(["cat"], negative).null
    assert null is not None
    np.testing.assert_array_equal(null["hidden"][:, :4], np.tile(expected, (TOKENS, 1)))


def test_prompts_are_encoded_in_batches_and_equal_ones_once() -> None:
    calls: list[int] = []
    words = [" ".join((x, y, z)) for x in WORDS for y in WORDS for z in WORDS]
    found = text_model(calls=calls).condition([*words, *words], "red")
    assert max(calls) == BATCH
    assert sum(calls) == len({tuple(tokenizer().encode(text).ids) for text in (*words, "red")}) <= len(words)
    np.testing.assert_array_equal(found.tables["hidden"][: len(words)], found.tables["hidden"][len(words) :])
    ids = np.array([tokenizer().encode(text).ids for text in words])
    np.testing.assert_array_equal(found.tables["hidden"][: len(words), :, :4], TABLE[ids])


def test_prompts_that_are_too_long_are_named() -> None:
    assert text_model().cut(["a red cat", "a red red cat", "cat", "a a a a a"]) == (1, 3)
    assert text_model().cut(["a red cat"]) == ()


def masked_encoder(ids: Array, mask: Array) -> dict[str, Array]:
    """Rows of a table, zeros where the mask has one."""
    return {"hidden": TABLE[ids] * mask[..., np.newaxis].astype(np.float32)}


def test_the_mask_of_the_tokens_goes_in_and_comes_out() -> None:
    record = TextEncoderRecord(
        graph="a.onnx", tokenizer="a.json", tokens=TOKENS, inputs=("hidden",), takes_mask=True, mask_input="mask", lowercase=True
    )
    found = TextPart.of(record, tokenizer(), masked_encoder).encode(["  RED Cat\n", "a cat", ""])
    assert found["mask"].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found["mask"].dtype == np.int64
    np.testing.assert_array_equal(found["hidden"][0], [TABLE[2], TABLE[3], 0 * TABLE[0]])
    np.testing.assert_array_equal(found["hidden"][1], [TABLE[1], TABLE[3], 0 * TABLE[0]])


def test_prompts_with_the_same_tokens_and_other_masks_are_told_apart() -> None:
    made = tokenizer()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = TextPart(made, masked_encoder, takes_mask=True).encode(["cat", "cat <pad>"])["hidden"]
    np.testing.assert_array_equal(found[1, 1], TABLE[0])
    np.testing.assert_array_equal(found[0, 1], 0 * TABLE[0])


def test_forms_stand_around_prompts_and_their_tokens_are_left_out() -> None:
    form = PromptForm(prefix="red a ", suffix=" cat", skipped=(1, 3))
    record = TextEncoderRecord(
        graph="a.onnx", tokenizer="a.json", tokens=6, inputs=("hidden", "pooled"), takes_mask=True, mask_input="mask", lowercase=True,
        form=form, null_form=PromptForm(skipped=(4, 6)),
    )  # fmt: skip
    made = tokenizer()
    made.enable_truncation(6)
    made.enable_padding(length=6, pad_id=0, pad_token="<pad>")

    def encode(ids: Array, mask: Array) -> dict[str, Array]:
        return {**masked_encoder(ids, mask), "pooled": TABLE[ids[:, 0]]}

    part = TextPart.of(record, made, encode)
    found = part.encode(["A Red", ""], "a cat a cat a")
    a, red, cat, none = TABLE[1], TABLE[2], TABLE[3], 0 * TABLE[0]
    expected = [
        [a, cat, a, cat],
        [red, red, cat, none],
        [red, none, none, none],
    ]  # negative; red [a a] red cat; red [a cat]
    np.testing.assert_array_equal(found["hidden"], expected)
    assert found["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(found["pooled"], [a, red, red])
    assert part.cut(["a", "a a a", "a a a a"]) == {2}
    assert record.kept == 4


@pytest.mark.parametrize(
    ("skipped", "null"), [((2, 1), None), ((0, TOKENS), None), ((1, TOKENS + 1), None), ((0, 1), (0, 2)), ((0, 0), (1, 2))]
)
def test_forms_that_skip_other_tokens_than_there_are_refused(skipped: tuple[int, int], null: tuple[int, int] | None) -> None:
    null_form = None if null is None else PromptForm(skipped=null)
    with pytest.raises(ValidationError, match="skips tokens"):
        TextEncoderRecord(
            graph="a", tokenizer="b", tokens=TOKENS, inputs=("hidden",), form=PromptForm(skipped=skipped), null_form=null_form
        )


def test_encoders_stand_beside_and_behind_each_other_with_zeros_where_one_is_narrower() -> None:
    """Literal values: two encoders of two tokens beside each other, and one of a single wider token behind them."""
    one, two, three = (np.array(values, dtype=np.float32) for values in ([[[1], [2]]], [[[3], [4]]], [[[5, 6, 7]]]))
    assert joined([[one, two], [three]]).tolist() == [[[1, 3, 0], [2, 4, 0], [5, 6, 7]]]
    assert joined([[one, two]], (3, 3)).tolist() == [[[1, 3, 0], [2, 4, 0], [0, 0, 0]]]
    assert joined([[one[:, 0], two[:, 0]]]).tolist() == [[1, 3]]


def test_a_record_says_where_encoders_go_and_each_is_released_before_the_next_runs() -> None:
    told: list[str] = []

    def part(record: TextEncoderRecord, scale: float) -> TextPart:
        def encode(ids: Array) -> dict[str, Array]:
            told.append(f"run {record.graph}")
            return encoder(scale, pooled="pooled" in record.inputs)(ids)

        return TextPart.of(record, tokenizer(), encode, lambda: told.append(f"release {record.graph}"))

    first = TextEncoderRecord(graph="a", tokenizer="a.json", tokens=TOKENS, inputs=("hidden", "pooled"))
    second = TextEncoderRecord(graph="b", tokenizer="b.json", tokens=TOKENS, inputs=("hidden",), joins="behind")
    record = TextRecord(encoders=(first, second), fixed={"guidance": 3.5}, padded={"hidden": (8, 5)}, zero_without_negative=False)
    found = TextModel(record, (part(first, 1), part(second, 2))).condition(["a red cat", "cat"])
    assert told == ["run a", "release a", "run b", "release b"]
    ids = np.array([[1, 2, 3], [3, 0, 0]])
    hidden = np.zeros((2, 8, 5), np.float32)
    hidden[:, :3, :4], hidden[:, 3:6, :4] = TABLE[ids], 2 * TABLE[ids]
    np.testing.assert_array_equal(found.tables["hidden"], hidden)
    np.testing.assert_allclose(found.tables["pooled"], TABLE[ids].mean(axis=1))
    assert found.tables["guidance"].tolist() == [3.5, 3.5]
    assert found.null is not None
    assert found.null["guidance"].shape == ()


# Files and command lines


def test_a_prompt_file_holds_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  caf\u00e9, \u732b \r\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ("a cat", "caf\u00e9, \u732b")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "contains no prompt"), (b" \n\n", "2 blank lines"), (b"\xff", "(?s)cannot be read.*not UTF-8")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(tmp_path / "prompts.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_prompts_are_what_a_person_saved(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "prompts.txt").write_bytes("a cat\x0cin\u2028the \x85sun\r\na dog\r\n".encode(encoding))
    assert read_prompts(tmp_path / "prompts.txt") == ("a cat\x0cin\u2028the \x85sun", "a dog")


def test_prompts_come_from_the_command_line_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    assert chosen_prompts((), None) is None
    assert chosen_prompts(("b", ""), None) == ("b", "")
    assert chosen_prompts((), tmp_path / "prompts.txt") == ("a cat",)
    with pytest.raises(UsageError, match="--prompt and --prompt-file"):
        chosen_prompts(("b",), tmp_path / "prompts.txt")


def test_a_tokenizer_that_fails_on_a_prompt_is_an_error_of_the_model() -> None:
    made = tokenizer()
    made.model = models.WordLevel(WORDS, unk_token="<none>")
    part = TextPart(made, encoder(1.0))
    assert len(part.encode(["a red cat"])["hidden"]) == 1
    for call in (part.encode, part.cut):
        with pytest.raises(PtqdError, match=r"(?s)tokenizer fails on a prompt.*build the bundle again"):
            call(["a dog"])


def test_words_of_several_vectors_are_written_out_in_the_order_of_their_ids() -> None:
    made = tokenizer()
    made.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<cat>", "<cat>_1", "<one>"])
    part = TextPart(made, encoder(1.0))
    assert list(part._inversions.items()) == [("<toy>", "<toy> <toy>_1 <toy>_2"), ("<cat>", "<cat> <cat>_1")]


def test_long_prompts_are_shortened_for_labels() -> None:
    assert shortened("  a red\ncat ") == "a red cat"
    assert shortened("x" * LABEL_LETTERS) == "x" * LABEL_LETTERS
    assert shortened("word " * 20) == "word word word word word..."
    assert len(shortened("x" * 100)) == LABEL_LETTERS


def test_a_missing_library_is_told_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "tokenizer.json", tokenizer().to_str().encode()
    assert read_tokenizer(content, path, 3).encode("cat").ids == [3, 0, 0]
    with pytest.raises(
        BundleError,
        match=r"(?s)not the one that the manifest describes.*pads to 3, truncates to 3, pads to multiples of None\n  expected: 4 tokens",
    ):
        read_tokenizer(content, path, 4)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'ptqd-export\[text\]'") as raised:
        read_tokenizer(content, path, 3)
    assert raised.value.exit_code == 3


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tokenizer of the bundle cannot be read"):
        read_tokenizer(b"{}", tmp_path / "tokenizer.json", 3)


def sample(bundle: Path, output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["sample", str(bundle), "--num", "2", "--seed", "1", "--output", str(output), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a cat"), "The model takes no prompts"),
        (("--prompt", "a cat", "--classes", "1"), "prompts and classes"),
        (("--negative-prompt", "a cat"), "A negative prompt needs prompts"),
        (("--prompt-file", "absent.txt"), "The prompt file cannot be read"),
    ],
)
def test_a_bundle_without_text_refuses_prompts(tiny: TinyBundle, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = sample(tiny.folder, tmp_path / "out", *arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_without_prompts_the_record_names_none(tiny: TinyBundle, tmp_path: Path) -> None:
    assert sample(tiny.folder, tmp_path / "out").exit_code == 0
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["prompts"], record["negative_prompt"]) == (None, None)


def test_text_files_are_verified_before_they_are_read(own_tiny: TinyBundle) -> None:
    text = {
        "encoders": [{"graph": "text/a.onnx", "tokenizer": "text/a.json", "tokens": TOKENS, "inputs": ["hidden"]}],
        "fixed": {}, "zero_without_negative": False,
    }  # fmt: skip
    own_tiny.edit_json("manifest.json", lambda manifest: manifest["model"].update(text=text))
    (own_tiny.folder / "text").mkdir()
    tokenizer().save(str(own_tiny.folder / "text" / "a.json"))
    with pytest.raises(BundleError, match="does not list a required file"):
        open_text(Bundle.open(own_tiny.folder))
    own_tiny.rehash("text/a.json")
    own_tiny.edit("text/a.json", lambda content: content + b" ")
    with pytest.raises(BundleError, match="was changed or damaged"):
        open_text(Bundle.open(own_tiny.folder))
