"""The engines of a bundle on one runtime, opened when a chain first needs them and kept for the chains that follow."""

from __future__ import annotations

from functools import cached_property

from engines.backends.base import Backend
from engines.backends.choice import Runtime, open_backend
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import is_guided
from engines.chain.sampling import Chain
from engines.networks.conditioning import Conditioning
from engines.networks.control import GivenControl
from engines.networks.decoder import Decoder, open_decoder
from engines.networks.encoder import Encoder, open_encoder
from engines.networks.engine_bank import EngineBank


class KeptEngines:
    """The engines and the decoder of a bundle.

    Args:
        bundle: bundle that the graphs come from.
        runtime: runtime of the engines.
        threads: threads of a CPU runtime; None uses every core that the process may use.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime = "target", threads: int | None = None) -> None:
        self._bundle = bundle
        self._runtime = runtime
        self._threads = threads
        self._banks: dict[tuple[bool, int], EngineBank] = {}

    @cached_property
    def backend(self) -> Backend:
        """The backend that opens the engines.

        Raises:
            MissingBackendError: the runtime or its device is missing.
        """
        return open_backend(self._bundle, self._runtime, self._threads)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder of a latent model, or the identity; see `open_decoder`."""
        return open_decoder(self._bundle, self._runtime, self._threads)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of a latent model, or the identity; see `open_encoder`."""
        return open_encoder(self._bundle, self._runtime, self._threads)

    def bank(self, chain: Chain, batch: int, conditioning: Conditioning | None = None, control: GivenControl | None = None) -> EngineBank:
        """Return the opened engines of a chain.

        Args:
            chain: chain whose precisions and timesteps count; its own denoisers are ignored.
            batch: samples per network call. Engines for other batch sizes are separate.
            conditioning: conditioning table to use instead of the bundle's own, or None.
            control: what gives the residuals of a control network; see `EngineBank.on_chain`.

        Raises:
            UsageError: the chain is guided, but the model has no null condition.
            PtqdError: a file of the bundle is damaged, or the runtime refuses a graph.
        """
        key = (is_guided(chain.scale), batch)
        if key not in self._banks:
            self._banks[key] = EngineBank(self._bundle, chain.scale, batch=batch, backend=self.backend)
        bank = self._banks[key].on_chain(chain.timesteps, chain.scale, conditioning, control)
        bank.open(chain.networks)
        return bank
