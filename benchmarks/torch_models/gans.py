"""The GANs in PyTorch. `trained_networks` maps each loss to the networks that it trains.

The trainer turns off gradients of all other networks, so that the loss of a discriminator keeps
nothing of the generator pass.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_models.layers import (
    VGG16,
    ConvDecoder,
    ConvEncoder,
    DCGANEncoder,
    DCGANGenerator,
    JointDiscriminator,
)
from benchmarks.torch_models.losses import bce, ssim


def signed(x):
    return 2 * x - 1


def uniform(*size, device):
    return torch.empty(*size, device=device).uniform_(-1, 1)


class AnoGAN(nn.Module):
    trained_networks: ClassVar = {"discriminator": ("discriminator",), "generator": ("generator",)}
    draw = staticmethod(uniform)

    def __init__(
        self, shape, conditions, *, latent, widths, search_steps, search_rate, search_b1, feature_weight, restarts
    ):
        super().__init__()
        if restarts != 1:
            raise NotImplementedError("restarts is not implemented in the PyTorch AnoGAN")
        self.latent, self.feature_weight = latent, feature_weight
        self.search_adam = {"lr": search_rate, "betas": (search_b1, 0.999)}
        self.generator = DCGANGenerator(shape, latent, widths[::-1])
        self.discriminator = DCGANEncoder(shape, 1, widths)

    def logits(self, images):
        return self.discriminator(images)[0].squeeze(1).float()

    def discriminator_loss(self, x, condition, noise):
        return bce(self.logits(signed(x)), 1.0) + bce(self.logits(self.generator(noise)), 0.0)

    def generator_loss(self, x, condition, noise):
        return bce(self.logits(self.generator(noise)), 1.0)

    def distance(self, codes, x, features):
        """The distance of each generated image from x, in pixels and discriminator features."""
        images = self.generator(codes)
        residual = (x - images).abs().sum((1, 2, 3))
        difference = (features - self.discriminator(images)[1]).abs().sum((1, 2, 3))
        return (1 - self.feature_weight) * residual + self.feature_weight * difference

    def search(self, x, codes, steps):
        """The codes after `steps` steps of Adam, in evaluation mode with frozen weights."""
        codes = codes.clone().requires_grad_()
        adam = torch.optim.Adam([codes], **self.search_adam, fused=True)
        with torch.no_grad():
            x = signed(x)
            features = self.discriminator(x)[1]
        for _ in range(steps):
            adam.zero_grad()
            self.distance(codes, x, features).sum().backward()
            adam.step()
        return codes.detach()


class GANomaly(nn.Module):
    trained_networks: ClassVar = {
        "generator": ("encoder", "generator", "second_encoder"),
        "discriminator": ("discriminator",),
    }

    def __init__(self, shape, conditions, *, latent, width, adversarial_weight, reconstruction_weight, code_weight):
        super().__init__()
        widths = tuple(width << i for i in range((shape[0] // 4).bit_length() - 1))
        self.weights = adversarial_weight, reconstruction_weight, code_weight
        self.encoder = DCGANEncoder(shape, latent, widths, bias=False)
        self.generator = DCGANGenerator(shape, latent, widths[::-1], bias=False)
        self.second_encoder = DCGANEncoder(shape, latent, widths, bias=False)
        self.discriminator = DCGANEncoder(shape, 1, widths, bias=False)

    def generator_loss(self, x, condition, noise):
        x = signed(x)
        code, _ = self.encoder(x)
        reconstruction = self.generator(code)
        second_code, _ = self.second_encoder(reconstruction)
        with torch.no_grad():
            _, features = self.discriminator(x)
        _, fake_features = self.discriminator(reconstruction)
        terms = F.mse_loss(fake_features, features), F.l1_loss(reconstruction, x)
        terms = *terms, F.mse_loss(code, second_code)
        return sum(weight * term for weight, term in zip(self.weights, terms, strict=True))

    def discriminator_loss(self, x, condition, noise):
        x = signed(x)
        reconstruction = self.generator(self.encoder(x)[0])
        real, fake = (self.discriminator(p)[0].squeeze(1).float() for p in (x, reconstruction))
        return bce(real, 1.0) + bce(fake, 0.0)

    def reconstruct(self, x, condition):
        return (self.generator(self.encoder(signed(x))[0]) + 1) / 2


class BiGAN(nn.Module):
    trained_networks: ClassVar = {"discriminator": ("discriminator",), "adversarial": ("encoder", "generator")}
    draw = staticmethod(torch.randn)

    def __init__(
        self,
        shape,
        conditions,
        *,
        latent,
        widths,
        discriminator_widths,
        discriminator_hidden,
        discriminator_dropout,
        feature_weight,
        averaging,
    ):
        super().__init__()
        self.latent, self.averaging = latent, averaging
        self.encoder = ConvEncoder(shape, latent, widths)
        self.generator = ConvDecoder(shape, latent, widths[-1], widths[-2::-1])
        self.discriminator = JointDiscriminator(
            shape, latent, discriminator_widths, discriminator_hidden, discriminator_dropout
        )

    def logits(self, x, noise):
        real = self.discriminator(x, self.encoder(x))
        return real.float(), self.discriminator(self.generator(noise), noise).float()

    def discriminator_loss(self, x, condition, noise):
        real, fake = self.logits(x, noise)
        return bce(real, 1.0) + bce(fake, 0.0)

    def adversarial_loss(self, x, condition, noise):
        real, fake = self.logits(x, noise)
        return bce(real, 0.0) + bce(fake, 1.0)

    def reconstruct(self, x, condition):
        return self.generator(self.encoder(x))


class ImprovedBiGAN(nn.Module):
    trained_networks: ClassVar = {
        "discriminator": ("discriminator",),
        "adversarial": ("encoder", "generator"),
        "reconstruction": ("encoder", "generator"),
    }
    draw = staticmethod(torch.randn)

    def __init__(
        self,
        shape,
        conditions,
        *,
        latent,
        widths,
        discriminator_widths,
        discriminator_hidden,
        se_ratio,
        residual,
        pool,
        perceptual_layers,
        unit_features,
        reconstruction_terms,
        adversarial_weight,
        reconstruction_weight,
    ):
        super().__init__()
        self.latent = latent
        self.terms = {name: weight for name, weight in reconstruction_terms.items() if weight}
        self.weights = adversarial_weight, reconstruction_weight
        self.encoder = ConvEncoder(shape, latent, widths, se_ratio, pool)
        halves = tuple(width // 2 for width in widths[::-1])
        self.generator = ConvDecoder(shape, latent, widths[-1], halves, se_ratio, residual, last="conv")
        self.discriminator = JointDiscriminator(shape, latent, discriminator_widths, discriminator_hidden)
        if "perceptual" in self.terms:
            self.vgg16 = VGG16(perceptual_layers, unit_features)

    def composite(self, x, y):
        errors = {"mse": F.mse_loss, "mae": F.l1_loss, "perceptual": self.perceptual}
        errors["ssim"] = lambda y, x: 1 - ssim(x, y).mean()
        return sum(weight * errors[name](y, x) for name, weight in self.terms.items())

    def perceptual(self, y, x):
        with torch.no_grad():
            target = self.vgg16(x)
        pairs = zip(self.vgg16(y), target, strict=True)
        return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in pairs]).mean()

    def reconstruct(self, x, condition):
        return self.generator(self.encoder(x))

    def reconstruction_loss(self, x, condition, noise):
        return self.composite(x, self.reconstruct(x, condition).float())

    def discriminator_loss(self, x, condition, noise):
        real = self.discriminator(x, self.encoder(x)).float()
        fake = self.discriminator(self.generator(noise), noise).float()
        return bce(real, 1.0) + bce(fake, 0.0)

    def adversarial_loss(self, x, condition, noise):
        code = self.encoder(x)
        generated = self.generator(noise)
        real = self.discriminator(x, code).float()
        fake = self.discriminator(generated, noise).float()
        adversarial, reconstruction = self.weights
        loss = adversarial * (bce(real, 0.0) + bce(fake, 1.0))
        if reconstruction and self.terms:
            loss = loss + reconstruction * self.composite(x, self.generator(code).float())
        return loss
