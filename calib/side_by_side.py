"""Run torch work on many items side by side, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from engines.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]` on every core.

    For work made of many small operations: torch's own team of threads meets after each of them, and stands still whenever another
    process holds one of its cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
