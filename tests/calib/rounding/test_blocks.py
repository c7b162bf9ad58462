"""Blocks of networks of four families, found from their module trees alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from calib.rounding.blocks import Block, candidates, find_blocks, single_layers
from calib.rounding.module_calls import Inputs, ModuleCall, module_calls


def _forward(network: nn.Module, inputs: Inputs) -> object:
    return network(*inputs)


def _weighted(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))]


def _calls(network: nn.Module, layers: list[str], inputs: Inputs) -> dict[str, ModuleCall]:
    return module_calls(network.eval(), candidates(network, layers), _forward, inputs)


def _blocks(network: nn.Module, inputs: Inputs, without: tuple[str, ...] = ("emb",)) -> list[Block]:
    """Blocks of a network's layers, those of embeddings left out by name."""
    layers = [name for name in _weighted(network) if not any(word in name for word in without)]
    return find_blocks(network, layers, _calls(network, layers, inputs))


def _sizes(blocks: list[Block]) -> dict[str, int]:
    return {block.name: len(block.layers) for block in blocks}


def test_unet_with_attention() -> None:
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    assert _sizes(_blocks(network, (torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])))) == {
        "conv_in": 1, "down_blocks.0.resnets.0": 2, "down_blocks.0.downsamplers.0.conv": 1, "down_blocks.1.resnets.0": 3,
        "down_blocks.1.attentions.0": 4, "mid_block.resnets.0": 2, "mid_block.attentions.0": 4, "mid_block.resnets.1": 2,
        "up_blocks.0.resnets.0": 3, "up_blocks.0.attentions.0": 4, "up_blocks.0.resnets.1": 3, "up_blocks.0.attentions.1": 4,
        "up_blocks.0.upsamplers.0.conv": 1, "up_blocks.1.resnets.0": 3, "up_blocks.1.resnets.1": 3, "conv_out": 1,
    }  # fmt: skip


def test_unet_with_cross_attention() -> None:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8, cross_attention_dim=12,
    )  # fmt: skip
    blocks = _blocks(network, (torch.randn(2, 2, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 12)))
    sizes = _sizes(blocks)
    assert sizes["down_blocks.0.attentions.0.transformer_blocks.0"] == 10
    assert sizes["down_blocks.0.attentions.0.proj_in"] == 1
    assert Counter(sizes.values())[10] == 4
    assert [block.name for block in blocks][:3] == ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0.proj_in"]


def test_diffusion_transformer() -> None:
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, norm_num_groups=4
    )
    layers = [name for name in _weighted(network) if "norm1" not in name]

    def forward(network: nn.Module, inputs: Inputs) -> object:
        return network(inputs[0], timestep=inputs[1], class_labels=inputs[2])

    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.tensor([1, 7]))
    found = find_blocks(network, layers, module_calls(network.eval(), candidates(network, layers), forward, inputs))
    assert _sizes(found) == {
        "pos_embed.proj": 1, "transformer_blocks.0": 6, "transformer_blocks.1": 6, "transformer_blocks.2": 6,
        "proj_out_1": 1, "proj_out_2": 1,
    }  # fmt: skip


class ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(6, channels))
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = x + self.out_layers(self.in_layers(x) + self.emb_layers(emb)[:, :, None, None])
        return out


class AttentionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2)).chunk(3, dim=1)
        out: Tensor = x + self.proj_out(v @ (q.mT @ k).softmax(dim=-1)).reshape(x.shape)
        return out


class TimestepSequential(nn.Sequential):
    """As in LDM: a Sequential that passes the embedding to those children that take it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]  # as there
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class LatentUNet(nn.Module):
    """Nested lists as in CompVis LDM: `input_blocks.1` is a Sequential of a residual and an attention block."""

    def __init__(self) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(
            [TimestepSequential(nn.Conv2d(1, 4, 3, padding=1)), TimestepSequential(ResBlock(4), AttentionBlock(4))]
        )
        self.middle_block = TimestepSequential(ResBlock(4), AttentionBlock(4), ResBlock(4))
        self.output_blocks = nn.ModuleList([TimestepSequential(ResBlock(8))])
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        out: Tensor = self.out(self.output_blocks[0](torch.cat([self.middle_block(x, emb), skips[0]], dim=1), emb))
        return out


def test_nested_lists_of_latent_diffusion() -> None:
    assert _sizes(_blocks(LatentUNet(), (torch.randn(2, 1, 4, 4), torch.randn(2, 6)))) == {
        "input_blocks.0.0": 1, "input_blocks.1.0": 2, "input_blocks.1.1": 2, "middle_block.0": 2, "middle_block.1": 2, "middle_block.2": 2,
        "output_blocks.0.0": 2, "out.1": 1,
    }  # fmt: skip


def test_small_network_without_lists_is_one_block() -> None:
    network = AttentionBlock(4)
    (block,) = _blocks(network, (torch.randn(2, 4, 3, 3),))
    assert (block.name, block.layers) == ("", ("qkv", "proj_out"))


def test_large_network_without_lists_is_cut_into_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib.rounding.blocks.MOST_LAYERS", 1)
    assert _sizes(_blocks(AttentionBlock(4), (torch.randn(2, 4, 3, 3),))) == {"qkv": 1, "proj_out": 1}


class Reversed(nn.Module):
    """Runs its layers in another order than they stand in, one of them twice, and takes a table that has no row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.twice, self.first = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        h = self.twice(self.twice(self.first(x) + table))
        return self.last(h), h


def test_blocks_come_in_the_order_of_execution_and_layers_called_twice_in_none() -> None:
    network = Reversed()

    def forward(network: nn.Module, inputs: Inputs) -> object:
        return network(inputs[0], torch.ones(4))

    layers = _weighted(network)
    calls = module_calls(network, candidates(network, layers), forward, (torch.randn(1, 4),))
    for found in (find_blocks(network, layers, calls), single_layers(layers, calls)):
        assert [block.name for block in found] == ["first", "last"]
