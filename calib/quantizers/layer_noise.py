"""How much of a network's output error each quantized layer causes, all layers at once.

Quantizing layer l alone changes its output by `d_l`, and that of the network by `J_l d_l`, to first order. For a random vector v of signs,
`E <v, J_l d_l>^2 = ||J_l d_l||^2` (Hutchinson 1990), and `<v, J_l d_l> = <J_l^T v, d_l>`: one backward pass of v serves every layer. To
first order and with independent errors, the noise of several layers is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer

DIRECTIONS = 2
"""Random vectors for each state. States average too."""


def layer_noise(
    network: nn.Module,
    run: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    layers: Sequence[QuantizedLayer],
    inputs: Iterable[tuple[Tensor, ...]],
    seed: int = 0,
) -> dict[str, float]:
    """Return the noise power that each layer causes alone at the output, relative to the output's power, by name of the layer.

    A layer's part of the noise of all layers is averaged over the batches, which have the same weight, and the mean noise of all layers is
    divided by it. So a state with much noise does not decide alone. Memory is that of a training step at the size of one batch.

    Args:
        network: full-precision network; not modified.
        run: runs a network in place of `network` on a batch of inputs and returns its output [batch, ...].
        layers: quantized layers.
        inputs: batches of inputs.
        seed: seed of the random vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    quantized = fake_quantized(network, layers, next(network.parameters()).dtype)
    totals: list[float] = []
    parts = dict.fromkeys((layer.layer.name for layer in layers), 0.0)
    for batch in inputs:
        with _recorded(network, quantized, parts) as recorded, torch.enable_grad():
            out = run(network, batch)
        noise = _noise(out, recorded, generator)
        with torch.no_grad():
            totals.append(_relative_error(run(quantized, batch), out.detach()))
        for name, power in noise.items():
            parts[name] += power / totals[-1]
    return {name: part / len(totals) * fmean(totals) for name, part in parts.items()}


def _relative_error(out: Tensor, exact: Tensor) -> float:
    """Return the squared error relative to the exact output's power; at least 1e-300, for it divides."""
    return max(float((out - exact).square().sum() / exact.square().sum()), 1e-300)


def _noise(out: Tensor, recorded: Sequence[tuple[str, Tensor, Tensor]], generator: torch.Generator) -> dict[str, float]:
    """Return the mean square of every layer's part of the output error, relative to the output's power.

    Args:
        out: output of the network.
        recorded: name, output and change of the output of every call of a layer. A layer that is called several times adds up.
        generator: source of the random vectors.
    """
    power = float(out.detach().square().sum()) * DIRECTIONS
    noise: dict[str, float] = {}
    for _ in range(DIRECTIONS):
        signs = torch.randint(0, 2, out.shape, generator=generator).mul_(2).sub_(1).to(out)
        gradients = torch.autograd.grad(out, [value for _, value, _ in recorded], signs, retain_graph=True, allow_unused=True)
        products: dict[str, Tensor] = {}
        for (name, _, change), gradient in zip(recorded, gradients, strict=True):
            if gradient is not None:  # the network does not use this output
                products[name] = products.get(name, torch.zeros(())) + (gradient * change).sum().cpu()
        for name, product in products.items():
            noise[name] = noise.get(name, 0.0) + float(product.square()) / power
    return noise


@contextmanager
def _recorded(network: nn.Module, quantized: nn.Module, names: Iterable[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Record every call of the named layers while the `with` block runs the network: name, output, and the output's change when the layer
    is quantized.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    entered: dict[str, tuple[Tensor, ...]] = {}

    def entering(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            entered[name] = args

        return hook

    def recording(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            with torch.no_grad():
                change = quantized.get_submodule(name)(*entered.pop(name)) - out
            leaf_or_inner = out if out.requires_grad else out.requires_grad_()
            calls.append((name, leaf_or_inner, change))
            return leaf_or_inner.clone()  # what follows may work in place

        return hook

    modules = [(name, network.get_submodule(name)) for name in names]
    handles = [module.register_forward_hook(recording(name)) for name, module in modules]
    handles += [module.register_forward_pre_hook(entering(name), prepend=True) for name, module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def within_share(noise: Mapping[str, float], cost: Mapping[str, float], share: float) -> list[str]:
    """Return the names that take most noise away for at most this share of the whole cost, the noisiest first.

    They are taken by noise for its cost. Of these, the ones with less than a hundredth of the noise that is left anyway are not worth it.
    """
    room, chosen = share * sum(cost.values()), list[str]()
    for name in sorted(noise, key=lambda name: noise[name] / max(cost[name], 1.0), reverse=True):
        if cost[name] <= room:
            chosen.append(name)
            room -= cost[name]
    left = sum(noise.values()) - sum(noise[name] for name in chosen)
    return sorted((name for name in chosen if noise[name] > left / 100), key=noise.__getitem__, reverse=True)
