"""Logits, losses and gradients match two independent implementations."""

from pathlib import Path

import foreign_checkpoints as foreign
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.data.transforms import normalize
from pspexp.inference import Slide
from pspexp.models.pspnet import PSPNet, pspnet
from pspexp.models.weights import load_weights

SEMSEG = "semseg_pspnet50_21c_97"
MMSEG = "mmseg_pspnet_r50d8_21c_96x128"
SLIDE = "semseg_slide_21c_131x160"
LOGITS = {torch.float32: 1e-4, torch.float64: 1e-5}  # maximum relative error


@pytest.fixture(scope="module")
def semseg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("semseg") / "train_epoch_100.pth"
    state = {f"module.{key}": value for key, value in foreign.semseg_state().items()}
    torch.save({"epoch": 100, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def semseg_model(file: Path, dtype: torch.dtype) -> tuple[PSPNet, dict[str, str]]:
    model = pspnet(num_classes=21, dropout=0.0)
    return model.to(dtype), load_weights(model, file)


@torch.inference_mode()
def eval_error(model: PSPNet, name: str, dtype: torch.dtype) -> float:
    _, images = foreign.images(name)
    logits = model.eval()(images.to(dtype))["out"][:, :, ::4, ::4]
    return foreign.relative_error(logits, foreign.golden(name)["eval_logits_stride4"])


@pytest.mark.parametrize("dtype", LOGITS)
def test_logits_match_semseg(semseg_file: Path, dtype: torch.dtype) -> None:
    model, _ = semseg_model(semseg_file, dtype)
    error = eval_error(model, SEMSEG, dtype)
    print(f"relative error {error:.1e}")  # shown by pytest -s
    assert error < LOGITS[dtype]


@pytest.mark.parametrize("dtype", LOGITS)
def test_logits_match_mmsegmentation(tmp_path: Path, dtype: torch.dtype) -> None:
    file = tmp_path / "pspnet_r50-d8.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": foreign.mmseg_state()}, file)
    model = pspnet(num_classes=21, backbone="resnet50c", contract_dilation=True, align_corners=False)
    names = load_weights(model.to(dtype), file)
    assert sorted(names) == sorted(foreign.golden(MMSEG)["keys"])
    error = eval_error(model, MMSEG, dtype)
    print(f"relative error {error:.1e}")  # shown by pytest -s
    assert error < LOGITS[dtype]


class Tempered(nn.Module):
    """Divides the logits by the temperature of the golden numbers: those of generated weights are huge."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.model(images)["out"] / float(foreign.golden(SLIDE)["temperature"])}


@pytest.mark.parametrize(("name", "scales"), [("single", [1.0]), ("multi", [0.5, 0.75, 1.0, 1.25, 1.5, 1.75])])
def test_sliding_windows_match_semseg(semseg_file: Path, name: str, scales: list[float]) -> None:
    golden = foreign.golden(SLIDE)
    model, _ = semseg_model(semseg_file, torch.float32)
    images = torch.from_numpy(golden["image"]).permute(2, 0, 1)[None]
    images = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    slide = Slide(window=int(golden["crop"]), scales=scales, flip=True, base_size=int(golden["base"]))
    with torch.inference_mode():
        found = slide.probabilities(Tempered(model).eval(), images)[0]
    error = foreign.relative_error(found[:, ::4, ::4].permute(1, 2, 0), golden[name])
    print(f"relative error {error:.1e}")  # shown by pytest -s
    assert error < 1e-5
    assert np.array_equal(found.argmax(0).numpy(), golden[f"{name}_ids"])


def training_batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rng, images = foreign.images(SEMSEG)
    shape = (images.shape[0], *images.shape[2:])
    labels = rng.integers(0, foreign.CLASSES, shape)
    labels[rng.random(shape) < 0.1] = 255
    return images.to(dtype), torch.from_numpy(labels)


def losses(model: PSPNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model(images)
    main, aux = (F.cross_entropy(outputs[name], labels, ignore_index=255) for name in ("out", "aux"))
    return main, aux


def test_first_float32_losses_match_semseg(semseg_file: Path) -> None:
    model, _ = semseg_model(semseg_file, torch.float32)
    with torch.no_grad():
        main, aux = losses(model.train(), *training_batch(torch.float32))
    file = foreign.golden(SEMSEG)
    errors = [
        foreign.relative_error(np.array([loss]), file[f"train_{name}_loss"][:1])
        for name, loss in (("main", float(main)), ("aux", float(aux)))
    ]
    print(f"relative errors {errors}")
    assert max(errors) < 1e-5


@pytest.mark.slow
def test_three_float64_training_steps_match_semseg(semseg_file: Path) -> None:
    model, names = semseg_model(semseg_file, torch.float64)
    batch = training_batch(torch.float64)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    history = []
    for step in range(3):
        main, aux = losses(model, *batch)
        optimizer.zero_grad()
        (0.6 * main + 0.4 * aux).backward()
        if step == 0:
            norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        history.append((main.item(), aux.item()))

    file = foreign.golden(SEMSEG)
    expected = np.stack([file["train_main_loss"], file["train_aux_loss"]], 1)
    loss_error = float(np.abs(np.array(history) / expected - 1).max())
    assert len(norms) == len(file["grad_names"])
    ours = np.array([norms[names[f"module.{theirs}"]] for theirs in file["grad_names"]])
    gradient_error = float(np.abs(ours / file["grad_norms"] - 1).max())
    print(f"relative errors: losses {loss_error:.1e}, gradient norms {gradient_error:.1e}")
    assert loss_error < 1e-6
    assert gradient_error < 1e-6
