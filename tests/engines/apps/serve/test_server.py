"""What a server makes of prompts, sizes and images: the files of `ptqd-run sample`, or a refusal that says why."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from engines.apps.serve.image_request import SPARE_BYTES
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.errors import UsageError
from tests.conftest import SIZE
from tests.engines.apps.serve.conftest import TALL
from tests.engines.apps.serve.in_process import Server, pictures
from tests.engines.ptqd_run import sampled

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

NAME = f"{TALL[0]}x{TALL[1]}"


def png(seed: int = 0, size: tuple[int, ...] = (SIZE, SIZE)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def server(prompted: TinyBundle) -> Server:
    return Server(prompted.folder)


@pytest.fixture(scope="module")
def of_classes(tiny: TinyBundle) -> Server:
    return Server(tiny.folder)


def of_command(bundle: TinyBundle, output: Path, *options: object, num: int = 3) -> list[bytes]:
    """The pictures of `ptqd-run sample --seed 5`."""
    folder = sampled(bundle, output, *options, num=num)
    return [(folder / f"{n:08d}.png").read_bytes() for n in range(num)]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"prompt": "two"}, ("--prompt", "two")),
        ({"prompts": ["two", "zero"]}, ("--prompt", "two", "--prompt", "zero")),
        ({"prompt": "one", "negative_prompt": "zero"}, ("--prompt", "one", "--negative-prompt", "zero")),
        ({"prompt": "one", "size": NAME}, ("--prompt", "one", "--size", NAME)),
        ({"prompt": "one", "size": f"{SIZE}x{SIZE}"}, ("--prompt", "one")),
    ],
)
def test_prompts_and_sizes_give_the_files_of_the_command(
    server: Server, prompted: TinyBundle, tmp_path: Path, body: dict[str, Any], options: tuple[str, ...]
) -> None:
    assert server.pictures({"seed": 5, "num": 3, **body}) == of_command(prompted, tmp_path / "out", *options)


@pytest.mark.parametrize("masked", [False, True])
def test_images_give_the_files_of_the_command(of_classes: Server, tiny: TinyBundle, tmp_path: Path, *, masked: bool) -> None:
    (tmp_path / "image.png").write_bytes(png(0))
    (tmp_path / "mask.png").write_bytes(png(1))
    options = ("--image", tmp_path / "image.png", "--strength", 0.75, *(("--mask", tmp_path / "mask.png") if masked else ()))
    body = {"seed": 5, "num": 3, "class": 1, "image": text(png(0)), "strength": 0.75, **({"mask": text(png(1))} if masked else {})}
    assert of_classes.pictures(body) == of_command(tiny, tmp_path / "out", "--classes", 1, *options)


def test_only_what_can_share_a_network_call_shares_a_batch(prompted: TinyBundle) -> None:
    server = Server(prompted.folder)
    bodies: list[dict[str, Any]] = [
        {"seed": 1, "prompt": "one"},
        {"seed": 2, "prompt": "two", "num": 2},
        {"seed": 3, "prompt": "one", "size": NAME},
        {"seed": 4, "prompt": "two", "size": f"{SIZE}x{SIZE}"},
        {"seed": 5, "prompt": "one", "negative_prompt": "two"},
        {"seed": 6, "prompt": "one", "image": text(png(0))},
        {"seed": 7, "prompt": "two", "image": text(png(0))},
        {"seed": 8, "prompt": "one", "image": text(png(1))},
    ]
    together = server.answers(*bodies)
    assert server.batches == [4, 1, 1, 2, 1]
    for body, answer in zip(bodies, together, strict=True):
        assert pictures(answer) == server.pictures(body)


def test_a_fault_of_one_request_is_not_that_of_its_batch(of_classes: Server) -> None:
    image = png(0)
    damaged = image.replace(b"IDAT", b"IDAX")
    good, bad = of_classes.answers({"seed": 1, "class": 0}, {"seed": 1, "class": 0, "image": text(damaged)})
    assert (good.status, bad.status) == (200, 400)
    assert b"A picture cannot be read." in bad.content


def bomb(width: int, height: int) -> bytes:
    """A PNG file whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "prompt: this model needs a prompt"),
        ({"prompt": "one", "prompts": ["two"]}, 400, "Prompts are given twice. found: prompt and prompts"),
        ({"prompts": []}, 400, "prompts: List should have at least 1 item"),
        ({"prompts": ["one"] * 9}, 400, "prompts: 9 prompts given; at most 8 are allowed"),
        ({"prompt": "x" * 10_001}, 400, "prompt: String should have at most 10000 characters"),
        ({"prompts": ["x" * 10_001]}, 400, "prompts.0: String should have at most 10000 characters"),
        ({"prompt": "one", "negative_prompt": "x" * 10_001}, 400, "negative_prompt: String should have at most 10000 characters"),
        ({"prompt": "one", "class": 1}, 400, "Prompts and classes cannot be combined."),
        ({"prompt": "one", "size": "99x99"}, 400, f"no graphs for images of this size. found: 99x99; expected: {SIZE}x{SIZE} or {NAME}"),
        ({"prompt": "one", "size": "large"}, 400, "This is not an image size. found: large"),
        ({"prompt": "one", "loras": [{"name": "style"}]}, 400, "The server has no LoRAs."),
        ({"prompt": "one", "strength": 0.5}, 400, "A strength needs an image to start from."),
        ({"prompt": "one", "mask": text(png())}, 400, "A mask needs an image."),
        ({"prompt": "one", "image": text(png()), "strength": 0}, 400, "strength: Input should be greater than 0"),
        ({"prompt": "one", "image": text(png()), "strength": 0.01}, 400, "The strength leaves no step of the chain."),
        ({"prompt": "one", "image": "no base64"}, 400, "image: the text is not base64"),
        ({"prompt": "one", "image": text(b"GIF89a")}, 400, "A picture cannot be read. found: 6 bytes"),
        ({"prompt": "one", "image": text(png(0, TALL))}, 400, "A picture has the wrong size."),
        ({"prompt": "one", "image": text(png()), "size": NAME}, 400, "A picture has the wrong size."),
        ({"prompt": "one", "image": text(png()), "mask": text(png(0, TALL))}, 400, "The mask has the wrong size."),
        ({"prompt": "one", "image": text(bomb(60_000, 60_000))}, 400, "A picture cannot be read."),
        ({"prompt": "one", "image": text(bomb(5_000, 5_000))}, 400, "A picture has the wrong size. found: "),
        ({"prompt": "one", "image": "A" * (2 * SPARE_BYTES)}, 413, "image: 131072 characters; at most"),
        ({"prompt": "one", "control_image": text(png())}, 400, "The bundle takes no residuals of a control network."),
        (b'{"seed": 1, "prompt": "' + b"x" * 600_000 + b'"}', 413, "the body has more than"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(server: Server, body: Any, status: int, message: str) -> None:
    found = server.refusal({"seed": 1, **body} if isinstance(body, dict) else body)
    assert found[0] == status
    assert message in found[1]
    assert not server.batches or sum(server.batches) < 100


def test_no_pixel_of_a_picture_of_another_size_is_decoded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert server.refusal({"seed": 1, "prompt": "one", "image": text(bomb(5_000, 5_000))})[0] == 400


def test_loras_are_named_by_their_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    (folder / "peft").mkdir(parents=True)
    for name in ("style.safetensors", "peft/adapter_model.safetensors", "peft/adapter_config.json", "notes.txt"):
        (folder / name).write_bytes(b"")
    (tmp_path / "secret.safetensors").write_bytes(b"")
    found = LoraFolder.of(folder)
    assert dict(found.entries) == {"peft": "peft", "style": "style.safetensors"}
    assert found.files == ("peft/adapter_model.safetensors", "peft/adapter_config.json", "style.safetensors")
    for name in ("../secret", str(tmp_path / "secret"), "peft/adapter_model", "notes", "style.safetensors", "", "."):
        with pytest.raises(UsageError, match="The server has no such LoRA"):
            found.use(name, 1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "The folder of LoRAs is empty"),
        (["a.safetensors", "a/pytorch_lora_weights.safetensors"], "Two LoRAs have the same name"),
        (["link.safetensors"], "A LoRA lies outside its folder"),
        (None, "The folder of LoRAs is missing"),
    ],
)
def test_folders_that_a_server_cannot_offer_are_refused(tmp_path: Path, made: list[str] | None, message: str) -> None:
    (tmp_path / "outside").write_bytes(b"")
    for name in made or ():
        path = tmp_path / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "outside") if name.startswith("link") else path.write_bytes(b"")
    if made == []:
        (tmp_path / "loras").mkdir()
    with pytest.raises(UsageError, match=message):
        LoraFolder.of(tmp_path / "loras")
