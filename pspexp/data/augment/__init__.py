"""Augmentation: random changes to a training image and its label, and pipelines of other libraries.

An augmentation is a callable ``(image, label, rng) -> (image, label)`` whose only source of randomness is ``rng``.
Labels are resampled with nearest-neighbour interpolation: anything else would invent class ids. If it has an attribute
``mixing`` that is not None, the loader mixes its results; see `pspexp.data.augment.mixing.Mixing`.
"""
