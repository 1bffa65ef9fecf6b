"""Building blocks in PyTorch; images are NCHW tensors in channels_last memory.

In that memory a map [b, c, h, w] flattens to h * w * c numbers without a copy and in the order of
the JAX networks, so that dense layers take the same weights. `load` relies on the definition of
layers in call order.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def down(channels, features, bias):
    return nn.Conv2d(channels, features, 4, stride=2, padding=1, bias=bias)


def up(channels, features, bias):
    return nn.ConvTranspose2d(channels, features, 4, stride=2, padding=1, bias=bias)


def leaky():
    return nn.LeakyReLU(0.2, inplace=True)


def flatten(x):
    return x.permute(0, 2, 3, 1).flatten(1)


def unflatten(x, height, width):
    return x.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // ratio))
        self.excite = nn.Linear(max(1, channels // ratio), channels)

    def forward(self, x):
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


def encoder_stage(channels, features, se_ratio=0, normalize=True):
    layers = [down(channels, features, bias=not normalize)]
    if normalize:
        layers.append(nn.BatchNorm2d(features))
    layers.append(leaky())
    if se_ratio:
        layers.append(SqueezeExcite(features, se_ratio))
    return nn.Sequential(*layers)


class DecoderStage(nn.Module):
    def __init__(self, channels, features, se_ratio, residual):
        super().__init__()
        self.body = nn.Sequential(up(channels, features, False), nn.BatchNorm2d(features), leaky())
        if se_ratio:
            self.body.append(SqueezeExcite(features, se_ratio))
        self.skip = nn.Conv2d(channels, features, 1, bias=False) if residual else None

    def forward(self, x):
        y = self.body(x)
        if self.skip is None:
            return y
        return y + F.interpolate(self.skip(x), scale_factor=2.0, mode="nearest")


class ConvEncoder(nn.Module):
    def __init__(self, shape, latent, widths, se_ratio=0, pool="flatten"):
        super().__init__()
        height, width, channels = shape
        pairs = pairwise((channels, *widths))
        self.stages = nn.Sequential(*(encoder_stage(c, d, se_ratio) for c, d in pairs))
        self.average = pool == "average"
        area = (height >> len(widths)) * (width >> len(widths))
        self.code = nn.Linear(widths[-1] * (1 if self.average else area), latent)

    def forward(self, x):
        x = self.stages(x)
        return self.code(x.mean((2, 3)) if self.average else flatten(x))


class ConvDecoder(nn.Module):
    def __init__(self, shape, latent, base, widths, se_ratio=0, residual=False, last="upsample"):
        super().__init__()
        height, width, channels = shape
        scale = len(widths) + (last == "upsample")
        self.small = height >> scale, width >> scale
        self.dense = nn.Linear(latent, self.small[0] * self.small[1] * base)
        self.start = nn.Sequential(nn.BatchNorm2d(base), leaky())
        pairs = pairwise((base, *widths))
        self.stages = nn.Sequential(*(DecoderStage(c, d, se_ratio, residual) for c, d in pairs))
        if last == "upsample":
            self.output = up(widths[-1], channels, bias=True)
        else:
            self.output = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, code):
        x = self.start(unflatten(self.dense(code), *self.small))
        return self.output(self.stages(x)).sigmoid()


class JointDiscriminator(nn.Module):
    def __init__(self, shape, latent, widths, hidden, dropout=0.0):
        super().__init__()
        height, width, channels = shape
        pairs = pairwise((channels, *widths))
        self.stages = nn.Sequential()
        for index, (c, d) in enumerate(pairs):
            self.stages.append(encoder_stage(c, d, normalize=index > 0))
            if dropout:
                self.stages.append(nn.Dropout(dropout))
        size = (height >> len(widths)) * (width >> len(widths)) * widths[-1]
        self.code_layer = nn.Linear(latent, hidden)
        self.joint = nn.Linear(size + hidden, hidden)
        self.logit = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, image, code):
        z = self.dropout(F.leaky_relu(self.code_layer(code), 0.2))
        joint = torch.cat([flatten(self.stages(image)), z], 1)
        return self.logit(self.dropout(F.leaky_relu(self.joint(joint), 0.2))).squeeze(1)


class DCGANEncoder(nn.Module):
    def __init__(self, shape, features, widths, bias=True):
        super().__init__()
        height, width, channels = shape
        self.stages = nn.Sequential()
        for index, (c, d) in enumerate(pairwise((channels, *widths))):
            self.stages.append(down(c, d, bias=bias and not index))
            if index:
                self.stages.append(nn.BatchNorm2d(d))
            self.stages.append(leaky())
        area = (height >> len(widths)) * (width >> len(widths))
        self.dense = nn.Linear(area * widths[-1], features, bias=bias)

    def forward(self, image):
        x = self.stages(image)
        return self.dense(flatten(x)), x


class DCGANGenerator(nn.Module):
    def __init__(self, shape, latent, widths, bias=True):
        super().__init__()
        self.small = shape[0] >> len(widths), shape[1] >> len(widths)
        self.dense = nn.Linear(latent, self.small[0] * self.small[1] * widths[0], bias=False)
        self.stages = nn.Sequential()
        for c, d in pairwise(widths):
            self.stages.extend([nn.BatchNorm2d(c), nn.ReLU(inplace=True), up(c, d, bias=False)])
        self.stages.extend([nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)])
        self.output = up(widths[-1], shape[2], bias=bias)

    def forward(self, code):
        return self.output(self.stages(unflatten(self.dense(code), *self.small))).tanh()


def dense_stack(inputs, widths):
    layers = nn.Sequential()
    for n, m in pairwise((inputs, *widths[:-1])):
        layers.extend([nn.Linear(n, m, bias=False), nn.BatchNorm1d(m), leaky()])
    return layers.append(nn.Linear((inputs, *widths)[-2], widths[-1]))


VGG_WIDTHS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)


class VGG16(nn.Module):
    """VGG16 activations after the listed ReLUs, for images in [0, 1].

    Args:
      layers: names of the ReLUs.
      unit: scale activations to a mean square of 1 over channels.
    """

    def __init__(self, layers, unit):
        super().__init__()
        self.unit = unit
        self.blocks = nn.ModuleDict()
        channels = 3
        for block, widths in enumerate(VGG_WIDTHS, 1):
            for index, width in enumerate(widths, 1):
                if set(layers) <= self.blocks.keys():
                    break
                pool = [nn.MaxPool2d(2)] if index == 1 and block > 1 else []
                conv = nn.Conv2d(channels, width, 3, padding=1)
                self.blocks[f"relu{block}_{index}"] = nn.Sequential(*pool, conv, nn.ReLU(inplace=True))
                channels = width
        self.layers = layers
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), False)

    def forward(self, image):
        x = (image - self.mean) / self.std  # a gray image becomes three channels here
        features = {}
        for name, block in self.blocks.items():
            x = block(x)
            features[name] = x
        selected = [features[name] for name in self.layers]
        return [unit_features(x.float()) for x in selected] if self.unit else selected


def unit_features(x):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3)
