"""The prompts of coloured digits, such as "a red seven on blue", and the T5 tokenizer of their words."""

from __future__ import annotations

import torch
from transformers import T5TokenizerFast

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
"""Names of the hues, a sixth of the circle each; the first lies around 0."""
UNNAMED = len(COLOURS)
"""Stands for a colour that the prompt leaves open."""
LONGEST = 8
"""Tokens of the longest prompt, and some to spare. A longer padding changes nothing, because the mask keeps it out."""
_SPECIAL = ("<pad>", "</s>", "<unk>")
_RARE, _COMMON = -20.0, -3.0


def prompt(digit: int, ink: int, ground: int) -> str:
    """Return the prompt of a digit in the colours with these numbers; `UNNAMED` leaves a colour out."""
    words = ["a", *COLOURS[ink : ink + 1], DIGITS[digit]]
    return " ".join(words if ground == UNNAMED else [*words, "on", COLOURS[ground]])


def every_prompt() -> list[str]:
    """Return all prompts by their `number_of`, and last the empty one."""
    choices = range(UNNAMED + 1)
    return [*(prompt(digit, ink, ground) for digit in range(len(DIGITS)) for ink in choices for ground in choices), ""]


def number_of(digit: torch.Tensor, ink: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    """Return the place of prompts in `every_prompt`, from int64 tensors of one shape."""
    return (digit * (UNNAMED + 1) + ink) * (UNNAMED + 1) + ground


def colour_of(rgb: torch.Tensor) -> torch.Tensor:
    """Return the numbers int64 [N] of the names nearest in hue to colours [N, 3], in any range with black and white at equal channels."""
    largest, smallest = rgb.max(dim=1), rgb.min(dim=1)
    spread = largest.values - smallest.values
    red, green, blue = rgb.unbind(dim=1)
    sectors = torch.stack([(green - blue) / spread, (blue - red) / spread + 2, (red - green) / spread + 4])
    hue = sectors.gather(0, largest.indices[None])[0]
    return hue.round().long() % len(COLOURS)


def tokenizer() -> T5TokenizerFast:
    """Return a tokenizer whose pieces are the words of the prompts; any other word is unknown."""
    words = [f"\u2581{word}" for word in ("a", "on", *DIGITS, *COLOURS)]
    pieces = [(piece, 0.0) for piece in _SPECIAL] + [(word, _COMMON) for word in words] + [("\u2581", _RARE)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=120)
