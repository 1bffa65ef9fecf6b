"""VQ-VAE: an autoencoder whose code is a map of entries of a learned codebook.

Van den Oord et al. 2017, Sec. 3; shape, weights and codebook after sonnet's vqvae.py
(VectorQuantizerEMA) and its CIFAR-10 example. Ours: the sigmoid at the end.

Reduction: squared error averaged over pixels, channels and batch and divided by `data_variance`;
commitment averaged over the batch, positions and dimensions of the code. As in sonnet.

658,625 parameters at 128x128x1, and beside them a codebook of 512 vectors of 64 numbers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BATCH_AXIS, Downsample, Upsample
from bigan_jax.nn.convolutions import conv1x1, conv3x3

# An entry is dead when its moving average of uses a step is below this: it was never used or, at a
# decay of 0.99, not for the 460 steps since it was re-seeded or used once a step.
DEAD_BELOW = 0.01


class Quantized(NamedTuple):
    """What the codebook makes of the encoder's output."""

    code: Float[Array, "b h w d"]  # nearest vectors; their gradient goes straight to the encoder
    commitment: Float[Array, ""]  # mean squared distance of the encoder's output from them
    perplexity: Float[Array, ""]  # of the entries' use in the batch on all devices; 1 to size
    dead: Float[Array, ""]  # entries that are hardly used any more


class Codebook(nn.Module):
    """Vectors that follow the encoder's outputs by moving averages (van den Oord, Appendix A.1).

    As in sonnet the averages start from nothing and are debiased, so that an entry which the first
    batch does not use falls to the origin. All is float32 and, in training, over all devices.

    size: number of entries.
    decay: of the moving averages of each entry's uses and of the sum of the outputs it stands for.
    epsilon: added to each count of uses (Laplace smoothing).
    reseed_dead: put each dead entry at a random output of the batch.
    """

    size: int
    decay: float
    epsilon: float
    reseed_dead: bool

    @nn.compact
    def __call__(
        self, outputs: Float[Array, "b h w d"], keys: Key[Array, "b"], train: bool
    ) -> Quantized:
        depth = outputs.shape[-1]
        vectors = self.variable("codebook", "vectors", self._initial, depth)
        uses = self.variable("codebook", "uses", jnp.zeros, self.size)
        sums = self.variable("codebook", "sums", jnp.zeros, (self.size, depth))
        weight = self.variable("codebook", "weight", jnp.zeros, ())

        flat = lax.stop_gradient(outputs).reshape(-1, depth)
        chosen = nearest(flat, vectors.value)
        nearby = vectors.value[chosen].reshape(outputs.shape)
        assigned = jax.nn.one_hot(chosen, self.size)
        now_used = over_devices(assigned.sum(0), train)

        if train:
            # The moving average of one: 1 - decay ** step, by which the others are debiased.
            weight.value = self.decay * weight.value + 1 - self.decay
            rate = (1 - self.decay) / weight.value
            now_sums = over_devices(jnp.matmul(assigned.T, flat, precision="highest"), train)
            uses.value += rate * (now_used - uses.value)
            sums.value += rate * (now_sums - sums.value)
        dead = uses.value < DEAD_BELOW
        if train:
            if self.reseed_dead:
                seeds = draw(keys, flat.reshape(len(outputs), -1, depth), self.size)
                uses.value = jnp.where(dead, 1.0, uses.value)
                sums.value = jnp.where(dead[:, None], seeds, sums.value)
            total = uses.value.sum()
            smoothed = (uses.value + self.epsilon) / (total + self.size * self.epsilon) * total
            vectors.value = sums.value / smoothed[:, None]

        return Quantized(
            code=outputs + lax.stop_gradient(nearby - outputs),
            commitment=jnp.square(outputs - nearby).mean(),
            perplexity=perplexity(now_used),
            dead=dead.sum().astype(jnp.float32),
        )

    def _initial(self, depth):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        return init(self.make_rng("params"), (depth, self.size)).T


