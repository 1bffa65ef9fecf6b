"""Training in PyTorch: for each loss that is due, one update of the networks that it moves."""

import contextlib
import math

import torch


class Trainer:
    """A detector's optimizers, and its weights' moving average where it takes one.

    optimizers: by loss, {learning_rate, b1, b2, rate}, as in configs/.
    updates: by loss, how many there will be in each phase, for "one_cycle" rates.
    autocast: entered around each loss, for mixed precision.
    """

    def __init__(self, detector, optimizers, updates, autocast=contextlib.nullcontext, compiled=()):
        """compiled: losses that torch.compile compiles; its result is run in their stead."""
        self.detector, self.autocast, self.steps = detector, autocast, 0
        self.losses = {name: getattr(detector, f"{name}_loss") for name in detector.moves}
        self.losses |= {name: torch.compile(self.losses[name]) for name in compiled}
        self.optimizers, self.rates = {}, {}
        for name, networks in detector.moves.items():
            how = optimizers[name]
            self.optimizers[name] = torch.optim.Adam(
                [p for network in networks for p in getattr(detector, network).parameters()],
                lr=how["learning_rate"],
                betas=(how["b1"], how["b2"]),
                fused=True,
            )
            if how["rate"] == "one_cycle":
                self.rates[name] = torch.optim.lr_scheduler.LambdaLR(
                    self.optimizers[name], one_cycle(updates[name])
                )
        self.averaging = getattr(detector, "averaging", 0.0)
        self.average = [p.detach().clone() for p in self._weights()] if self.averaging else []

    def step(self, due, x, condition, noise=None):
        """The last value of each loss. noise: of each update in turn; drawn by default."""
        seen = {}
        for turn, name in enumerate(due):
            drawn = self.draw(len(x), x.device) if noise is None else noise[turn]
            seen.setdefault(name, []).append(self.update(name, x, condition, drawn))
        if self.average:
            decay = min(self.averaging, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, self._weights(), 1 - decay)
        self.steps += 1
        return {name: torch.stack(values).mean() for name, values in seen.items()}

    def draw(self, batch, device):
        if not hasattr(self.detector, "draw"):
            return None
        return self.detector.draw(batch, self.detector.latent, device=device)

    def update(self, name, x, condition, noise):
        for network, module in self.detector.named_children():
            module.requires_grad_(network in self.detector.moves[name])
        with self.autocast():
            loss = self.losses[name](x, condition, noise)
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        if name in self.rates:
            self.rates[name].step()
        return loss.detach()

    def _weights(self):
        return [p.data for p in self.detector.parameters()]


def one_cycle(updates):
    """The share of the peak rate at each update: in each phase up from a 25th over the first 30 %,
    then down to nothing on a cosine."""
    counts = [n for n in updates if n] or [1]

    def share(update):
        for count in counts[:-1]:
            if update < count:
                break
            update -= count
        else:
            count = counts[-1]
        rise = max(1, round(0.3 * count))
        if update < rise:
            return (1 + 24 * update / rise) / 25
        done = min(1.0, (update - rise) / (max(count, rise + 1) - rise))
        return 0.5 * (1 + math.cos(math.pi * done))

    return share
