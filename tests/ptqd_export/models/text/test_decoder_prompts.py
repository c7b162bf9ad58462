"""Prompts of diffusion transformers whose text encoders are language models, in miniature, against their own pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tokenizers import processors

from engines.arrays import Float32
from engines.bundle.manifest import TextRecord
from engines.errors import UsageError
from ptqd_export.commands.starter import PROMPTS as STARTER_PROMPTS
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.diffusers_models.transformers import family_table
from ptqd_export.models.load import load_model
from ptqd_export.models.text.prompt_forms import chat, flux2_dev
from tests.ptqd_export.models.pipelines import GUIDANCE, plan_of
from tests.ptqd_export.models.text.prompt_checks import NEGATIVE, PROMPTS, Arrays, check, pipeline, text_model, write_text
from tests.ptqd_export.models.text.tiny_decoders import PARTS, TEMPLATE, instruction, mistral_processor, qwen_tokenizer, write_with_text

TOKENS = {"sana": 300, "z-image": 512, "auraflow": 256, "flux2-dev": 512, "flux2-klein": 512, "qwen-image": 512}
MASKS = {"sana": "encoder_attention_mask", "z-image": "encoder_attention_mask", "qwen-image": "encoder_hidden_states_mask"}
KLEIN_LAYERS, DEV_LAYERS, LAYERS = family_table.KLEIN_LAYERS, family_table.DEV_LAYERS, (1, 3, 2)
"""Layers that are read in place of klein's and dev's: tracing 28 layers takes minutes."""

QUICK = ("sana", "z-image")
"""Families that are not marked slow: they have an instruction, a chat template, masks, and layers before the last."""


def encoded(family: str, folder: Path, negative: str | None) -> tuple[Arrays, Arrays]:
    """Return rows and null row by conditioning input, as the pipeline encodes them."""
    pipe, prompts, none = pipeline(folder), list(PROMPTS), [negative or ""] * len(PROMPTS)
    with torch.no_grad():
        if family == "sana":
            rows, mask, null, null_mask = pipe.encode_prompt(
                prompts, negative_prompt=none, device="cpu", complex_human_instruction=list(instruction())
            )
        elif family == "z-image":
            (rows, mask), (null, null_mask) = map(filled, pipe.encode_prompt(prompts, negative_prompt=none, device="cpu"))
        elif family == "auraflow":
            rows, mask, null, null_mask = pipe.encode_prompt(prompts, negative_prompt=none, device="cpu")
        else:
            layers = {"text_encoder_out_layers": LAYERS} if family.startswith("flux2") else {}
            asked = {"max_sequence_length": 512, "device": "cpu", **layers}
            (rows, mask), (null, null_mask) = (pipe.encode_prompt(texts, **asked) for texts in (prompts, none))  # of FLUX.2: positions
            null_mask = torch.ones(null.shape[:2], dtype=torch.long) if null_mask is None else null_mask  # Qwen-Image's are of one length
    tensors = [{"encoder_hidden_states": values, MASKS.get(family, "mask"): keep} for values, keep in ((rows, mask), (null, null_mask))]
    names = ("encoder_hidden_states", *([MASKS[family]] if family in MASKS else []))
    found, negatives = ({name: padded(one[name], TOKENS[family]) for name in names} for one in tensors)
    return found, {name: values[0] for name, values in negatives.items()}


def filled(captions: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill captions of their own lengths up with zeros; the mask keeps what they are."""
    masks = [torch.ones(len(caption), dtype=torch.long) for caption in captions]
    return tuple(torch.nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in (captions, masks))  # type: ignore[return-value]  # a pair


def padded(values: torch.Tensor, tokens: int) -> Float32:
    """Fill values [rows, tokens, ...] up with zeros: the pipelines of some families end with the longest prompt."""
    array: Any = values.numpy()
    return np.pad(array, [(0, 0), (0, tokens - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])


def guidance_of(family: str) -> float:
    return 1.0 if family == "qwen-image" else GUIDANCE


@pytest.fixture(scope="module", params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PARTS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def _few_layers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_table, "KLEIN_LAYERS", LAYERS)
        patch.setattr(family_table, "DEV_LAYERS", LAYERS)
        yield


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_text(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def written(family: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextRecord, Path]:
    return write_text(folder, tmp_path_factory.mktemp(f"{family}-text"), guidance_of(family))


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_prompts_become_the_embeddings_of_the_pipeline(
    family: str, folder: Path, written: tuple[TextRecord, Path], negative: str | None
) -> None:
    rows, null = encoded(family, folder, negative)
    plan = plan_of(folder, guidance_of(family), prompts=list(PROMPTS), negative_prompt=negative)
    found = load_model(plan).conditioning
    assert found is not None
    assert (found.null is None) == (family == "qwen-image"), "nothing may guide a family that refuses guidance"
    check(found, rows, None if found.null is None else null, 1e-4)
    text = text_model(written)
    check(text.condition(PROMPTS, negative), rows, null, 1e-3)
    assert text.cut(PROMPTS) == (1,)


@pytest.mark.parametrize("name", QUICK)
def test_init_writes_prompts(name: str, tmp_path: Path) -> None:
    plan = starter_plan(write_with_text(name, tmp_path), "onnxruntime", tmp_path)
    assert (plan.model.prompts, plan.model.conditions) == (STARTER_PROMPTS, None)


def test_layers_of_flux2_are_those_of_its_pipelines() -> None:
    pipelines = (diffusers.Flux2KleinPipeline, diffusers.Flux2Pipeline)
    asked = [inspect.signature(each.encode_prompt).parameters["text_encoder_out_layers"].default for each in pipelines]
    assert asked == [KLEIN_LAYERS, DEV_LAYERS]


def test_a_tokenizer_that_adds_tokens_around_a_chat_is_refused() -> None:
    tokenizer = mistral_processor().tokenizer
    assert flux2_dev(tokenizer, 512).form.prefix.startswith("[SYSTEM_PROMPT]You are an AI")
    tokenizer.backend_tokenizer.post_processor = None
    assert flux2_dev(tokenizer, 512).form.prefix.startswith("<s>[SYSTEM_PROMPT]You are an AI")
    added = processors.TemplateProcessing(single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = added
    with pytest.raises(UsageError, match="adds tokens around a chat"):
        flux2_dev(tokenizer, 512)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEMPLATE.replace("{{ message.content }}", "{{ message.content | trim }}"), "chat template changes prompts.*<|im_start|>"),
        (TEMPLATE.replace("{{ message.content }}", "prompt"), "chat template changes prompts"),
        ("{{ absent.content }}", "chat template cannot be used"),
        ("{% for %}", "chat template cannot be used"),
        (None, "chat template cannot be used.*copy the whole model folder"),
    ],
)
def test_chat_templates_that_are_no_fixed_texts_around_a_prompt_are_refused(template: str | None, message: str) -> None:
    tokenizer = qwen_tokenizer()
    form = chat(enable_thinking=False)(tokenizer, 512).form
    assert (form.prefix, form.suffix) == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=f"(?s){message}"):
        chat(enable_thinking=False)(tokenizer, 512)
