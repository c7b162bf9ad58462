"""Control images of a run, for a bundle with a control network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.apps.asked.edit import GivenImages, check_number, given_pictures
from engines.apps.pictures.picture_files import GivenPicture, check_picture, picture_digest, picture_state
from engines.arrays import Float32
from engines.bundle.manifest import ControlNetworkRecord, ModelRecord
from engines.errors import UsageError
from engines.networks.control import OwnNetwork


@dataclass(frozen=True, eq=False)
class AskedControl:
    """What a run's residuals come from: control images, or a control network of the user's own.

    Attributes:
        images: one control image for all samples, or one for each; empty with a network.
        network: the user's own network; None with images.
    """

    images: tuple[GivenPicture, ...] = ()
    network: OwnNetwork | None = None

    @classmethod
    def of(cls, image: GivenImages | None, network: OwnNetwork | None = None) -> AskedControl | None:
        """Return what a user asks for; None without either.

        Raises:
            UsageError: there are both, or no such pictures.
        """
        if image is None and network is None:
            return None
        if image is not None and network is not None:
            raise UsageError(
                "A control image and a control network exclude each other.",
                found="a control image and a control network",
                expected="one of them",
            )
        return cls(network=network) if image is None else cls(given_pictures(image))

    def check(self, model: ModelRecord, num: int) -> None:
        """Check, before any engine opens, that `num` samples of a model can take the residuals.

        Raises:
            UsageError: they cannot.
        """
        if model.control is None:
            raise UsageError(
                "The bundle takes no residuals of a control network.",
                found="a control image or network",
                expected="a bundle that was built with model.control in its plan",
            )
        if self.network is None:
            record = _network(model)
            check_number(self.images, num)
            for image in self.images:
                check_picture(image, record.image_shape)

    def given(self, model: ModelRecord) -> OwnNetwork | Float32:
        """Return the network, or the images as float32 [K, C, H, W] in [0, 1]."""
        if self.network is not None:
            return self.network
        shape = _network(model).image_shape
        return np.stack([(picture_state(image, shape) + 1) / 2 for image in self.images])

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the files of the images, in their order."""
        return tuple(picture_digest(image) for image in self.images if not isinstance(image, np.ndarray))


def _network(model: ModelRecord) -> ControlNetworkRecord:
    network = None if model.control is None else model.control.network
    if network is None:
        raise UsageError(
            "The bundle has no control network that could read a control image.",
            found="no control network in the manifest",
            expected="control.onnx",
            mend="name the network as model.control.path in the plan and build again, or compute the residuals in Python",
        )
    return network
