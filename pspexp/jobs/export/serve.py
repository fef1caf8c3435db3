"""The model that MLflow stores and serves: its code, not a pickle, beside an ONNX file.

It maps a column ``image`` of PNG, JPEG or other image files in base64 to palette PNGs of their class ids in base64.
MLflow runs this file itself; it needs ONNX Runtime, NumPy and Pillow.
"""

import base64
import binascii
import io
import json
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pspexp.data import images, masks
from pspexp.data.dataset import DatasetInfo
from pspexp.errors import UserError

MIN_SIDE = 2  # pixels; nothing smaller can be meant


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

    # MLflow would take annotations for a signature of its own.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A PNG in base64 for each image.

        Raises:
            MlflowException: One of them is not an image in base64; the server answers with status 400.
        """
        return [self._mask(index, text) for index, text in enumerate(model_input["image"])]

    def _mask(self, index: int, text: str) -> str:
        name = f"image {index}"
        try:
            content = base64.b64decode(text, validate=True)
            image = images.read_image(io.BytesIO(content), self._info.max_image_pixels, name=name)
        except binascii.Error as error:
            raise MlflowException.invalid_parameter_value(f"{name}: is not base64 ({error})") from error
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        if min(image.size) < MIN_SIDE:
            raise MlflowException.invalid_parameter_value(
                f"{name}: {image.width}×{image.height} pixels; must be at least {MIN_SIDE}×{MIN_SIDE}"
            )
        ids, _ = self._session.run(None, {"image": np.asarray(image)[None]})
        file = io.BytesIO()
        masks.palette_image(ids[0], self._info).save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()


set_model(ServedModel())
