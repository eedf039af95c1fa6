"""Devices and batches that serve under a limit of time per token: tokens per second of a user
against those of a GPU, and what a million tokens cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import memory
from .devices import Ceilings
from .plan import Option, Steady, drafting, plan
from .plan import best as best_option
from .workload import Workload

Choices = Sequence[tuple[Steady, bool]]


@dataclass(frozen=True)
class Serving:
    """One device with one batch.

    max_batch      that fits at this context with this P; None: the device's memory is not known
    ms_per_token   mean time between the tokens of a request
    on_front       no other batch of this device is better for both the user and the GPU
    under_limit    of time per token
    gpus           that share a pass
    ideal_tokens_per_s    of a GPU, without the calibration that the other times rest on
    price          dollars an hour of one; None: not given
    """

    device: str
    gpus: int
    doubtful: bool
    batch: int
    max_batch: int | None
    option: Option
    ideal_tokens_per_s: float
    price: float | None = None
    on_front: bool = False
    under_limit: bool = True

    @property
    def user_tokens_per_s(self) -> float:
        return self.option.tokens_per_s / self.batch

    @property
    def gpu_tokens_per_s(self) -> float:
        return self.option.tokens_per_s / self.gpus

    @property
    def ms_per_token(self) -> float:
        return 1e3 / self.user_tokens_per_s

    @property
    def dollars_per_million(self) -> float | None:
        if self.price is None:
            return None
        return self.price / 3600 / self.gpu_tokens_per_s * 1e6

    def to_row(self) -> dict:
        return {
            "device": self.device,
            "doubtful": self.doubtful,
            "batch": self.batch,
            "max_batch": self.max_batch,
            "proposals": len(self.option.steady.branches),
            "branches": list(self.option.steady.branches),
            "tokens_per_pass": self.option.steady.tokens_per_pass,
            "pass_ms": 1e3 * self.option.pass_seconds,
            "ms_per_token": self.ms_per_token,
            "user_tokens_per_s": self.user_tokens_per_s,
            "gpus": self.gpus,
            "gpu_tokens_per_s": self.gpu_tokens_per_s,
            "ideal_gpu_tokens_per_s": self.ideal_tokens_per_s,
            "dollars_per_million": self.dollars_per_million,
            "on_front": self.on_front,
            "under_limit": self.under_limit,
        }


# A batch whose rate of the GPU falls so little short of the best serves its users sooner
NEARLY = 0.99


def batches(most: Sequence[int | None]) -> list[int]:
    """Powers of two, with their halves between, up to what fits; and each of `most`."""
    found = {size for size in most if size}
    top = max(found) if found else (0 if 0 in most else 1024)
    steps = {size for i in range(11) for size in (2**i, 3 * 2**i // 2)}
    return sorted(size for size in found | steps if size <= top)


def servings(
    w: Workload,
    choices: Choices,
    rates: Ceilings,
    launch_us: float = 0.0,
    limit_ms: float | None = None,
    price: float | None = None,
) -> list[Serving]:
    """Every batch of a device that fits, each with its best P. `w` gives everything but the batch
    and the branches."""
    if limit_ms is not None and not limit_ms > 0:
        raise ValueError(f"limit_ms: expected more than 0 ms a token, got {limit_ms!r}")
    if price is not None and not 0 < price < 1e6:
        raise ValueError(f"price: expected more than 0 dollars an hour, got {price!r}")
    most = [memory.max_batch(drafting(w, steady), rates) for steady, _ in choices]
    uncalibrated = replace(rates, calibration=None)
    found = []
    for size in batches(most):
        work = replace(w, batch=size)
        options = [
            o
            for o in plan(work, choices, rates, launch_us)
            if memory.fits(drafting(work, o.steady), rates)
        ]
        if options:
            chosen = best_option(options)
            fitting = memory.max_batch(drafting(work, chosen.steady), rates)
            ideal = plan(work, [(chosen.steady, chosen.exact)], uncalibrated, launch_us)[0]
            serving = Serving(
                rates.device,
                w.tp,
                bool(rates.doubtful),
                size,
                fitting,
                chosen,
                ideal.tokens_per_s / w.tp,
                price,
            )
            slow = limit_ms is not None and serving.ms_per_token > limit_ms
            found.append(replace(serving, under_limit=not slow))
    return [replace(s, on_front=_on_front(s, found)) for s in found]


def _on_front(one: Serving, others: Sequence[Serving]) -> bool:
    return not any(
        o.user_tokens_per_s >= one.user_tokens_per_s
        and o.option.tokens_per_s > one.option.tokens_per_s
        for o in others
    )


def chosen(found: Sequence[Serving]) -> Serving | None:
    """The least batch that comes near the most tokens per second of the GPU under the limit; None
    where none is."""
    fast = [s for s in found if s.under_limit]
    most = max((s.option.tokens_per_s for s in fast), default=0.0)
    return next((s for s in fast if s.option.tokens_per_s >= NEARLY * most), None)


def binding(found: Sequence[Serving]) -> str:
    """What keeps the chosen batch from more tokens per second."""
    best = chosen(found)
    if best is None:
        return "too slow" if found else "does not fit"
    if best.batch == best.max_batch:
        return "memory is the limit"
    faster = any(s.option.tokens_per_s * NEARLY > best.option.tokens_per_s for s in found)
    return "time per token is the limit" if faster else "more requests add nothing"


def prices(given: Sequence[str], devices: Sequence[str]) -> Mapping[str, float]:
    """Dollars an hour by device, from NAME=DOLLARS."""
    found = {}
    for text in given:
        name, _, dollars = text.partition("=")
        known = next((d for d in devices if d.lower() == name.strip().lower()), None)
        try:
            value = float(dollars)
        except ValueError:
            value = -1.0
        if known is None or not 0 < value < 1e6:
            raise ValueError(
                f"--price: expected NAME=DOLLARS_AN_HOUR with a name of {', '.join(devices)}, "
                f"got {text!r}"
            )
        found[known] = value
    return found
