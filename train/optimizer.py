"""Muon for matrices, AdamW for everything else, and the bias that balances the experts."""

import math

import torch

from ..models.config import ZayaConfig

Tensors = dict[str, torch.Tensor]
MOMENTUM, DECAY = 0.95, 0.05
WARM_UP, FINAL = 0.03, 0.02  # share of the steps, share of the peak rate


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to FINAL."""
    done = step / steps
    if done < WARM_UP:
        return (step + 1) / (WARM_UP * steps)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix to each of x [...,rows,columns], roughly: five Newton-Schulz
    steps with the coefficients of Muon (Jordan et al., 2024)."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether Muon takes it: the embedding and the convolutions, which are no maps between hidden
    states, are left to AdamW."""
    return tensor.dim() > 1 and "embed" not in name and "conv" not in name


class Optimizer:
    """Both of them over `learned`, tensors by name; `state` is what a checkpoint keeps."""

    def __init__(self, learned: Tensors, peak_lr: float, muon: bool):
        self.learned = learned
        self.matrices = {n: t for n, t in learned.items() if muon and is_matrix(n, t)}
        self.rest = {n: t for n, t in learned.items() if n not in self.matrices}
        decayed = [t for t in self.rest.values() if t.dim() > 1]
        others = [t for t in self.rest.values() if t.dim() == 1]
        self.momentum = {n: torch.zeros_like(t) for n, t in self.matrices.items()}
        self.peak_lr = peak_lr
        self.adam = torch.optim.AdamW(
            [dict(params=decayed, weight_decay=DECAY), dict(params=others, weight_decay=0.0)],
            lr=peak_lr,
            betas=(0.9, 0.98),
            fused=True,
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rate."""
        torch.nn.utils.clip_grad_norm_(self.learned.values(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.peak_lr * share
        self.adam.step()
        for name, weight in self.matrices.items():
            momentum = self.momentum[name]
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            update = orthogonal(weight.grad.lerp(momentum, MOMENTUM))
            # Of the size that AdamW's updates have (Liu et al., 2502.16982)
            size = 0.2 * math.sqrt(max(weight.shape[-2:])) * self.peak_lr * share
            weight.mul_(1 - DECAY * self.peak_lr * share).sub_(size * update)
        for tensor in self.learned.values():
            tensor.grad = None

    def state(self) -> Tensors:
        """Tensors by `momentum.NAME`, `mean.NAME` and `square.NAME`, and Adam's steps."""
        out = {f"momentum.{n}": t for n, t in self.momentum.items()}
        for name, tensor in self.rest.items():
            moments = self.adam.state.get(tensor)
            if not moments:  # before the first step
                continue
            out[f"mean.{name}"] = moments["exp_avg"]
            out[f"square.{name}"] = moments["exp_avg_sq"]
            out[f"adam_step.{name}"] = moments["step"]
        return out

    def load(self, state: Tensors) -> None:
        for name, tensor in self.momentum.items():
            tensor.copy_(state[f"momentum.{name}"])
        for name, tensor in self.rest.items():
            if f"mean.{name}" in state:
                self.adam.state[tensor] = dict(
                    exp_avg=state[f"mean.{name}"].clone(),
                    exp_avg_sq=state[f"square.{name}"].clone(),
                    step=state[f"adam_step.{name}"].clone(),
                )


@torch.no_grad()
def balance(tensors: Tensors, loads: list[torch.Tensor], config: ZayaConfig, amount: float) -> None:
    """Move the biases of each layer towards equal expert load (auxiliary-loss-free balancing); that
    of skip is not changed."""
    for i, experts in enumerate(loads):
        bias = tensors[f"model.layers.{i}.mlp.gate.balancing_biases"]
        chosen = experts[experts >= 0].long()
        share = torch.bincount(chosen, minlength=config.num_experts) / experts.numel()
        bias[:-1] += amount * torch.sign(share.mean() - share)
