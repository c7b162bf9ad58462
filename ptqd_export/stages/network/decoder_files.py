"""Files in the folders of the stages `decoder` and `preview`."""

from __future__ import annotations

from pathlib import Path

from engines.bundle.first_stage_record import DecoderRecord

DECODER, PREVIEW = "decoder.onnx", "preview.onnx"
RECORD = "decoder.json"


def decoder_record(folder: Path | None) -> DecoderRecord | None:
    """Read the record that the stage wrote; None without a folder."""
    return None if folder is None else DecoderRecord.model_validate_json((folder / RECORD).read_text())
