"""Read the signatures of C extensions from their docstrings, so that fakes fail on a wrong name or number of arguments."""

from __future__ import annotations

import functools
import re
from typing import Any


def split_arguments(text: str) -> list[str]:
    """Split an argument list at its top-level commas."""
    pieces, depth, piece = [], 0, ""
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += letter
    return [*pieces, piece.strip()] if piece.strip() else pieces


def argument_counts(function: Any, name: str) -> list[tuple[int, int]]:
    """Return the smallest and largest number of arguments of every overload, without `self`."""
    return _counts(function.__doc__ or "", name)


@functools.cache
def _counts(doc: str, name: str) -> list[tuple[int, int]]:
    doc = doc.replace("->", "=>")  # an arrow is not a closing bracket
    found = []
    for match in re.finditer(rf"^\s*(?:\d+\. )?{name}\((.*?)\)(?: =>|$)", doc, flags=re.MULTILINE):
        arguments = [a for a in split_arguments(match[1]) if not a.startswith(("self", "*"))]
        if match[1].startswith("*args"):
            continue
        found.append((sum("=" not in argument for argument in arguments), len(arguments)))
    assert found, f"{name} has no signature in its docstring"
    return found


class Specced:
    """A fake instance of a real class, which fails on attributes that the class lacks and on calls that no overload accepts.

    Subclasses implement what the test needs as methods or attributes named `on_<name>`.
    """

    def __init__(self, real: type, **attributes: Any) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "calls", [])
        for name, value in attributes.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        implementation = getattr(type(self), f"on_{name}", None)
        assert implementation is not None, f"{name} of {self._real.__name__} is not emulated"
        counts = argument_counts(getattr(self._real, name), name)

        def call(*arguments: Any) -> Any:
            assert any(least <= len(arguments) <= most for least, most in counts), f"{name} takes {counts}, not {len(arguments)}"
            self.calls.append((name, arguments))
            return implementation(self, *arguments)

        return call
