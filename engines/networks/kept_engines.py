"""The engines of a bundle on one runtime, opened when a chain first needs them and kept for the chains that follow."""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

from engines.backends.base import Backend
from engines.backends.choice import Runtime, open_backend
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import is_guided
from engines.chain.sampling import Chain
from engines.networks.conditioning import Conditioning
from engines.networks.control import GivenControl
from engines.networks.decoder import check_decoder, open_decoder, open_preview
from engines.networks.encoder import Encoder, open_encoder
from engines.networks.engine_bank import EngineBank
from engines.networks.image_decoder import Decoder
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_changes import Contents, contents_of
from engines.networks.lora.lora_use import LoraUse

Loras: TypeAlias = tuple[LoraUse, ...]


class KeptEngines:
    """The engines and the decoder of a bundle. Of engines with LoRAs in their weights, those of the LoRAs last used are kept. What the
    files of LoRAs contain counts, not where they lie.

    Args:
        bundle: bundle that the graphs come from.
        runtime: runtime of the engines.
        threads: threads of a CPU runtime; None uses every core that the process may use.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime = "target", threads: int | None = None) -> None:
        self._bundle = bundle
        self._runtime = runtime
        self._threads = threads
        self._banks: dict[tuple[Contents, bool, int], EngineBank] = {}
        self._changed: ChangedWeights | None = None

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

    def check_decoder(self) -> None:
        """Check that the decoder can be opened, unless it is open; see `check_decoder`."""
        if "decoder" not in vars(self):
            check_decoder(self._bundle, self._runtime)

    @cached_property
    def preview(self) -> Decoder:
        """The decoder for pictures of states along a chain: the small one that the bundle has for them, else `decoder`."""
        return open_preview(self._bundle, self._runtime, self._threads) or self.decoder

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of a latent model, or the identity; see `open_encoder`."""
        return open_encoder(self._bundle, self._runtime, self._threads)

    def changed(self, loras: Loras) -> ChangedWeights | None:
        """Return the bundle's weights with LoRAs, as their files are now; None if there are none.

        Raises the errors of `ChangedWeights.of`.
        """
        if not loras:
            return None
        if self._changed is None or self._changed.changes.contents != contents_of(loras):
            self._changed = ChangedWeights.of(self._bundle, loras)
            self._banks = {key: bank for key, bank in self._banks.items() if key[0] in ((), self._changed.changes.contents)}
        return self._changed

    @property
    def last_changed(self) -> ChangedWeights | None:
        """The weights with the LoRAs last used; None if none were."""
        return self._changed

    def bank(
        self,
        chain: Chain,
        batch: int,
        conditioning: Conditioning | None = None,
        loras: Loras = (),
        control: GivenControl | None = None,
    ) -> EngineBank:
        """Return the opened engines of a chain.

        Args:
            chain: chain whose precisions and timesteps count; its own denoisers are ignored.
            batch: samples per network call. Engines for other batch sizes are separate.
            conditioning: conditioning table to use instead of the bundle's own, or None.
            loras: LoRAs in the weights.
            control: what gives the residuals of a control network; see `EngineBank.on_chain`.

        Raises:
            UsageError: the chain is guided, but the model has no null condition; or the LoRAs do not fit the bundle or the runtime.
            PtqdError: a file of the bundle is damaged, or the runtime refuses a graph.
        """
        changed = self.changed(loras)
        key = (() if changed is None else changed.changes.contents, is_guided(chain.scale), batch)
        if key not in self._banks:
            self._banks[key] = EngineBank(self._bundle, chain.scale, batch=batch, backend=self.backend, changed=changed)
        bank = self._banks[key].on_chain(chain.timesteps, chain.scale, conditioning, control)
        bank.open(chain.networks)
        return bank
