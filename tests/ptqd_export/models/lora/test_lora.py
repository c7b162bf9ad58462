from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import UsageError
from tests.ptqd_export.models.lora.loras import RANK, array, factors, fuse, fused_by_hand, network_with, small_unet, written

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
DIT = "transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0"

SPELLINGS = {
    "peft": ("unet", f"{UNET}.to_out.0", f"unet.{UNET}.to_out.0.lora_A.weight", f"unet.{UNET}.to_out.0.lora_B.weight"),
    "peft, with the adapter's name": (
        "unet", f"{UNET}.to_q", f"unet.{UNET}.to_q.lora_A.default.weight", f"unet.{UNET}.to_q.lora_B.default.weight",
    ),
    "peft, no part": ("unet", f"{UNET}.to_q", f"{UNET}.to_q.lora_A.weight", f"{UNET}.to_q.lora_B.weight"),
    "peft, no part, text": ("text_encoder", f"{TEXT}.mlp.fc1", f"{TEXT}.mlp.fc1.lora_A.weight", f"{TEXT}.mlp.fc1.lora_B.weight"),
    "peft, transformer": ("unet", DIT, f"transformer.{DIT}.lora_A.weight", f"transformer.{DIT}.lora_B.weight"),
    "peft, transformer, no part": ("unet", DIT, f"{DIT}.lora_A.weight", f"{DIT}.lora_B.weight"),
    "diffusers": ("unet", f"{UNET}.to_out.0", f"unet.{UNET}.to_out.0.lora.down.weight", f"unet.{UNET}.to_out.0.lora.up.weight"),
    "diffusers, no part": ("unet", f"{UNET}.to_out.0", f"{UNET}.to_out.0.lora.down.weight", f"{UNET}.to_out.0.lora.up.weight"),
    "attention processors": (
        "unet", f"{UNET}.to_out.0", f"unet.{UNET}.processor.to_out_lora.down.weight", f"unet.{UNET}.processor.to_out_lora.up.weight",
    ),
    "attention processors, no part": (
        "unet", f"{UNET}.to_q", f"{UNET}.processor.to_q_lora.down.weight", f"{UNET}.processor.to_q_lora.up.weight",
    ),
    "kohya": (
        "unet", f"{UNET}.to_out.0",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
    ),
    "ComfyUI": ("unet", f"{UNET}.to_q", f"diffusion_model.{UNET}.to_q.lora_A.weight", f"diffusion_model.{UNET}.to_q.lora_B.weight"),
    "text, peft": (
        "text_encoder", f"{TEXT}.self_attn.q_proj",
        f"text_encoder.{TEXT}.self_attn.q_proj.lora_A.weight", f"text_encoder.{TEXT}.self_attn.q_proj.lora_B.weight",
    ),
    "text, without the prefix of transformers 4": (
        "text_encoder_2", "encoder.layers.0.mlp.fc1",
        f"text_encoder_2.{TEXT}.mlp.fc1.lora_A.weight", f"text_encoder_2.{TEXT}.mlp.fc1.lora_B.weight",
    ),
    "text, diffusers": (
        "text_encoder", f"{TEXT}.mlp.fc1", f"text_encoder.{TEXT}.mlp.fc1.lora_linear_layer.down.weight",
        f"text_encoder.{TEXT}.mlp.fc1.lora_linear_layer.up.weight",
    ),
    "text, old diffusers": (
        "text_encoder", f"{TEXT}.self_attn.out_proj",
        f"text_encoder.{TEXT}.self_attn.to_out_lora.down.weight", f"text_encoder.{TEXT}.self_attn.to_out_lora.up.weight",
    ),
    "text, kohya": (
        "text_encoder_2", f"{TEXT}.self_attn.q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_is_changed_whatever_the_trainer_called_it(tmp_path: Path, spelling: str) -> None:
    part, name, down_key, up_key = SPELLINGS[spelling]
    layer = nn.Linear(6, 4)
    before, (down, up) = array(layer.weight), factors(layer)
    fuse(tmp_path, {down_key: down, up_key: up}, part, network_with(name, layer))
    np.testing.assert_allclose(array(layer.weight), fused_by_hand(before, down, up, RANK), atol=1e-6)
    assert not np.allclose(array(layer.weight), before, atol=0.1)


ALPHA_SPELLINGS = {
    "lora_unet_proj.alpha": ("lora_unet_proj.lora_down.weight", "lora_unet_proj.lora_up.weight"),
    "unet.proj.alpha": ("unet.proj.lora_A.weight", "unet.proj.lora_B.weight"),
    "unet.proj.lora.alphas": ("unet.proj.lora.down.weight", "unet.proj.lora.up.weight"),
    "attn1.processor.to_q_lora.alpha": ("attn1.processor.to_q_lora.down.weight", "attn1.processor.to_q_lora.up.weight"),
    "attn1.processor.to_out_lora.down.weight.alpha": ("attn1.processor.to_out_lora.down.weight", "attn1.processor.to_out_lora.up.weight"),
    "attn1.processor.to_q.alpha": ("attn1.processor.to_q_lora.down.weight", "attn1.processor.to_q_lora.up.weight"),
}


@pytest.mark.parametrize("key", ALPHA_SPELLINGS)
def test_an_alpha_belongs_to_its_layer_however_it_is_called(tmp_path: Path, key: str) -> None:
    layer = nn.Linear(6, 4)
    before, (down, up), keys = array(layer.weight), factors(layer), ALPHA_SPELLINGS[key]
    name = "attn1.to_out.0" if "to_out" in key else "attn1.to_q" if "to_q" in key else "proj"
    fuse(tmp_path, {keys[0]: down, keys[1]: up, key: torch.tensor(8.0)}, "unet", network_with(name, layer))
    np.testing.assert_allclose(array(layer.weight), fused_by_hand(before, down, up, 8.0), atol=1e-5)


def test_alpha_is_the_layers_own_or_the_files_or_the_rank(tmp_path: Path) -> None:
    for extra, metadata, alpha in (
        ({"lora_unet_proj.alpha": torch.tensor(8.0)}, None, 8.0),
        ({}, {"unet.lora_alpha": 5, "text_encoder.lora_alpha": 9}, 5.0),
        ({}, {"transformer.lora_alpha": 3, "transformer.r": RANK, "transformer.peft_type": "LORA"}, 3.0),
        ({}, {"unet.lora_alpha": 5, "unet.use_rslora": True}, 5.0 * RANK**0.5),
        ({}, {"unet.lora_alpha": 5, "unet.alpha_pattern": {"other": 9, "proj": 7}}, 7.0),
        ({}, None, float(RANK)),
    ):
        layer = nn.Linear(6, 4)
        before, (down, up) = array(layer.weight), factors(layer)
        tensors = {"lora_unet_proj.lora_down.weight": down.half(), "lora_unet_proj.lora_up.weight": up.half(), **extra}
        fuse(tmp_path, tensors, "unet", network_with("proj", layer), metadata)
        np.testing.assert_allclose(array(layer.weight), fused_by_hand(before, down.half(), up.half(), alpha), atol=1e-5)


def test_layers_of_another_part_stay(tmp_path: Path) -> None:
    layer = nn.Linear(6, 4)
    before, (down, up) = layer.weight.detach().clone(), factors(layer)
    fuse(tmp_path, {"unet.proj.lora_A.weight": down, "unet.proj.lora_B.weight": up}, "text_encoder", network_with("proj", layer))
    assert torch.equal(layer.weight, before)


# Wrong files

PAIR = {"unet.proj.lora_A.weight": torch.zeros(2, 6), "unet.proj.lora_B.weight": torch.zeros(4, 2)}
KOHYA_PAIR = {"lora_unet_proj.lora_down.weight": torch.zeros(2, 6), "lora_unet_proj.lora_up.weight": torch.zeros(4, 2)}


def with_pair(down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, Tensor]:
    return {"unet.proj.lora_A.weight": torch.zeros(down), "unet.proj.lora_B.weight": torch.zeros(up)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({key.replace("proj", "other"): value for key, value in PAIR.items()}, None, r"unet other(.|\n)*a layer of unet"),
        (with_pair((2, 5), (4, 2)), None, r"does not fit the model(.|\n)*a change of a weight \(4, 6\)"),
        (with_pair((2, 4), (6, 2)), None, "a change of a weight"),
        (with_pair((2, 6), (4, 3)), None, "factors that do not fit each other"),
        (with_pair((0, 6), (4, 0)), None, "factors that do not fit each other"),
        (with_pair((), (4, 2)), None, "factors that do not fit each other"),
        ({**KOHYA_PAIR, "lora_unet_proj.alpha": torch.ones(2)}, None, "one number alpha"),
        ({"unet.proj.lora_A.weight": torch.zeros(2, 6)}, None, "unet proj has down\n  expected: up too"),
        ({"lora_unet_proj.lora_up.weight": torch.zeros(4, 2)}, None, "unet proj has up\n  expected: down too"),
        ({"lora_unet_proj.alpha": torch.ones(1)}, None, "unet proj has alpha\n  expected: down and up too"),
        ({**KOHYA_PAIR, "lora_unet_other.dora_scale": torch.ones(4)}, None, "unet other has dora_scale"),
        ({"lora_unet_proj.hada_w1_a": torch.zeros(1)}, None, "hada_w1_b and hada_w2_a and hada_w2_b too"),
        ({"lora_unet_proj.lokr_w1": torch.zeros(2, 2), "lora_unet_proj.lokr_w2_a": torch.zeros(2, 1)}, None, "expected: lokr_w2_b too"),
        ({**PAIR, "lora_unet_proj.oft_blocks": torch.zeros(1)}, None, r"lora_unet_proj.oft_blocks \(OFT\)"),
        ({**PAIR, "unet.proj.weight": torch.zeros(4, 6)}, None, r"unet.proj.weight \(whole weight or bias"),
        ({**PAIR, "unet.proj.lora_embedding_A": torch.zeros(4, 6)}, None, "change of an embedding"),
        ({**PAIR, "bundle_emb.token.string_to_param": torch.zeros(2)}, None, r"string_to_param \(unknown kind\)"),
        ({**PAIR, "transformer.proj.lora_A.weight": torch.zeros(2, 6)}, None, "changes a layer twice"),
        ({**PAIR, "unet.proj.lora_A.other.weight": torch.zeros(2, 6)}, None, "changes a layer twice"),
        ({**PAIR, "unet.proj.lora_magnitude_vector": torch.zeros(5)}, None, r"magnitude \(5,\)(.|\n)*a change of a weight"),
        ({"unet.proj.lora_A.weight": torch.ones(2, 6), "unet.proj.lora_B.weight": torch.full((4, 2), torch.nan)}, None, "not finite"),
        (PAIR, {"unet.peft_type": "LOHA"}, "unet.peft_type = LOHA"),
        (PAIR, {"unet.init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa_niter_4"),
        (PAIR, {"unet.use_qalora": True}, "use_qalora"),
        (PAIR, {"unet.use_dora": True}, "expected: magnitude too"),
        (PAIR, {"unet.r": 4}, "rank 4 for proj\n  expected: 2"),
        (PAIR, {"unet.lora_alpha": "much"}, "lora_alpha = much\n  expected: a number"),
        (PAIR, {"unet.lora_alpha": True}, "lora_alpha = True"),
        (PAIR, {"unet.use_rslora": "yes"}, "expected: true or false"),
        (PAIR, {"unet.alpha_pattern": ["proj"]}, "expected: an object"),
        (PAIR, {"unet.alpha_pattern": {"(a*)*b": 3}}, r"a pattern '\(a\*\)\*b'"),
        (PAIR, {"unet.alpha_pattern": {"(proj": 3}}, r"a pattern '\(proj'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fuse(tmp_path, tensors, "unet", network_with("proj", nn.Linear(6, 4)), metadata)


def test_a_bias_that_the_layer_lacks_is_refused(tmp_path: Path) -> None:
    for layer in (nn.Linear(6, 4, bias=False), nn.Embedding(6, 4)):
        with pytest.raises(UsageError, match=r"bias \(4,\)\n  expected: a change of a weight \(\d, \d\)\n"):
            fuse(tmp_path, {"lora_unet_proj.diff_b": torch.ones(4)}, "unet", network_with("proj", layer))


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    names = ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1")
    tensors = {f"lora_unet_{name}.lora_down.weight": torch.ones(1, 4, 3, 3) for name in names}
    tensors |= {f"lora_unet_{name}.lora_up.weight": torch.ones(4, 1, 1, 1) for name in names}
    with pytest.raises(UsageError, match="changes a layer twice"):
        fuse(tmp_path, tensors, "unet", small_unet())


# The part of the pipeline


def test_a_part_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    lora = written(tmp_path, {key.replace("unet", "text_encoder_2"): value for key, value in PAIR.items()})
    lora.check_parts(("unet", "text_encoder_2"))
    with pytest.raises(UsageError, match="layers of text_encoder_2"):
        lora.check_parts(("unet", "text_encoder"))


UNPLACED = {key.removeprefix("unet."): value for key, value in PAIR.items()}


def test_layers_without_a_part_go_to_the_network_that_has_them_all(tmp_path: Path) -> None:
    lora = written(
        tmp_path, {**UNPLACED, "text_encoder.other.lora_A.weight": torch.ones(1, 2), "text_encoder.other.lora_B.weight": torch.ones(2, 1)}
    )
    placed = lora.placed([("unet", network_with("proj", nn.Linear(5, 4))), ("text_encoder", network_with("proj", nn.Linear(6, 4)))])
    assert {part: list(layers) for part, layers in placed.layers.items()} == {"text_encoder": ["other", "proj"]}


def test_layers_that_no_network_or_several_have_are_refused(tmp_path: Path) -> None:
    lora = written(tmp_path, {**UNPLACED, "more.lora_A.weight": torch.ones(1, 2), "more.lora_B.weight": torch.ones(2, 1)})
    one, both = network_with("proj", nn.Linear(6, 4)), network_with("proj", nn.Linear(6, 4))
    both.add_module("more", nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"2 layers(.|\n)*in text_encoder and in text_encoder_2(.|\n)*\"text_encoder\.\""):
        lora.placed([("text_encoder", both), ("text_encoder_2", both)])
    with pytest.raises(UsageError, match=r"of 2 layers (.|\n)*1 in unet \(not more\), 1 in text_encoder \(not more\)"):
        lora.placed([("unet", one), ("text_encoder", one)])


def test_a_layer_with_and_without_its_part_is_refused(tmp_path: Path) -> None:
    lora = written(tmp_path, {**UNPLACED, **{key: value + 1 for key, value in PAIR.items()}})
    with pytest.raises(UsageError, match="changes a layer twice"):
        lora.placed([("unet", network_with("proj", nn.Linear(6, 4)))])
