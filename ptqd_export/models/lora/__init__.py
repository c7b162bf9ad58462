"""LoRA files (Hu et al. 2021): low-rank changes of weights, fused into the networks before anything else uses them.

A file is read (`lora_file.py`), its keys are understood (`lora_keys.py`), and each layer's change is added (`layer_change.py`) to the layer
that bears its name (`layer_names.py`).
"""

from __future__ import annotations

from engines.networks.lora.lora_keys import DENOISER
from ptqd_export.models.lora.lora import Lora, load_lora

__all__ = ["DENOISER", "Lora", "load_lora"]
