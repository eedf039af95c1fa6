"""The planner's forecast of acceptance beside its peers': vLLM's online estimator
(v1/worker/gpu/spec_decode/acceptance_estimator.py of 0.33) and the bare probability of a draft,
which is the path confidence of BASTION (arXiv 2605.29727)."""

import torch

from blockdraft.planner import Planner


class OnlineLogistic:
    """The odds of acceptance are a power of the odds of a row's most probable id, times a factor of
    the draft's position: one slope, and an intercept for each position. Newton's step on what the
    last passes showed, shortened where that was little."""

    EVERY = 8  # passes; vLLM takes 100, which these runs do not have
    RIDGE = 1e-3
    DAMPING = 50

    def __init__(self, positions: int) -> None:
        self.slope = torch.tensor(0.5, dtype=torch.float64)
        self.intercept = torch.full((positions,), -0.2, dtype=torch.float64)
        self._seen: list[tuple[torch.Tensor, ...]] = []

    def predict(self, most_probable: torch.Tensor) -> torch.Tensor:
        """Of the probabilities [B,K] of the rows' most probable ids."""
        self._odds = torch.logit(most_probable, eps=1e-12).clamp(-40, 40)
        self._p = torch.sigmoid(self.slope * self._odds + self.intercept)
        return self._p

    def learn(self, tried: torch.Tensor, kept: torch.Tensor) -> None:
        weight = tried * self._p * (1 - self._p)
        error = tried * (kept.double() - self._p)
        terms = weight * self._odds**2, weight * self._odds, weight, error * self._odds, error
        self._seen.append(tuple(t.sum(0) for t in (*terms, tried.double())))
        if len(self._seen) == self.EVERY:
            self._refit(*(torch.stack(t).sum(0) for t in zip(*self._seen)))
            self._seen.clear()

    def _refit(self, a, b, c, slope_gradient, gradient, count) -> None:
        c = c + self.RIDGE
        step = slope_gradient.sum() - (b * gradient / c).sum()
        step = step / (a.sum() + self.RIDGE - (b * b / c).sum())
        step = step * count.sum() / (count.sum() + self.DAMPING)
        self.slope = self.slope + step
        self.intercept = self.intercept + (gradient - b * step) / c * count / (count + self.DAMPING)


class Forecasts(Planner):
    """A planner that keeps the score of its forecasts and of its peers': `loss`, the sum of
    -log of the probability that each gave to what happened, over `count` drafts."""

    scores: "list[Forecasts]" = []  # the planners that decoders have made

    def __init__(self, state, counts=None) -> None:
        super().__init__(state, counts)
        self.peer = OnlineLogistic(state.layout.K)
        self.loss = dict(planner=0.0, vllm=0.0, bastion=0.0)
        self.count = 0
        self._forecast: dict[str, torch.Tensor] = {}
        self.scores.append(self)

    def look(self, draft_logits, temperature) -> None:
        super().look(draft_logits, temperature)
        logits = draft_logits.double()
        if temperature is not None:
            logits = logits / torch.where(temperature > 0, temperature, 1.0)[:, None, None]
        q = logits.softmax(-1)
        drafts = self.state.drafts.clamp(min=0).long()[..., None]
        self._forecast = dict(
            planner=self._rate()[self._place[0]],
            vllm=self.peer.predict(q.amax(-1)),
            bastion=q.gather(-1, drafts)[..., 0],
        )

    def measure(self) -> None:
        tried, kept = self.judged()
        for name, p in self._forecast.items():
            right = torch.where(kept, p, 1 - p).clamp(1e-4, 1 - 1e-4)
            self.loss[name] -= right.log()[tried].sum().item()
        if self._forecast:
            self.count += int(tried.sum())
            self.peer.learn(tried, kept)
        super().measure()
