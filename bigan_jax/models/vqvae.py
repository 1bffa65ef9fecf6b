"""VQ-VAE: an autoencoder whose code is a map of entries of a learned codebook.

Van den Oord et al. 2017, Sec. 3; architecture, loss weights and codebook follow sonnet's vqvae.py
(VectorQuantizerEMA) and its CIFAR-10 example. The sigmoid at the end is an addition.

Reduction, as in sonnet: the squared error is averaged over pixels, channels and the batch and divided by
`data_variance`; the commitment loss is averaged over the batch, positions and dimensions of the code.

658,625 parameters at 128x128x1, and a codebook of 512 vectors of 64 numbers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BATCH_AXIS, Downsample, Upsample
from bigan_jax.nn.convolutions import conv1x1, conv3x3
from bigan_jax.value_checks import COUNT, DECAY, POSITIVE, POSITIVE_INTEGER

FIELD_RANGES = {
    **dict.fromkeys(("widths", "residual_width", "latent", "codes"), POSITIVE_INTEGER),
    **dict.fromkeys(("epsilon", "data_variance"), POSITIVE),
    "residual_layers": COUNT,
    "decay": DECAY,
}

# An entry is dead when the moving average of its uses per step is below this: it was never used, or, at a decay of
# 0.99, not for 460 steps since it was reset or was used once a step.
DEAD_BELOW = 0.01


class Quantized(NamedTuple):
    """The quantized output of the encoder."""

    code: Float[Array, "b h w d"]  # nearest codebook vectors, with a straight-through gradient to the encoder
    commitment: Float[Array, ""]  # mean squared distance of the encoder's output from these vectors
    perplexity: Float[Array, ""]  # of the use of entries in the batch on all devices, from 1 to their number
    dead: Float[Array, ""]  # number of entries that are hardly used


class Codebook(nn.Module):
    """A codebook updated by moving averages of the encoder's outputs (van den Oord, Appendix A.1).

    As in sonnet, the averages start at 0 and are debiased, so an entry that the first batch does not use moves to the
    origin. All values are float32 and, in training, cover all devices.
    """

    size: int  # number of entries
    decay: float  # of the moving averages of each entry's uses and of the sum of its assigned outputs
    epsilon: float  # added to each count of uses (Laplace smoothing)
    reseed_dead: bool  # whether dead entries are set to random outputs of the batch

    @nn.compact
    def __call__(self, outputs: Float[Array, "b h w d"], keys: Key[Array, "b"], train: bool) -> Quantized:
        depth = outputs.shape[-1]
        vectors = self.variable("codebook", "vectors", self._initial, depth)
        uses = self.variable("codebook", "uses", jnp.zeros, self.size)
        sums = self.variable("codebook", "sums", jnp.zeros, (self.size, depth))
        weight = self.variable("codebook", "weight", jnp.zeros, ())

        flat = lax.stop_gradient(outputs).reshape(-1, depth)
        indices = nearest(flat, vectors.value)
        quantized = vectors.value[indices].reshape(outputs.shape)
        assigned = jax.nn.one_hot(indices, self.size)
        batch_uses = assigned.sum(0)

        if train:
            batch_uses = lax.psum(batch_uses, BATCH_AXIS)
            # The moving average of 1, which is 1 - decay ** step, debiases the others.
            weight.value = self.decay * weight.value + 1 - self.decay
            rate = (1 - self.decay) / weight.value
            batch_sums = lax.psum(jnp.matmul(assigned.T, flat, precision="highest"), BATCH_AXIS)
            uses.value += rate * (batch_uses - uses.value)
            sums.value += rate * (batch_sums - sums.value)
        dead = uses.value < DEAD_BELOW
        if train:
            if self.reseed_dead:
                resets = draw_outputs(keys, flat.reshape(len(outputs), -1, depth), self.size)
                uses.value = jnp.where(dead, 1.0, uses.value)
                sums.value = jnp.where(dead[:, None], resets, sums.value)
            total = uses.value.sum()
            smoothed = (uses.value + self.epsilon) / (total + self.size * self.epsilon) * total
            vectors.value = sums.value / smoothed[:, None]

        return Quantized(
            code=outputs + lax.stop_gradient(quantized - outputs),
            commitment=jnp.square(outputs - quantized).mean(),
            perplexity=perplexity(batch_uses),
            dead=dead.sum().astype(jnp.float32),
        )

    def _initial(self, depth):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        return init(self.make_rng("params"), (depth, self.size)).T


class ResidualStack(nn.Module):
    """Residual blocks of ReLU, 3x3 convolution, ReLU and 1x1 convolution; a ReLU at the end."""

    layers: int
    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for _ in range(self.layers):
            y = conv3x3(self.width, self.dtype)(nn.relu(x))
            x = x + conv1x1(x.shape[-1], self.dtype)(nn.relu(y))
        return nn.relu(x)


class QuantizingEncoder(nn.Module):
    """Encodes images: a strided convolution per width, 3x3, residual blocks, 1x1, codebook."""

    widths: tuple[int, ...]
    residual_layers: int
    residual_width: int
    latent: int
    codebook: Codebook
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], keys: Key[Array, "b"], train: bool) -> Quantized:
        x = image
        for width in self.widths:
            x = nn.relu(Downsample(width, dtype=self.dtype)(x))
        x = nn.relu(conv3x3(self.widths[-1], self.dtype)(x))
        x = ResidualStack(self.residual_layers, self.residual_width, dtype=self.dtype)(x)
        x = conv1x1(self.latent, self.dtype)(x)
        return self.codebook(x.astype(jnp.float32), keys, train)


class Decoder(nn.Module):
    """Decodes codes to images in [0, 1]; mirrors the encoder."""

    channels: int
    widths: tuple[int, ...]
    residual_layers: int
    residual_width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "b h w d"], train: bool) -> Float[Array, "b H W c"]:
        x = conv3x3(self.widths[0], self.dtype)(code)
        x = ResidualStack(self.residual_layers, self.residual_width, dtype=self.dtype)(x)
        for width in self.widths[1:]:
            x = nn.relu(Upsample(width, dtype=self.dtype)(x))
        x = Upsample(self.channels, dtype=self.dtype)(x)
        return nn.sigmoid(x.astype(jnp.float32))


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    widths: tuple[int, ...] = (64, 128),
    residual_layers: int = 2,
    residual_width: int = 32,
    latent: int = 64,
    codes: int = 512,
    decay: float = 0.99,
    epsilon: float = 1e-5,
    commitment: float = 0.25,
    data_variance: float = 0.06,
    reseed_dead: bool = False,
) -> Detector:
    """Creates encoder, codebook and decoder, trained on the squared error and commitment loss.

    Args:
      dtype: of the computations outside of the codebook.
      widths: channels of the encoder's strided convolutions; the decoder has them in reverse.
      residual_layers: number of residual blocks in the encoder, and in the decoder.
      residual_width: channels of their 3x3 convolutions.
      latent: length of the codebook's vectors.
      codes: number of the codebook's vectors.
      decay, epsilon, reseed_dead: see `Codebook`.
      commitment: weight of the loss that pulls the encoder's outputs to their vectors.
      data_variance: variance of the pixels, by which the squared error is divided. 0.06 is sonnet's value for
        CIFAR-10; gray images in [0, 1] have about the same.
    """
    codebook = Codebook(codes, decay, epsilon, reseed_dead)
    residual = (residual_layers, residual_width)
    networks = {
        "encoder": QuantizingEncoder(tuple(widths), *residual, latent, codebook, dtype=dtype),
        "decoder": Decoder(shape[-1], tuple(widths[::-1]), *residual, dtype=dtype),
    }

    def reconstruct(net, batch, keys):
        return net("decoder", net("encoder", batch.image, keys).code)

    def reconstruction_loss(net, batch, keys):
        quantized = net("encoder", batch.image, keys)
        images = net("decoder", quantized.code)
        mse = losses.mse(batch.image, images).mean()
        logs = {
            "mse": mse,
            "commitment": quantized.commitment,
            "perplexity": quantized.perplexity,
            "dead_codes": quantized.dead,
            "live_codes": codes - quantized.dead,
        }
        logs |= losses.spread_logs(net.train, batch.image, reconstruction=images)
        return mse / data_variance + commitment * quantized.commitment, logs

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )


def nearest(outputs: Float[Array, "n d"], vectors: Float[Array, "k d"]) -> Int[Array, "n"]:
    """Returns the index of the nearest vector of each output, the first one of equals."""
    products = jnp.matmul(outputs, vectors.T, precision="highest")
    return (jnp.square(vectors).sum(-1) - 2 * products).argmin(-1)


def perplexity(uses: Float[Array, "k"]) -> Float[Array, ""]:
    """Returns exp of the entropy of the use of entries: from 1 to k, which is even use."""
    return jnp.exp(jax.scipy.special.entr(uses / uses.sum()).sum())


def draw_outputs(keys: Key[Array, "b"], outputs: Float[Array, "b n d"], count: int) -> Float[Array, "count d"]:
    """Draws `count` random outputs of the batch on all devices, the same ones on each of them.

    For each draw every image proposes one of its outputs with a random priority, and the proposal of the highest
    priority is taken.
    """

    def propose(key, image_outputs):
        priority_key, index_key = jax.random.split(key)
        index = jax.random.randint(index_key, (count,), 0, len(image_outputs))
        return jax.random.uniform(priority_key, (count,)), image_outputs[index]

    priorities, proposals = jax.vmap(propose)(keys, outputs)  # [b, count], [b, count, d]
    selected = priorities == lax.pmax(priorities.max(0), BATCH_AXIS)
    n_selected = lax.psum(selected.sum(0), BATCH_AXIS)  # above 1 only for equal priorities
    total = lax.psum(jnp.where(selected[..., None], proposals, 0).sum(0), BATCH_AXIS)
    return total / n_selected[:, None]
