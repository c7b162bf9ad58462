"""Tell which input of a graph is the state, which the time, and which output is the network's: by the plan, by name, or by shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.reading.onnx_file import GraphValue, Size
from ptqd_export.plan.graph_section import GraphInputSection, TimeUnit

STATES = (
    "sample", "noisy", "noisy_sample", "noisy_latent", "noisy_latents", "noisy_input", "noisy_image", "x_t", "xt", "x_noisy", "x", "latent",
    "latents", "latent_model_input", "hidden_states", "input", "image", "z",
)  # fmt: skip
"""Names that exporters give to the state, the surest first."""

TIMES: dict[str, TimeUnit] = {
    **dict.fromkeys(("timestep", "timesteps", "time_step", "t", "time", "ts", "step"), "timestep"),
    **dict.fromkeys(("sigma", "sigmas", "noise_level", "noise_levels"), "sigma"),
    **dict.fromkeys(("log_sigma", "log_sigmas"), "log_sigma"),
    **dict.fromkeys(("c_noise", "noise_labels"), "c_noise"),
}
"""Names of the time, and what each usually takes."""

OUTPUTS = (
    "out_sample", "denoised", "sample", "noise_pred", "eps", "epsilon", "v", "velocity", "pred", "prediction", "out", "output",
    "noise", "x0",
)  # fmt: skip
"""Names of the output, where there are several."""


@dataclass(frozen=True)
class GraphSignature:
    """The parts of a graph's interface.

    Attributes:
        state, time, output: as their names say; the time is a timestep or a noise level.
        others: all other inputs.
    """

    state: GraphValue
    time: GraphValue
    output: GraphValue
    others: tuple[GraphValue, ...]


def find_signature(
    inputs: Sequence[GraphValue],
    outputs: Sequence[GraphValue],
    *,
    state: str | None = None,
    time: str | None = None,
    output: str | None = None,
    constants: Sequence[str] = (),
) -> GraphSignature:
    """Return the parts of an interface.

    Args:
        inputs: inputs of the graph.
        outputs: outputs of the graph.
        state, time, output: names that the plan gives; None looks for them.
        constants: names of inputs that the plan gives one value.

    Raises:
        UsageError: a name is not in the graph, or it cannot be told which input or output is meant.
    """
    free = [one for one in inputs if one.name not in constants]
    found_state = _named(state, inputs, "input", "state") or _state(free, time, outputs)
    rest = [one for one in free if one.name != found_state.name]
    found_time = _named(time, inputs, "input", "time") or _time(rest)
    found_output = _named(output, outputs, "output", "output") or _output(outputs, found_state)
    others = tuple(one for one in inputs if one.name not in (found_state.name, found_time.name))
    return GraphSignature(found_state, found_time, found_output, others)


def _named(name: str | None, values: Sequence[GraphValue], kind: str, role: str) -> GraphValue | None:
    if name is None:
        return None
    found = next((one for one in values if one.name == name), None)
    if found is None:
        raise UsageError(f"The graph has no such {kind}.", found=f"model.graph.{role} = {name!r}", expected=_listed(values))
    return found


def _state(inputs: Sequence[GraphValue], time: str | None, outputs: Sequence[GraphValue]) -> GraphValue:
    ranks = {len(one.shape) for one in outputs if one.shape is not None}
    fitting = [
        one
        for one in inputs
        if one.is_float and one.name != time and one.shape is not None and len(one.shape) >= 2 and len(one.shape) in ranks
    ]
    return _picked("state", inputs, fitting, STATES, "one input of floats with as many axes as an output")


def _time(inputs: Sequence[GraphValue]) -> GraphValue:
    fitting = [one for one in inputs if one.shape is not None and all(size == 1 for size in one.shape[1:])]
    return _picked("time", inputs, fitting, TIMES, "one input with a number for each sample")


def _output(outputs: Sequence[GraphValue], state: GraphValue) -> GraphValue:
    if len(outputs) == 1:
        return outputs[0]
    fitting = [one for one in outputs if one.shape is not None and state.shape is not None and len(one.shape) == len(state.shape)]
    return _picked("output", outputs, fitting, OUTPUTS, "one output with as many axes as the state")


def _picked(role: str, values: Sequence[GraphValue], fitting: Sequence[GraphValue], names: Iterable[str], expected: str) -> GraphValue:
    """Return the fitting value with the surest name, or the only one that fits."""
    by_name = [one for name in names for one in fitting if one.name.lower() == name]
    if by_name:
        return by_name[0]
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        f"It cannot be told which part of the graph is the {role}.",
        found=_listed(values),
        expected=expected,
        mend=f"name it as model.graph.{role}",
    )


def _listed(values: Sequence[GraphValue]) -> str:
    return "; ".join(map(str, values)) or "none"


def sample_shape(value: GraphValue, given: Sequence[int] | None, field: str) -> tuple[int, ...]:
    """Return the shape of one sample of an input.

    Args:
        value: the input.
        given: the shape in the plan; None takes the graph's.
        field: key of the plan, for the message.

    Raises:
        UsageError: the graph leaves a size open and the plan does not state it, or both state others.
    """
    stated: tuple[Size, ...] = () if value.shape is None else value.shape[1:]
    if given is not None:
        fits = value.shape is None or (
            len(given) == len(stated) and all(not isinstance(a, int) or a == b for a, b in zip(stated, given, strict=True))
        )
        if not fits:
            raise UsageError("The plan's shape does not fit the graph.", found=f"{field} = {list(given)}", expected=str(value))
        return tuple(given)
    sizes = tuple(size for size in stated if isinstance(size, int))
    if value.shape is None or len(sizes) < len(stated):
        raise UsageError("The graph leaves sizes open.", found=str(value), expected=f"{field}, the shape of one sample without the batch")
    return sizes


def condition_shape(value: GraphValue, section: GraphInputSection) -> tuple[int | str, ...]:
    """Return the shape of one row of a condition; a name stands for a size that the table decides."""
    if section.shape is not None:
        return tuple(int(size) for size in section.shape)
    stated: tuple[Size, ...] = () if value.shape is None else value.shape[1:]
    return tuple(size if size is not None else f"{value.name}_{axis}" for axis, size in enumerate(stated, start=1))
