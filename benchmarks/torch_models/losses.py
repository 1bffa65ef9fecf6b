"""Image errors in PyTorch: the terms of the losses and of the score."""

import torch
import torch.nn.functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def mse(x, y):
    """The mean squared error of each image."""
    return (x - y).square().mean((1, 2, 3))


def ssim(x, y):
    """SSIM of each image with values in [0, 1], over windows that lie inside the image."""
    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    var_x = (xx - mu_x * mu_x).clamp_min(1e-14)
    var_y = (yy - mu_y * mu_y).clamp_min(1e-14)
    limit = (var_x * var_y).sqrt()
    covariance = torch.minimum(torch.maximum(xy - mu_x * mu_y, -limit), limit)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(maps):
    """Applies the Gaussian window to each map, as two one-dimensional convolutions."""
    offsets = torch.arange(SSIM_WINDOW, device=maps.device, dtype=maps.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    planes = F.conv2d(planes, window.view(1, 1, -1, 1))
    planes = F.conv2d(planes, window.view(1, 1, 1, -1))
    return planes.reshape(*maps.shape[:-2], *planes.shape[-2:])


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def score(x, y):
    """The common score of each image: 0.7 MSE + 0.3 (1 - SSIM)."""
    return 0.7 * mse(x, y) + 0.3 * (1 - ssim(x, y))
