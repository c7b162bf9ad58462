"""The rate of clients."""

from __future__ import annotations

import pytest

from engines.apps.serve.image_request import Refused
from engines.apps.serve.request_limits import CLIENTS, Rate


def _served(rate: Rate) -> bool:
    try:
        rate.take("one")
    except Refused:
        return False
    return True


def test_tokens_come_back_with_time() -> None:
    now = [0.0]
    rate, taken = Rate(2, lambda: now[0]), []
    for now[0] in (0, 0, 0.1, 0.5, 0.6, 0.9, 1.1, 10, 10, 10):
        taken.append(_served(rate))
    assert taken == [True, True, False, True, False, False, True, True, True, False]


def test_slow_rates_let_the_first_request_in() -> None:
    rate = Rate(0.1, lambda: 0.0)
    rate.take("one")
    with pytest.raises(Refused, match=r"more than 0\.1 requests per second") as refused:
        rate.take("one")
    assert refused.value.retry_after == 10


def test_forgotten_clients_do_not_fill_the_memory() -> None:
    rate = Rate(1, lambda: 0.0)
    for client in range(CLIENTS + 5):
        rate.take(str(client))
    assert len(rate._buckets) == CLIENTS
