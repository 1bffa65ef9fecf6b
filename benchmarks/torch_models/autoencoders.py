"""The autoencoders in PyTorch. `trained_networks` maps each loss to the networks that it trains."""

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_models.layers import ConvDecoder, ConvEncoder, dense_stack, down, up


class FCAE(nn.Module):
    trained_networks: ClassVar = {"reconstruction": ("encoder", "decoder")}

    def __init__(self, shape, conditions, *, hidden):
        super().__init__()
        self.encoder = dense_stack(math.prod(shape), hidden)
        self.decoder = dense_stack(hidden[-1], (*hidden[-2::-1], math.prod(shape)))

    def reconstruct(self, x, condition):
        return self.decoder(self.encoder(x.flatten(1))).sigmoid().view_as(x)

    def reconstruction_loss(self, x, condition, noise):
        return F.mse_loss(self.reconstruct(x, condition), x)


class CAE(nn.Module):
    trained_networks: ClassVar = {"reconstruction": ("encoder", "decoder")}

    def __init__(self, shape, conditions, *, latent, widths):
        super().__init__()
        self.encoder = ConvEncoder(shape, latent, widths)
        self.decoder = ConvDecoder(shape, latent, widths[-1], widths[-2::-1])

    def reconstruct(self, x, condition):
        return self.decoder(self.encoder(x))

    def reconstruction_loss(self, x, condition, noise):
        return F.mse_loss(self.reconstruct(x, condition), x)


class VAE(nn.Module):
    trained_networks: ClassVar = {"elbo": ("encoder", "decoder")}
    draw = staticmethod(torch.randn)

    def __init__(self, shape, conditions, *, latent, widths, beta, conditional):
        super().__init__()
        self.latent, self.beta, self.pixels = latent, beta, math.prod(shape)
        self.conditions = conditions if conditional and conditions > 1 else 0
        *size, channels = shape
        self.encoder = ConvEncoder((*size, channels + self.conditions), 2 * latent, widths)
        self.decoder = ConvDecoder(shape, latent + self.conditions, widths[-1], widths[-2::-1])

    def encode(self, x, condition):
        if self.conditions:
            planes = self.one_hot(x, condition)[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], 1).contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.encoder(x).float().chunk(2, 1)
        return mean, 20 * torch.tanh(log_variance / 20)

    def decode(self, x, condition, code):
        if self.conditions:
            code = torch.cat([code, self.one_hot(x, condition)], 1)
        return self.decoder(code)

    def one_hot(self, x, condition):
        return F.one_hot(condition, self.conditions).to(x.dtype)

    def reconstruct(self, x, condition):
        return self.decode(x, condition, self.encode(x, condition)[0])

    def elbo_loss(self, x, condition, noise):
        mean, log_variance = self.encode(x, condition)
        code = mean + torch.exp(log_variance / 2) * noise
        error = F.mse_loss(self.decode(x, condition, code).float(), x)
        kl = 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).sum(1).mean()
        return self.pixels * error + self.beta * kl


class Codebook(nn.Module):
    """A codebook that follows the encoder outputs by debiased moving averages."""

    def __init__(self, size, depth, decay, epsilon):
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("vectors", torch.empty(size, depth))
        self.register_buffer("uses", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, depth))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, outputs):
        flat = outputs.detach().permute(0, 2, 3, 1).flatten(0, 2)
        squares = self.vectors.square().sum(1)
        nearest = torch.addmm(squares, flat, self.vectors.T, alpha=-2).argmin(1)
        quantized = self.vectors[nearest].view(*outputs.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        if self.training:
            self.update(flat, nearest)
        commitment = F.mse_loss(outputs, quantized)
        return outputs + (quantized - outputs).detach(), commitment

    @torch.no_grad()
    def update(self, flat, nearest):
        counts = torch.bincount(nearest, minlength=len(self.uses)).to(flat.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, nearest, flat)
        self.weight.mul_(self.decay).add_(1 - self.decay)
        rate = (1 - self.decay) / self.weight
        self.uses.lerp_(counts, rate)
        self.sums.lerp_(sums, rate)
        total = self.uses.sum()
        smoothed = (self.uses + self.epsilon) / (total + len(self.uses) * self.epsilon) * total
        torch.div(self.sums, smoothed[:, None], out=self.vectors)


class ResidualLayer(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.hidden = nn.Conv2d(channels, width, 3, padding=1)
        self.output = nn.Conv2d(width, channels, 1)

    def forward(self, x):
        return x + self.output(F.relu(self.hidden(F.relu(x))))


def residual_stack(channels, layers, width):
    return [*(ResidualLayer(channels, width) for _ in range(layers)), nn.ReLU()]


class VQEncoder(nn.Module):
    def __init__(self, channels, widths, latent, residual, codebook):
        super().__init__()
        self.body = nn.Sequential()
        for c, d in pairwise((channels, *widths)):
            self.body.extend([down(c, d, bias=True), nn.ReLU(inplace=True)])
        self.body.extend(
            [
                nn.Conv2d(widths[-1], widths[-1], 3, padding=1),
                nn.ReLU(),
                *residual_stack(widths[-1], *residual),
                nn.Conv2d(widths[-1], latent, 1),
            ]
        )
        self.codebook = codebook

    def forward(self, x):
        return self.codebook(self.body(x).float())


class VQVAE(nn.Module):
    trained_networks: ClassVar = {"reconstruction": ("encoder", "decoder")}

    def __init__(
        self,
        shape,
        conditions,
        *,
        widths,
        residual_layers,
        residual_width,
        latent,
        codes,
        decay,
        epsilon,
        commitment,
        data_variance,
        reseed_dead,
    ):
        super().__init__()
        if reseed_dead:
            raise NotImplementedError("reseed_dead is not implemented in the PyTorch VQ-VAE")
        self.commitment, self.data_variance = commitment, data_variance
        residual = residual_layers, residual_width
        codebook = Codebook(codes, latent, decay, epsilon)
        self.encoder = VQEncoder(shape[2], widths, latent, residual, codebook)
        reversed_widths = widths[::-1]
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, reversed_widths[0], 3, padding=1), *residual_stack(reversed_widths[0], *residual)
        )
        for c, d in pairwise(reversed_widths):
            self.decoder.extend([up(c, d, bias=True), nn.ReLU(inplace=True)])
        self.decoder.extend([up(reversed_widths[-1], shape[2], bias=True), nn.Sigmoid()])

    def reconstruct(self, x, condition):
        return self.decoder(self.encoder(x)[0])

    def reconstruction_loss(self, x, condition, noise):
        code, commitment = self.encoder(x)
        error = F.mse_loss(self.decoder(code).float(), x)
        return error / self.data_variance + self.commitment * commitment
