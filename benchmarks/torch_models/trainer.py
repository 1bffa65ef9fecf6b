"""Training in PyTorch: one update per active loss, of the networks that it trains."""

import contextlib
import math

import torch


class Trainer:
    """The optimizers of a detector, and the moving average of its weights if it has one.

    Args:
      detector: the detector.
      optimizers: by loss, {learning_rate, b1, b2, rate}, as in configs/.
      updates: by loss, the number of updates in each phase, for "one_cycle" rates.
      autocast: context of each loss, for mixed precision.
      compiled: names of losses to compile with torch.compile.
    """

    def __init__(self, detector, optimizers, updates, autocast=contextlib.nullcontext, compiled=()):
        self.detector, self.autocast, self.steps = detector, autocast, 0
        self.losses = {name: getattr(detector, f"{name}_loss") for name in detector.trained_networks}
        self.losses |= {name: torch.compile(self.losses[name]) for name in compiled}
        self.optimizers, self.rates = {}, {}
        for name, networks in detector.trained_networks.items():
            fields = optimizers[name]
            self.optimizers[name] = torch.optim.Adam(
                [p for network in networks for p in getattr(detector, network).parameters()],
                lr=fields["learning_rate"],
                betas=(fields["b1"], fields["b2"]),
                fused=True,
            )
            if fields["rate"] == "one_cycle":
                self.rates[name] = torch.optim.lr_scheduler.LambdaLR(self.optimizers[name], one_cycle(updates[name]))
        self.averaging = getattr(detector, "averaging", 0.0)
        self.average = [p.detach().clone() for p in self._weights()] if self.averaging else []

    def step(self, active, x, condition, noise=None):
        """Updates by each active loss; returns their mean values. `noise` (one array per update) is
        drawn by default."""
        values = {}
        for index, name in enumerate(active):
            codes = self.draw(len(x), x.device) if noise is None else noise[index]
            values.setdefault(name, []).append(self.update(name, x, condition, codes))
        if self.average:
            decay = min(self.averaging, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, self._weights(), 1 - decay)
        self.steps += 1
        return {name: torch.stack(losses).mean() for name, losses in values.items()}

    def draw(self, batch, device):
        if not hasattr(self.detector, "draw"):
            return None
        return self.detector.draw(batch, self.detector.latent, device=device)

    def update(self, name, x, condition, noise):
        for network, module in self.detector.named_children():
            module.requires_grad_(network in self.detector.trained_networks[name])
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
    """The factor of the peak rate by update: in each phase up from 1/25 over the first 30 %, then
    down to 0 on a cosine."""
    counts = [n for n in updates if n] or [1]

    def factor(update):
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

    return factor
