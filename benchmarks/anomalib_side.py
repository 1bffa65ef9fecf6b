"""The anomalib side of benchmarks/fitted.py: PaDiM and PatchCore on VGG16 with the weights of the JAX side."""

import anomalib
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torchvision.models import vgg

from benchmarks import sides
from benchmarks.sides import Stopwatch

LAYERS = {"relu2_2": "8", "relu3_3": "15", "relu4_3": "22"}  # their names in torchvision's VGG16
# The layer at whose positions anomalib samples the others. Its map has a quarter and an eighth of the image's side, as
# that of the papers' networks.
GRID = {"padim": "relu3_3", "patchcore": "relu4_3"}
MEAN, DEVIATION = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]


class AnomalibSide:
    """anomalib's models, with the methods of `FittedSide`."""

    def __init__(self, task):
        self.task, self.models = task, {}
        torch.set_num_threads(sides.cores())

    def build(self, weights, components: int, coreset: float) -> dict:
        """Takes VGG16's arrays, the number of channels that PaDiM draws, and PatchCore's share of patches."""
        self.components, self.coreset = components, coreset
        self.backbone = vgg.make_layers(vgg.cfgs["D"])[: int(LAYERS["relu4_3"]) + 1]
        convolutions = [layer for layer in self.backbone if isinstance(layer, torch.nn.Conv2d)]
        for layer, arrays in zip(convolutions, weights.values(), strict=True):
            layer.weight.data = torch.tensor(arrays["kernel"]).permute(3, 2, 0, 1).contiguous()
            layer.bias.data = torch.tensor(arrays["bias"])
        return {"torch": torch.__version__, "anomalib": anomalib.__version__}

    def _create(self, name):
        torch.manual_seed(0)
        layers = [LAYERS[GRID[name]], *(x for layer, x in LAYERS.items() if layer != GRID[name])]
        if name == "padim":
            return PadimModel(self.backbone, layers, n_features=self.components)
        return PatchcoreModel(layers, self.backbone)

    def features(self, images) -> list:
        """The feature maps of all layers, [n h w c]."""
        maps = self._create("padim").feature_extractor(_normalized(images))
        return [maps[layer].permute(0, 2, 3, 1).numpy() for layer in LAYERS.values()]

    def fit(self, name, images) -> dict:
        """Fits a model from the start."""
        self.models.pop(name, None)
        stopwatch = Stopwatch()
        model = self._create(name).train()
        for batch in self._batches(images):
            model(batch)
        if name == "padim":
            torch.set_num_threads(1)  # with several, MKL's LU of more than about 128 rows fails on some machines
            model.fit()
            torch.set_num_threads(sides.cores())
        else:
            model.subsample_embedding(self.coreset)
        self.models[name] = model.eval()
        return stopwatch.read()

    @torch.inference_mode()
    def score(self, name, images) -> dict:
        """Scores images."""
        stopwatch = Stopwatch()
        results = [self.models[name](batch) for batch in self._batches(images)]
        scores = torch.cat([x.pred_score for x in results]).numpy()
        maps = torch.cat([x.anomaly_map for x in results])[:, 0].numpy()
        return {"score": scores, "map": maps, **stopwatch.read()}

    def _batches(self, images):
        return (_normalized(images[i : i + self.task.batch]) for i in range(0, len(images), self.task.batch))


def _normalized(images):
    return (torch.tensor(images).permute(0, 3, 1, 2) / 255 - MEAN) / DEVIATION
