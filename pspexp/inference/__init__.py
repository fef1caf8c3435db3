"""How the network is applied to images of any size: whole, to the central square, or window by window."""

from pspexp.inference.base import Inference
from pspexp.inference.slide import Slide
from pspexp.inference.whole import CenterCrop, Whole

__all__ = ["CenterCrop", "Inference", "Slide", "Whole"]
