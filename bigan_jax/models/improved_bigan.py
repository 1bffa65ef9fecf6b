"""The paper's Improved BiGAN: attention, residual connections, two phases, a perceptual loss.

Das et al., "Leveraging GANs, Autoencoders and their Combined Deep Learning Architectures for Anomaly Detection in
Multi-Domain Image Data", Sec. III. Details that the paper leaves open are config fields.

With `feature_layers`, the same networks and losses encode and reconstruct a frozen feature map in place of the image,
and the distance of features is the anomaly map.

34,253,084 parameters at 128x128x1, 19,927,361 of them in D.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Objective
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn import feature_maps, losses, ssim
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.nn.losses import discriminator_logs, spread_logs, standard_normal
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder, JointDiscriminator
from bigan_jax.nn.vgg16 import weights as vgg16
from bigan_jax.nn.vgg16.network import VGG16
from bigan_jax.value_checks import COUNT, POSITIVE_INTEGER

FIELD_RANGES = {
    **dict.fromkeys(("latent", "widths", "discriminator_widths", "discriminator_hidden"), POSITIVE_INTEGER),
    **dict.fromkeys(("feature_grid", "feature_channels"), POSITIVE_INTEGER),
    "se_ratio": COUNT,
}

_POOLS = ("average", "flatten")
_PAPER_WEIGHTS = {"mse": 0.5, "mae": 0.2, "perceptual": 0.2, "ssim": 0.1}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    vgg16_weights: str | None = "",
    latent: int = 256,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_hidden: int = 512,
    se_ratio: int = 16,
    residual: bool = True,
    pool: str = "average",
    perceptual_layers: tuple[str, ...] = ("relu3_3",),
    unit_features: bool = True,
    reconstruction_terms: Mapping[str, float] = _PAPER_WEIGHTS,
    adversarial_weight: float = 0.01,
    reconstruction_weight: float = 10.0,
    feature_layers: tuple[str, ...] = (),
    feature_grid: int = 16,
    feature_channels: int = 64,
    network: FeatureNetwork | None = None,
) -> Detector:
    """Creates encoder E, generator G, discriminator D(x, z), and VGG16 for the perceptual term.

    Args:
      vgg16_weights: a file of weights, "" for those of the installed package (vgg16.weights.load_weights), or None
        for a detector that only scores.
      widths: channels of E's convolutions; G has half of each, in reverse.
      discriminator_hidden: size of D's dense layers.
      se_ratio: reduction ratio of squeeze-and-excitation in E and G; 0 for none.
      residual: whether each stage of G has a residual connection.
      pool: last pooling of E: "average" (global average pooling) or "flatten" (none).
      perceptual_layers: VGG16 layers of the perceptual term.
      unit_features: whether VGG16's features are scaled (losses.unit_features) before they are compared.
      reconstruction_terms: weights of mse, mae, perceptual and ssim; a term of weight 0 is not computed.
      adversarial_weight: weight of the adversarial term in the adversarial loss of E and G.
      reconstruction_weight: weight of the reconstruction terms in that loss.
      feature_layers: VGG16 layers whose features are reconstructed in place of the image; () for the image.
      feature_grid: cells per side that these features are averaged to.
      feature_channels: dimensions that the features of a cell are projected to.
      network: takes the place of VGG16 and of `feature_layers`.

    Raises:
      UserError: `pool` is unknown, all reconstruction terms have weight 0 or need pixels where there are features, or
        VGG16's weights are needed and missing.
    """
    if pool not in _POOLS:
        raise unknown_name("config.model.pool", pool, _POOLS)
    networks, frozen = {}, {}
    image_shape, in_features = shape, bool(feature_layers or network)
    if in_features:
        network = network or feature_maps.vgg16_network(vgg16_weights or "", feature_layers, dtype)
        networks[feature_maps.NETWORK], frozen[feature_maps.NETWORK] = network
        projection = feature_maps.random_signs(sum(feature_maps.channels(network, shape)), feature_channels)
        shape = feature_grid, feature_grid, feature_channels

    def target(net, images):
        """Returns what is encoded and reconstructed: the images or their features."""
        if not in_features:
            return images
        cells = jnp.concatenate(feature_maps.grid_features(net, images, feature_grid, unit=True), -1) @ projection
        return lax.stop_gradient(cells.reshape(images.shape[0], *shape))

    networks |= {
        "encoder": ConvEncoder(latent, widths, se_ratio, pool, dtype=dtype),
        "generator": ConvDecoder(
            shape,
            widths[-1],
            tuple(width // 2 for width in widths[::-1]),
            se_ratio,
            residual,
            last="conv",
            linear=in_features,
            dtype=dtype,
        ),
        "discriminator": JointDiscriminator(discriminator_widths, discriminator_hidden, dtype=dtype),
    }
    weights = {name: weight for name, weight in reconstruction_terms.items() if weight}
    if not weights:
        names = ", ".join(reconstruction_terms)
        raise UserError(f"config.model.reconstruction_terms are all 0. Set a weight above 0 for one of {names}")
    if in_features and not weights.keys() <= {"mse", "mae"}:
        raise UserError(
            "config.model.reconstruction_terms: perceptual and ssim compare images. With config.model.feature_layers, "
            "set both to 0, as the modifier features does."
        )
    if "perceptual" in weights:
        networks["vgg16"] = VGG16(perceptual_layers, dtype=dtype, unit_features=unit_features)
        if vgg16_weights is not None:
            loaded = vgg16.load_weights(vgg16_weights, perceptual_layers)
            networks["vgg16"] = networks["vgg16"].clone(convention=loaded.convention)
            frozen["vgg16"] = {"params": loaded.params}

    def reconstruct(net, batch, keys):
        return net("generator", net("encoder", target(net, batch.image)))

    def score_and_map(net, batch, keys):
        x = target(net, batch.image)
        cells = jnp.square(x - net("generator", net("encoder", x))).mean(-1).reshape(x.shape[0], -1)
        return cells.mean(1), feature_maps.to_image_size(cells, image_shape)

    errors = {"mse": losses.mse, "mae": losses.mae, "ssim": ssim.ssim_error}

    def composite(net, x, y):
        terms = {name: error(x, y).mean() for name, error in errors.items() if name in weights}
        if "perceptual" in weights:
            target, features = lax.stop_gradient(net("vgg16", x)), net("vgg16", y)
            terms["perceptual"] = losses.perceptual(target, features).mean()
        return losses.weighted_sum(weights, terms)

    def reconstruction_loss(net, batch, keys):
        x = target(net, batch.image)
        reconstruction = net("generator", net("encoder", x))
        loss, terms = composite(net, x, reconstruction)
        return loss, terms | spread_logs(net.train, x, reconstruction=reconstruction)

    def discriminator_loss(net, batch, keys):
        x, z = target(net, batch.image), standard_normal(keys, latent)
        real, _ = net("discriminator", x, net("encoder", x))
        fake, _ = net("discriminator", net("generator", z), z)
        return losses.bce(real, 1) + losses.bce(fake, 0), discriminator_logs(real, fake)

    def adversarial_loss(net, batch, keys):
        x, z = target(net, batch.image), standard_normal(keys, latent)
        code, generated = net("encoder", x), net("generator", z)
        real, _ = net("discriminator", x, code)
        fake, _ = net("discriminator", generated, z)
        fooling = losses.bce(real, 0) + losses.bce(fake, 1)
        logs = {"fooling": fooling, **spread_logs(net.train, x, generated=generated)}
        total = adversarial_weight * fooling
        if reconstruction_weight:
            reconstruction, terms = composite(net, x, net("generator", code))
            total += reconstruction_weight * reconstruction
            logs |= terms
        return total, logs

    return Detector(
        networks=networks,
        objectives={
            "discriminator": Objective(("discriminator",), discriminator_loss),
            "adversarial": Objective(("encoder", "generator"), adversarial_loss),
            "reconstruction": Objective(("encoder", "generator"), reconstruction_loss),
        },
        reconstruct=None if in_features else reconstruct,
        score_and_map=score_and_map if in_features else None,
        frozen=frozen,
    )
