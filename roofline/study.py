"""The commands' answers as rows, for a notebook: a `Study` takes the commands' options by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import memory, plan, rows, search
from .devices import Ceilings
from .figures import ITEMSIZE_BYTES
from .options import defaults
from .setting import Setting, drafting_branches, prepare
from .step import expected_experts, pass_seconds
from .workload import Workload

# The greatest P where there are so many branches
MAX_PROPOSALS = 8


@dataclass(frozen=True)
class Result:
    """Flat rows, with units in their names."""

    rows: tuple[dict, ...]

    def to_rows(self) -> list[dict]:
        """As pandas.DataFrame takes them; sequences become text."""
        return [
            {
                name: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
                for name, value in row.items()
            }
            for row in self.rows
        ]

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Study:
    """A model on a device with a batch, context and acceptance.

    options    as `blockdraft roofline step --help` lists them, with _ for -: device="MI355X",
               batch=16, context=32768, histogram=[...], calibration_file="calibration.json"
    """

    def __init__(self, **options: object) -> None:
        known = defaults()
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"Study: expected options of {', '.join(known)}, got {', '.join(unknown)}"
            )
        self.setting: Setting = prepare(**(known | options))

    def step(self, proposals: int = 3, branches: Sequence[int] | None = None) -> Result:
        """Each op of both modes, as `step`."""
        return Result(tuple(step_rows(self.setting, proposals, branches)[0]))

    def plan(self, max_proposals: int | None = None, simulate: int | None = None) -> Result:
        """Each P with its best branches, as `plan`."""
        most = most_proposals(self.setting, max_proposals)
        return Result(tuple(plan_rows(self.setting, most, simulate)))

    def search(self, limits: search.Limits = search.LIMITS, keep: int = 8) -> Result:
        """The best K, M, P and branches, as `search`."""
        return Result(tuple(search_rows(self.setting, limits, keep)))

    def memory(self, proposals: int = 3, reserve: float = memory.RESERVE) -> Result:
        """What is kept at this context, as `memory`."""
        contexts = [self.setting.work.context_tokens]
        return Result(tuple(memory_rows(self.setting, contexts, proposals, reserve)))


def most_proposals(setting: Setting, asked: int | None) -> int:
    """The greatest P."""
    branches = setting.work.verify_rows
    if asked is None:
        return min(MAX_PROPOSALS, branches)
    if not 0 <= asked <= branches:
        raise ValueError(
            f"--max-proposals: expected 0 .. {branches} (one for each branch), got {asked}"
        )
    return asked


def step_rows(
    setting: Setting, proposals: int, branches: Sequence[float] | None
) -> tuple[list[dict], Workload]:
    """With the pass that drafts."""
    steady = drafting_branches(setting.accepting, proposals, branches)
    work = plan.drafting(setting.work, steady)
    found = rows.steps(
        setting.work.autoregressive(),
        work,
        steady.tokens_per_pass,
        setting.rates,
        setting.launch_us,
        setting.calibrated,
    )
    return found, work


def plan_rows(setting: Setting, most: int, simulate: int | None) -> list[dict]:
    found = options_of(setting, setting.accepting, most, setting.rates)
    planned = rows.plans(found, setting.accepting, simulate, setting.work, setting.rates)
    if setting.calibrated:
        rows.beside(planned, options_of(setting, setting.accepting, most, setting.calibrated))
    return planned


def options_of(
    setting: Setting, accepting: plan.Accepting, most: int, rates: Ceilings
) -> list[plan.Option]:
    choices = plan.candidates(accepting, range(most + 1))
    return plan.plan(setting.work, choices, rates, setting.launch_us)


def search_rows(setting: Setting, limits: search.Limits, keep: int) -> list[dict]:
    found = search.search(
        setting.work, setting.accepting, setting.trusted, limits, setting.launch_us, keep
    )
    base = next(f for f in found if not f.steady.branches)
    return [_layout(setting, f, base) for f in found]


def _layout(setting: Setting, found: search.Found, base: search.Found) -> dict:
    sized = replace(setting.work, verify_rows=found.drafts + 1, mask_rows=found.mask_rows)
    work = plan.drafting(sized, found.steady)
    return {
        "drafts": found.drafts,
        "mask_rows": found.mask_rows,
        "proposals": found.proposals,
        "branches": list(found.steady.branches),
        "rows": work.rows,
        "tokens_per_pass": found.steady.tokens_per_pass,
        "touched_experts": expected_experts(work),
        "ideal_pass_ms": 1e3 * pass_seconds(work, setting.rates, setting.launch_us),
        "pass_ms": 1e3 * found.pass_seconds,
        "calibrated": setting.calibrated is not None,
        "tokens_per_s": found.tokens_per_s,
        "speed_up": found.tokens_per_s / base.tokens_per_s,
        "exact": found.exact,
        "capped": " ".join(found.capped),
        "fits": memory.fits(work, setting.rates),
    }


def memory_rows(
    setting: Setting, contexts: Sequence[float], proposals: int, reserve: float
) -> list[dict]:
    """Of one request at each context."""
    steady, _ = plan.candidates(setting.accepting, [proposals])[0]
    found = []
    for context in contexts:
        if context != int(context):
            raise ValueError(f"contexts: expected integers, got {context!r}")
        work = replace(setting.work, batch=1, context_tokens=int(context))
        found.append(_kept(setting, plan.drafting(work, steady), reserve))
    return found


def _kept(setting: Setting, work: Workload, reserve: float) -> dict:
    kept = memory.of(work)
    tokens = work.context_tokens + work.verify_rows
    size = ITEMSIZE_BYTES[work.kv_dtype]
    unwindowed = memory.kv_bytes_unwindowed(work.model, tokens, size) * memory.kv_share(work)
    return {
        "device": setting.rates.device,
        "context_tokens": work.context_tokens,
        "proposals": len(work.branches),
        "weights_gb": kept.weights / 1e9,
        "cache_mb": kept.cache / 1e6,
        "cache_mb_without_windows": unwindowed / 1e6,
        "states_mb": kept.states / 1e6,
        "activations_mb": kept.activations / 1e6,
        "logits_mb": kept.logits / 1e6,
        "room_gb": memory.room(setting.rates.memory_gb, reserve) / 1e9,
        "max_batch": memory.max_batch(work, setting.rates, reserve),
    }