class ResidualStack(nn.Module):
    """`layers` times ReLU, 3x3 convolution, ReLU, 1x1 convolution, Add; a ReLU at the end."""

    layers: int
    width: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for _ in range(self.layers):
            y = conv3x3(self.width, self.dtype)(nn.relu(x))
            x = x + conv1x1(x.shape[-1], self.dtype)(nn.relu(y))
        return nn.relu(x)


class QuantizingEncoder(nn.Module):
    """Picture to quantized code: a strided convolution a width, 3x3, residual layers, 1x1."""

    widths: tuple[int, ...]
    residual_layers: int
    residual_width: int
    latent: int
    codebook: Codebook
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], keys: Key[Array, "b"], train: bool
    ) -> Quantized:
        x = image
        for width in self.widths:
            x = nn.relu(Downsample(width, dtype=self.dtype)(x))
        x = nn.relu(conv3x3(self.widths[-1], self.dtype)(x))
        x = ResidualStack(self.residual_layers, self.residual_width, dtype=self.dtype)(x)
        x = conv1x1(self.latent, self.dtype)(x)
        return self.codebook(x.astype(jnp.float32), keys, train)


class Decoder(nn.Module):
    """The encoder's mirror, to a picture in [0, 1]."""

    channels: int
    widths: tuple[int, ...]
    residual_layers: int
    residual_width: int
    dtype: jnp.dtype | None = None

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
    dtype: jnp.dtype = jnp.float32,
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
    """Encoder with its codebook, and decoder, trained on squared error and commitment.

    shape: (height, width, channels); height and width divisible by 2 ** len(widths).
    latent, codes: length and number of the codebook's vectors.
    decay, epsilon, reseed_dead: of the Codebook.
    commitment: weight of the pull of the encoder's outputs to their vectors.
    data_variance: of the pixels, by which the squared error is divided. 0.06 is sonnet's for
        CIFAR-10; gray pictures in [0, 1] have about as much.
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
        mse = losses.mse(batch.image, net("decoder", quantized.code)).mean()
        logs = {
            "mse": mse,
            "commitment": quantized.commitment,
            "perplexity": quantized.perplexity,
            "dead_codes": quantized.dead,
        }
        return mse / data_variance + commitment * quantized.commitment, logs

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )


def nearest(outputs: Float[Array, "n d"], vectors: Float[Array, "k d"]) -> Int[Array, "n"]:
    """Index of the vector nearest to each output; the first of equals."""
    products = jnp.matmul(outputs, vectors.T, precision="highest")
    return (jnp.square(vectors).sum(-1) - 2 * products).argmin(-1)


def perplexity(uses: Float[Array, "k"]) -> Float[Array, ""]:
    """How many entries, evenly used, would be as various: exp of the entropy, 1 to k."""
    return jnp.exp(jax.scipy.special.entr(uses / uses.sum()).sum())


def over_devices(x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
    """The sum over devices; outside training there is no axis to sum over."""
    return lax.psum(x, BATCH_AXIS) if train else x


def draw(
    keys: Key[Array, "b"], outputs: Float[Array, "b n d"], count: int
) -> Float[Array, "count d"]:
    """`count` random outputs of the batch on all devices, the same ones on each of them.

    Each picture offers one of its outputs and casts a lot for each place; the highest lot wins.
    """

    def offer(key, own):
        lot, place = jax.random.split(key)
        return jax.random.uniform(lot, count), own[jax.random.randint(place, count, 0, len(own))]

    lots, offered = jax.vmap(offer)(keys, outputs)  # [b, count], [b, count, d]
    won = lots == lax.pmax(lots.max(0), BATCH_AXIS)
    winners = lax.psum(won.sum(0), BATCH_AXIS)  # more than one only where lots are equal
    total = lax.psum(jnp.where(won[..., None], offered, 0).sum(0), BATCH_AXIS)
    return total / winners[:, None]
