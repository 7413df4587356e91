"""How a spec says that training samples are changed at random. Names and defaults are those of torchvision and timm."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pared.specs.base import Spec

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=100)]
Strength = Annotated[float, Field(ge=0, le=10)]

_RATIO = "Least and largest width of the rectangle, as a multiple of its height."


class _Ranges(Spec):
    """Two ranges that the area and the form of a rectangle are drawn from."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> _Ranges:
        falling = {
            name: "begins above its end: the first number is the smaller"
            for name in ("scale", "ratio")
            if getattr(self, name)[0] > getattr(self, name)[1]
        }
        if falling:
            self._refuse(falling)
        return self


class Flip(Spec):
    """Mirrors an image."""

    p: Share = Field(0.5, description="Share of the samples.")


class Crop(Spec):
    """Pads an image on all sides and cuts one of its former size out of it, at a random place."""

    padding: int = Field(4, ge=1, le=1024, description="Pixels on each side.")
    fill: float = Field(0.0, description="Value of the padding, in preprocessed numbers.")


class ResizedCrop(_Ranges):
    """Cuts a random rectangle out of an image and stretches it to the size of the whole."""

    scale: tuple[Share, Share] = Field((0.08, 1.0), description="Least and largest share of the image's area.")
    ratio: tuple[Ratio, Ratio] = Field((3 / 4, 4 / 3), description=_RATIO)


class Erasing(_Ranges):
    """Overwrites a random rectangle of an image. Zhong et al. 2017, arXiv:1708.04896."""

    p: Share = Field(0.5, description="Share of the samples.")
    scale: tuple[Share, Share] = Field((0.02, 0.33), description="Least and largest share of the image's area.")
    ratio: tuple[Ratio, Ratio] = Field((0.3, 3.3), description=_RATIO)
    value: float = Field(0.0, description="What is written, in preprocessed numbers.")


class ColorJitter(Spec):
    """Multiplies brightness, contrast and saturation by factors between 1 − strength (at least 0) and 1 + strength."""

    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = Field(0.4, description="Of images with three channels; grey ones have none.")

    @model_validator(mode="after")
    def _changes_something(self) -> ColorJitter:
        if not (self.brightness or self.contrast or self.saturation):
            self._refuse({"brightness": "is 0 like all others, which changes nothing: leave out `color_jitter`"})
        return self


class Mixup(Spec):
    """Blends each sample of a batch with another one, and their losses alike. Zhang et al. 2017, arXiv:1710.09412."""

    alpha: float = Field(1.0, gt=0, le=100, description="The share of the first is drawn from Beta(alpha, alpha).")
    p: Share = Field(1.0, description="Share of the batches.")


class Cutmix(Spec):
    """Pastes a rectangle of another image into each image of a batch. Yun et al. 2019, arXiv:1905.04899."""

    alpha: float = Field(1.0, gt=0, le=100, description="The area left of the first is drawn from Beta(alpha, alpha).")
    p: Share = Field(1.0, description="Share of the batches.")


class TokenDropout(Spec):
    """Replaces single tokens, of the first input of token ids; padding of texts stays."""

    p: float = Field(0.1, gt=0, lt=1, description="Share of the tokens.")
    id: int = Field(0, ge=0, lt=1 << 31, description="The token id that stands in their place.")


class Augment(Spec):
    """Random changes of training samples, in the order of these fields. Each is anew for every epoch and sample.

    Images are inputs (N, C, H, W) after `preprocess`; all images of one sample change alike. Where labels lie over the
    image, as masks (N, H, W) do, flips and crops move them too.
    """

    horizontal_flip: Flip | None = None
    vertical_flip: Flip | None = None
    crop: Crop | None = None
    resized_crop: ResizedCrop | None = None
    color_jitter: ColorJitter | None = None
    erasing: Erasing | None = None
    mixup: Mixup | None = Field(None, description="Beside `cutmix`, each batch gets one of the two.")
    cutmix: Cutmix | None = None
    token_dropout: TokenDropout | None = None

    @property
    def mixes(self) -> bool:
        """Whether samples of a batch are mixed with each other."""
        return self.mixup is not None or self.cutmix is not None

    @model_validator(mode="after")
    def _names_something(self) -> Augment:
        if not any(getattr(self, name) for name in type(self).model_fields):
            self._refuse(
                {"horizontal_flip": "is missing, like every other change: name one, such as {}, or leave out `augment`"}
            )
        return self
