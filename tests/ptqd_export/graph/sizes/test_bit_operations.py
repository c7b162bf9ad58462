"""Bit operations against closed forms."""

from __future__ import annotations

import pytest

from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from ptqd_export.graph.sizes.bit_operations import BitOperations, bit_operations, layer_bit_operations


def _layer(macs: int) -> Layer:
    return Layer("layer", "Conv", "inner", (1,), macs, "layer")


INTEGER_48, INTEGER_44 = Rule(4, 8, 8, "int32"), Rule(4, 4, 8, "int32")
WEIGHTS_ONLY, FLOAT = Rule(8, None, None, "float"), Rule(None, None, None, "float")


@pytest.mark.parametrize(
    ("rule", "saved"), [(Rule(8, 8, 8, "int32"), 16.0), (INTEGER_48, 32.0), (INTEGER_44, 64.0), (Rule(3, 8, None, "float"), 1024 / 24)]
)
def test_network_of_integer_layers_alone_saves_1024_over_the_product_of_bits(rule: Rule, saved: float) -> None:
    found = bit_operations([(_layer(100), rule), (_layer(7), rule)], macs=107)
    assert found.layers_saved == pytest.approx(saved)
    assert found.all_saved == pytest.approx(saved)


def test_float_layers_and_attention_count_in_the_whole_and_not_in_the_layers() -> None:
    found = bit_operations([(_layer(100), INTEGER_48), (_layer(10), WEIGHTS_ONLY), (_layer(5), FLOAT)], macs=135)
    assert found.layers_saved == pytest.approx(32)
    cost = 100 * 4 * 8 + 10 * 8 * 32 + (5 + 20) * 32 * 32
    assert found.all_saved == pytest.approx(135 * 1024 / cost)


def test_float_part_counts_at_the_bits_of_its_type() -> None:
    found = bit_operations([(_layer(100), INTEGER_48), (_layer(10), WEIGHTS_ONLY), (_layer(5), FLOAT)], macs=135, float_bits=16)
    assert found.layers_saved == pytest.approx(32)
    assert found.all_saved == pytest.approx(135 * 1024 / (100 * 4 * 8 + 10 * 8 * 16 + (5 + 20) * 16 * 16))
    assert bit_operations([(_layer(5), FLOAT)], macs=5, float_bits=16) == BitOperations(1.0, 4.0)


def test_layers_are_weighted_by_their_macs() -> None:
    found = bit_operations([(_layer(300), INTEGER_48), (_layer(100), INTEGER_44)], macs=400)
    assert found.layers_saved == pytest.approx(400 * 1024 / (300 * 32 + 100 * 16))


def test_network_without_integer_layers_saves_nothing_in_them() -> None:
    assert bit_operations([(_layer(100), FLOAT)], macs=120) == BitOperations(1.0, 1.0)
    assert bit_operations([], macs=0) == BitOperations(1.0, 1.0)


def test_weights_in_groups_count_their_share_of_the_scales() -> None:
    found = bit_operations([(_layer(3200), Rule(4, None, None, "float", group=32))], macs=3200, float_bits=16)
    assert found.all_saved == pytest.approx(32 * 32 / ((4 + 16 / 32) * 16))


def test_added_products_count_in_the_cost_alone() -> None:
    found = bit_operations([(_layer(100), INTEGER_48)], macs=120, float_bits=16, added=30)
    assert found.all_saved == pytest.approx(120 * 1024 / (100 * 4 * 8 + (20 + 30) * 256))
    assert found.layers_saved == pytest.approx(32)


def test_branch_counts_with_the_bits_of_floats() -> None:
    layer = Layer("layer", "MatMul", "inner", (64, 32), 10 * 64 * 32, "layer")
    rule = Rule(4, 4, None, "float", low_rank=8)
    products, branch = 10 * 64 * 32, 10 * 8 * (64 + 32)
    assert layer_bit_operations(layer, rule, 16) == products * 16 + branch * 256
    found = bit_operations([(layer, rule)], macs=2 * products, float_bits=16)
    assert found.layers_saved == pytest.approx(products * 1024 / (products * 16 + branch * 256))
    assert found.all_saved == pytest.approx(2 * products * 1024 / (products * 16 + branch * 256 + products * 256))
