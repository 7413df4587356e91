"""Typed keywords of samples that change at random in training."""

from typing import TypedDict


class FlipFields(TypedDict, total=False):
    """Mirrors an image."""

    p: float
    """Share of the samples; 0.5 by default."""


class CropFields(TypedDict, total=False):
    """Pads an image, and cuts one of its former size out of it at a random place."""

    padding: int
    """Pixels on each side; 4 by default."""
    fill: float
    """Value of the padding; 0 by default."""


class ResizedCropFields(TypedDict, total=False):
    """Stretches a random rectangle of an image to the size of the whole."""

    scale: tuple[float, float]
    """Least and largest share of the image's area; (0.08, 1) by default."""
    ratio: tuple[float, float]
    """Least and largest width as a multiple of the height; (3/4, 4/3) by default."""


class ErasingFields(TypedDict, total=False):
    """Overwrites a random rectangle of an image."""

    p: float
    """Share of the samples; 0.5 by default."""
    scale: tuple[float, float]
    """Least and largest share of the image's area; (0.02, 0.33) by default."""
    ratio: tuple[float, float]
    """Least and largest width as a multiple of the height; (0.3, 3.3) by default."""
    value: float
    """What is written; 0 by default."""


class ColorJitterFields(TypedDict, total=False):
    """Multiplies each by a factor between 1 − strength and 1 + strength."""

    brightness: float
    """Strength; 0.4 by default."""
    contrast: float
    """Strength; 0.4 by default."""
    saturation: float
    """Strength, for images with three channels; 0.4 by default."""


class MixupFields(TypedDict, total=False):
    """Blends each sample of a batch with another one, and their losses alike."""

    alpha: float
    """The share of the first is drawn from Beta(alpha, alpha); 1 by default."""
    p: float
    """Share of the batches; all by default."""


class CutmixFields(TypedDict, total=False):
    """Pastes a rectangle of another image into each image of a batch."""

    alpha: float
    """The area left of the first is drawn from Beta(alpha, alpha); 1 by default."""
    p: float
    """Share of the batches; all by default."""


class TokenDropoutFields(TypedDict, total=False):
    """Replaces single tokens."""

    p: float
    """Share of the tokens; 0.1 by default."""
    id: int
    """The token id that stands in their place; 0 by default."""


class AugmentFields(TypedDict, total=False):
    """Random changes of training samples, at least one; an empty dict stands for the usual numbers of a change."""

    horizontal_flip: FlipFields | None
    """Mirror images left to right."""
    vertical_flip: FlipFields | None
    """Mirror images upside down."""
    crop: CropFields | None
    """Shift images by some pixels."""
    resized_crop: ResizedCropFields | None
    """Enlarge a part of each image."""
    color_jitter: ColorJitterFields | None
    """Change brightness, contrast and saturation."""
    erasing: ErasingFields | None
    """Overwrite a part of images."""
    mixup: MixupFields | None
    """Blend samples; beside `cutmix`, each batch gets one of the two."""
    cutmix: CutmixFields | None
    """Paste parts of images into others."""
    token_dropout: TokenDropoutFields | None
    """Replace tokens by one that says nothing."""
