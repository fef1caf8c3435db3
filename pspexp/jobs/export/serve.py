"""The model that MLflow stores and serves: its code, not a pickle, beside an ONNX file.

It maps a column ``image`` of PNG, JPEG or other image files in base64 to palette PNGs of their class ids in base64.
MLflow runs this file itself; it needs ONNX Runtime, NumPy and Pillow.
"""

import base64
import io
import json
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image

from pspexp.data import images, masks
from pspexp.data.dataset import DatasetInfo
from pspexp.errors import UserError

MIN_SIDE = 2  # pixels; a smaller image is a placeholder
MAX_PIXELS = 16_000_000  # the network is applied to the whole image, in about 500 bytes per pixel


class ServedModel(PythonModel):
    """Answers with masks that equal those of ``mode=predict`` with the same ONNX file."""

    def load_context(self, context: Any) -> None:
        """Open the ONNX file."""
        import onnxruntime

        self._session = onnxruntime.InferenceSession(context.artifacts["network"], providers=["CPUExecutionProvider"])
        found = json.loads(self._session.get_modelmeta().custom_metadata_map["pspexp"])
        self._info = DatasetInfo(
            found["class_names"],
            found["ignore_index"],
            found["mean"],
            found["std"],
            np.array(found["palette"], np.uint8),
        )

    # MLflow would infer a signature from annotations.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A PNG in base64 for each image.

        Raises:
            MlflowException: One of them is not an image in base64; the server answers with status 400.
        """
        return [self._mask(index, text) for index, text in enumerate(model_input["image"])]

    def _mask(self, index: int, text: str) -> str:
        name = f"image {index}"
        try:
            content = io.BytesIO(base64.b64decode(text, validate=True))
            check_size(content, name)
            image = images.read_image(content, name=name)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        except (ValueError, TypeError) as error:
            raise MlflowException.invalid_parameter_value(f"{name}: is not base64 ({error})") from error
        ids, _ = self._session.run(None, {"image": np.asarray(image)[None]})
        file = io.BytesIO()
        masks.palette_image(ids[0], self._info).save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()


def check_size(content: io.BytesIO, name: str) -> None:
    """Raise UserError for an image that is too small or too large, before it is decoded."""
    try:
        with images.any_size():
            width, height = Image.open(content).size
    except images.BROKEN_IMAGE:  # reported when it is read
        return
    finally:
        content.seek(0)
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}×{height} pixels; must be at least {MIN_SIDE}×{MIN_SIDE} and at most {MAX_PIXELS:,} pixels"
        )


set_model(ServedModel())
