"""What pipelines write around prompts before they are split into tokens, and which tokens they leave out behind the encoder.

Instructions and templates are read from the pipelines' classes and from the tokenizer's chat template, once, at build time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from engines.bundle.manifest import PromptForm
from engines.errors import UsageError
from engines.networks.prompts import PLAIN

PLACE = "{}"
"""Stands for the prompt in a template. It is no letter of any template's own."""

FORM_PROBES = ("", "a photo of a cat", "  A\n cat </think> <|im_end|>\n", "caf\u00e9 {prompt} {{ 7 }} <tool_response>")
"""Prompts that a chat template must write as they are."""


@dataclass(frozen=True)
class PromptForms:
    """The form of prompts, and that of the negative prompt; None is the same."""

    form: PromptForm = PLAIN
    null_form: PromptForm | None = None


FormMaker: TypeAlias = Callable[[Any, int], PromptForms]
"""Makes the forms for a tokenizer of transformers, and the number of tokens that the network is given."""


def plain(_: Any, __: int) -> PromptForms:
    """Return the form of prompts that stand by themselves."""
    return PromptForms()


def chat(**settings: bool) -> FormMaker:
    """Return the maker of the form that a tokenizer's chat template gives to what a user says.

    Args:
        settings: what the pipeline tells the template.
    """

    def make(tokenizer: Any, _: int) -> PromptForms:
        def written(prompt: str) -> str:
            message = [{"role": "user", "content": prompt}]
            return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **settings))

        return PromptForms(_around(written))

    return make


def flux2_dev(tokenizer: Any, _: int) -> PromptForms:
    """Return the form of the prompts of FLUX.2 dev: the pipeline's system message in front of what a user says.

    Raises:
        UsageError: see `_around`; or the tokenizer adds other tokens around a text than the one that the template begins with.
    """
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    def written(prompt: str) -> str:
        return str(tokenizer.apply_chat_template(format_input([prompt])[0], tokenize=False))

    form = _around(written)
    bare = form.model_copy(update={"prefix": form.prefix.removeprefix(tokenizer.bos_token or "")})
    wanted = tokenizer(written(""), add_special_tokens=False).input_ids
    for one in (form, bare):
        if tokenizer(f"{one.prefix}{one.suffix}").input_ids == wanted:
            return PromptForms(one)
    raise UsageError(
        "The tokenizer adds tokens around a chat, which is not supported.",
        found=f"{tokenizer(bare.prefix + bare.suffix).input_ids}",
        expected=f"{wanted}",
        mend="copy the tokenizer that the model was trained with",
    )


def _around(written: Callable[[str], str]) -> PromptForm:
    """Return what a template writes around a prompt.

    Raises:
        UsageError: it has none, or changes prompts.
    """
    try:
        prefix, place, suffix = written(PLACE).partition(PLACE)
        changed = [prompt for prompt in FORM_PROBES if not place or written(prompt) != f"{prefix}{prompt}{suffix}"]
    except Exception as error:  # jinja2 and transformers raise several types
        raise UsageError(
            "The tokenizer's chat template cannot be used.",
            found=f"{type(error).__name__}: {error}",
            expected="the template with which the model was trained",
            mend="copy the whole model folder, with chat_template.jinja if it has one",
        ) from error
    if changed:
        raise UsageError(
            "This chat template changes prompts, which is not supported.",
            found=f"{written(changed[0])!r:.200} for {changed[0]!r}",
            expected="the prompt between two texts that are the same for every prompt",
            mend="prepare embeddings yourself, and name them as model.conditions instead of model.prompts",
        )
    return PromptForm(prefix=prefix, suffix=suffix)


def sana_instruction(tokenizer: Any, tokens: int) -> PromptForms:
    """Return Sana's forms: an instruction in front of a prompt, but not of the negative prompt.

    The network is given the first token, and as many of the last as make up its length: those behind the instruction.
    """
    import diffusers

    asked = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    instruction = "\n".join(asked["complex_human_instruction"].default)
    skips = len(tokenizer.encode(instruction)) - 2
    return PromptForms(PromptForm(prefix=instruction, skipped=(1, 1 + skips)), PromptForm(skipped=(tokens, tokens + skips)))


def qwen_image(*_: object) -> PromptForms:
    """Return the form of Qwen-Image's prompts. The network is given none of the tokens in front of a prompt."""
    import diffusers

    empty: Any = diffusers.QwenImagePipeline(**dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer")))
    prefix, _place, suffix = empty.prompt_template_encode.partition(PLACE)
    return PromptForms(PromptForm(prefix=prefix, suffix=suffix, skipped=(0, empty.prompt_template_encode_start_idx)))
