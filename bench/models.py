"""The ResNet family of torchvision, seeded.

`resnet*` has the ImageNet stem (7×7 stride 2 and max-pool), `*_cifar` the
3×3 stride-1 stem without max-pool (He et al., arXiv 1512.03385, section 4.2).
torch is imported only when a model is built, so names can be checked without it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import Refused

if TYPE_CHECKING:
    from torch.nn import Module

# name -> torchvision's builder, stem
MODELS = {
    "resnet18": ("resnet18", "imagenet"),
    "resnet34": ("resnet34", "imagenet"),
    "resnet50": ("resnet50", "imagenet"),
    "resnet101": ("resnet101", "imagenet"),
    "resnet152": ("resnet152", "imagenet"),
    "resnet18_cifar": ("resnet18", "cifar"),
    "resnet50_cifar": ("resnet50", "cifar"),
}


# A case's memory format → torch's name for it.
LAYOUTS = {"channels_last": "channels_last", "contiguous": "contiguous_format"}


def describe() -> dict[str, str]:
    """Name -> one-line description."""
    stems = {
        "imagenet": "ImageNet stem (7x7 stride 2, max-pool)",
        "cifar": "CIFAR stem (3x3 stride 1, no max-pool)",
    }
    return {name: f"torchvision {base}, {stems[stem]}" for name, (base, stem) in MODELS.items()}


def refuses(name: str, weights: str) -> str | None:
    """Why these weights cannot be had for this model, or None."""
    if weights == "default" and MODELS[name][1] != "imagenet":
        return "torchvision has no weights for the CIFAR stem; use --weights random or a file"
    return None


def keeps_size(name: str) -> bool:
    """Whether the stem leaves images as wide as they are; the other makes a quarter of them."""
    return MODELS[name][1] == "cifar"


def last_side(name: str, image_size: int) -> int:
    """Side in pixels of the last feature map; 1 leaves BatchNorm one value per image."""
    halvings = 5 if MODELS[name][1] == "imagenet" else 3
    for _ in range(halvings):
        image_size = (image_size + 1) // 2
    return image_size


def build(name: str, weights: str, classes: int, seed: int) -> Module:
    """The model on the host in fp32: same seed, same weights, whatever happens to it next.

    `weights` is `random`, `default` (torchvision's, 1000 classes; the last layer
    stays random if `classes` differs) or the path of a state dict.
    Raises Refused if the weights cannot be had or do not fit.
    """
    import torch
    import torchvision

    base, stem = MODELS[name]
    torch.manual_seed(seed)
    model: Module = torchvision.models.get_model(base, weights=None, num_classes=classes)
    if stem == "cifar":
        model.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        torch.nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = torch.nn.Identity()
    if weights == "default":
        _load_default(model, base)
    elif weights != "random":
        _load_file(model, Path(weights))
    return model


def _load_default(model: Module, base: str) -> None:
    import torchvision

    try:
        state = torchvision.models.get_model_weights(base).DEFAULT.get_state_dict(
            progress=False, check_hash=True
        )
    except (OSError, RuntimeError) as error:
        raise Refused(
            f"torchvision's weights of {base} could not be downloaded ({error}); "
            "download them elsewhere and name the file with --weights FILE"
        ) from error
    own = model.state_dict()
    model.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in state.items()})


def _load_file(model: Module, path: Path) -> None:
    import pickle

    import torch

    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (
        OSError, EOFError, RuntimeError, pickle.UnpicklingError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        first = (str(error).strip() or "not a state dict").splitlines()[0][:200]
        raise Refused(f"the weights in {path.name} do not fit this model: {first}") from error


def weights_sha256(model: Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
