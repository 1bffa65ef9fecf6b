"""The PyTorch side of benchmarks/steps.py: the same detector, eager (channels_last) or compiled."""

import contextlib
import time
from collections import Counter
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import operations, sides, torch_models
from benchmarks.torch_models.losses import score
from benchmarks.torch_models.trainer import Trainer


class TorchSide:
    """The detector of a task, built by `build` from the description of the JAX side."""

    def __init__(self, task):
        self.memory_before = sides.resident()
        self.task = task
        cuda = torch.cuda.is_available() and task.platform != "cpu"
        self.device = torch.device("cuda" if cuda else "cpu")
        torch.set_num_threads(sides.cores())
        torch.set_float32_matmul_precision("high")  # JAX's default on a GPU: TF32
        torch.backends.cudnn.benchmark = True
        self.autocast = contextlib.nullcontext
        if task.dtype == "bfloat16":
            self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16)

    def build(self, description) -> dict:
        self.description = description
        image, condition = description["images"]
        # Images [n, c, h, w] with NHWC memory: channels_last.
        self.image = torch.tensor(image, device=self.device).permute(0, 3, 1, 2)
        self.condition = torch.tensor(condition, device=self.device).long()
        self.start(description["layers"])
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def start(self, layers) -> None:
        """Creates detector, optimizers and averages with the weights of the JAX side."""
        description = self.description
        detector = torch_models.DETECTORS[description["model"]](
            description["shape"], description["conditions"], **description["fields"]
        )
        for name, network in detector.named_children():
            torch_models.load(network, layers[name])
        self.detector = detector.to(self.device, memory_format=torch.channels_last)
        self.trainer = Trainer(
            self.detector,
            description["optimizers"],
            description["updates"],
            self.autocast,
            compiled=tuple(detector.trained_networks) if self.task.compiled else (),
        )
        score = torch.compile(self._score) if self.task.compiled else self._score
        self.score = torch.inference_mode()(score)

    # --- steps ---

    def first_step(self, phase, layers, noise) -> dict:
        """Losses of one step with the noise of the JAX side, and seconds."""
        self.start(layers)
        noise = [torch.tensor(x, device=self.device) for x in noise]
        self._train(dropout=False)
        began = time.perf_counter()
        losses = self.trainer.step(self.description["active"][phase], *self._batch(), noise)
        losses = {name: float(loss) for name, loss in losses.items()}
        self.detector.train()
        return {"losses": losses, "seconds": time.perf_counter() - began}

    def _train(self, dropout):
        self.detector.train()
        for module in self.detector.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(dropout)

    def _batch(self):
        indices = torch.arange(self.task.batch, device=self.device)
        image = self.image[indices].float().div_(255)
        return image.contiguous(memory_format=torch.channels_last), self.condition[indices]

    def steps(self, phase, count) -> float:
        """Seconds for `count` steps."""
        began = time.perf_counter()
        for _ in range(count):
            self.trainer.step(self.description["active"][phase], *self._batch())
        self._wait()
        return time.perf_counter() - began

    def flops(self, phase) -> float:
        """Floating-point operations of the convolutions and matrix products of one step."""
        with FlopCounterMode(display=False) as counter:
            if phase == sides.SCORE:
                self.scores(1)
            else:
                self.steps(phase, 1)
        return float(counter.get_total_flops())

    def profile(self, phase, count) -> dict[str, float]:
        """Seconds per step by kind of operation, as on the JAX side."""
        spent = Counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.steps(phase, count)
        for event in profile.key_averages():
            spent[operations.of_torch(event.key)] += event.self_cpu_time_total / 1e6 / count
        return dict(spent)

    # --- scoring ---

    def first_scores(self, codes=None) -> dict:
        """Scores of the first batch; with `codes`, the result of the latent search from them."""
        began = time.perf_counter()
        self._freeze()
        if codes is not None:
            codes = torch.tensor(codes, device=self.device)
            scores = self.detector.search(self._batch()[0], codes, self.task.search_steps)
        else:
            scores = self.score(*self._batch())
        scores = scores.float().cpu().numpy()
        return {"scores": scores, "seconds": time.perf_counter() - began}

    def _freeze(self):
        self.detector.eval().requires_grad_(False)

    def _score(self, x, condition):
        with self.autocast():
            reconstruction = self.detector.reconstruct(x, condition)
        return score(x, reconstruction.float())

    def scores(self, count) -> float:
        """Seconds to score `count` batches, or to repeat the latent search of one `count` times."""
        self._freeze()
        x, condition = self._batch()
        began = time.perf_counter()
        for _ in range(count):
            if self.description["search_steps"]:
                codes = self.trainer.draw(len(x), self.device)
                with self.autocast():
                    self.detector.search(x, codes, self.task.search_steps)
            else:
                self.score(x, condition)
        self._wait()
        return time.perf_counter() - began

    # --- the machine ---

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        sides.forget_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return sides.peak_resident() - self.memory_before

    def product_rate(self, size) -> float:
        """Floating-point operations per second of a size x size matrix product, the best of 5."""
        x = torch.randn(size, size, device=self.device, dtype=getattr(torch, self.task.dtype))
        torch.mm(x, x), self._wait()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(x, x), self._wait()
            seconds.append(time.perf_counter() - began)
        return 2 * size**3 / min(seconds)
