"""Errors between pictures in PyTorch: what the losses and the score are made of."""

import torch
import torch.nn.functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def mse(x, y):
    """Of each picture."""
    return (x - y).square().mean((1, 2, 3))


def ssim(x, y):
    """SSIM of each picture of a range of 1, over windows that lie wholly inside."""
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
    """The Gaussian window as two convolutions, rows then columns, each map by itself."""
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
    """The common score: 0.7 MSE + 0.3 (1 - SSIM), one number a picture."""
    return 0.7 * mse(x, y) + 0.3 * (1 - ssim(x, y))
