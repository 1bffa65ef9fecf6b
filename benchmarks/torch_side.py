"""PyTorch's side of benchmarks/steps.py: the same detector, eager in channels_last or compiled."""

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
    """Built by `build` from what the other side describes."""

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

    def build(self, described) -> dict:
        self.described = described
        image, condition = described["pictures"]
        # [n, c, h, w] of pictures that lie as NHWC: channels_last.
        self.image = torch.tensor(image, device=self.device).permute(0, 3, 1, 2)
        self.condition = torch.tensor(condition, device=self.device).long()
        self.start(described["layers"])
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def start(self, layers) -> None:
        """Detector, optimizers and averages as they begin, with the other side's weights."""
        described = self.described
        detector = torch_models.DETECTORS[described["model"]](
            described["shape"], described["conditions"], **described["fields"]
        )
        for name, network in detector.named_children():
            torch_models.load(network, layers[name])
        self.detector = detector.to(self.device, memory_format=torch.channels_last)
        self.trainer = Trainer(
            self.detector,
            described["optimizers"],
            described["updates"],
            self.autocast,
            compiled=tuple(detector.moves) if self.task.compiled else (),
        )
        look = torch.compile(self._look) if self.task.compiled else self._look
        self.look = torch.inference_mode()(look)

    # --- steps ---

    def first_step(self, phase, layers, noise) -> dict:
        """As our side's: each loss of one step with the given noise, and seconds."""
        self.start(layers)
        noise = [torch.tensor(x, device=self.device) for x in noise]
        self._train(dropout=False)
        began = time.perf_counter()
        losses = self.trainer.step(self.described["due"][phase], *self._batch(), noise)
        losses = {name: float(loss) for name, loss in losses.items()}
        self.detector.train()
        return {"losses": losses, "seconds": time.perf_counter() - began}

    def _train(self, dropout):
        self.detector.train()
        for module in self.detector.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(dropout)

    def _batch(self):
        chosen = torch.arange(self.task.batch, device=self.device)
        image = self.image[chosen].float().div_(255)
        return image.contiguous(memory_format=torch.channels_last), self.condition[chosen]

    def steps(self, phase, count) -> float:
        """Seconds for so many steps."""
        began = time.perf_counter()
        for _ in range(count):
            self.trainer.step(self.described["due"][phase], *self._batch())
        self._wait()
        return time.perf_counter() - began

    def flops(self, phase) -> float:
        """Of one step's convolutions and matrix products, as they are written."""
        with FlopCounterMode(display=False) as counter:
            if phase == sides.SCORE:
                self.scores(1)
            else:
                self.steps(phase, 1)
        return float(counter.get_total_flops())

    def profile(self, phase, count) -> dict[str, float]:
        """As our side's."""
        spent = Counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            self.steps(phase, count)
        for event in found.key_averages():
            spent[operations.of_torch(event.key)] += event.self_cpu_time_total / 1e6 / count
        return dict(spent)

    # --- scoring ---

    def first_scores(self, codes=None) -> dict:
        """The first batch's scores; from given codes, where their search ends."""
        began = time.perf_counter()
        self._judge()
        if codes is not None:
            codes = torch.tensor(codes, device=self.device)
            scores = self.detector.search(self._batch()[0], codes, self.task.search_steps)
        else:
            scores = self.look(*self._batch())
        scores = scores.float().cpu().numpy()
        return {"scores": scores, "seconds": time.perf_counter() - began}

    def _judge(self):
        self.detector.eval().requires_grad_(False)

    def _look(self, x, condition):
        with self.autocast():
            again = self.detector.reconstruct(x, condition)
        return score(x, again.float())

    def scores(self, count) -> float:
        """Seconds to score so many batches, or to search in one so many times over."""
        self._judge()
        x, condition = self._batch()
        began = time.perf_counter()
        for _ in range(count):
            if self.described["search_steps"]:
                codes = self.trainer.draw(len(x), self.device)
                with self.autocast():
                    self.detector.search(x, codes, self.task.search_steps)
            else:
                self.look(x, condition)
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
        """Floating-point operations a second of a size x size matrix product, the best of 5."""
        x = torch.randn(size, size, device=self.device, dtype=getattr(torch, self.task.dtype))
        torch.mm(x, x), self._wait()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(x, x), self._wait()
            seconds.append(time.perf_counter() - began)
        return 2 * size**3 / min(seconds)
