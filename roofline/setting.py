"""What the options of a command say: a workload, the rates of a device and an acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .acceptance import ATTRIBUTES, from_options
from .calibration import Calibration
from .calibration import load as read_calibration
from .devices import Ceilings, ceilings, find, load, measured_cpu
from .figures import Device
from .models import find as find_model
from .models import title
from .plan import Accepting, Steady, best_branches, steady_state
from .workload import Workload


@dataclass(frozen=True)
class Setting:
    """What the shared options say.

    title        of the model
    work         the workload without branches
    rates        of the device, for ideal times; calibrated: the same with a calibration, or None
    accepting    how many drafts are accepted
    otherwise    the same law attributed the other way; None where there is no other way
    """

    title: str
    work: Workload
    device: Device
    rates: Ceilings
    calibrated: Ceilings | None
    launch_us: float
    accepting: Accepting
    otherwise: Accepting | None

    @property
    def trusted(self) -> Ceilings:
        """The calibrated rates where there are any."""
        return self.calibrated or self.rates


def prepare(
    model: str,
    drafts: int,
    mask_rows: int | None,
    dtype: str,
    kv_dtype: str | None,
    lm_head: str,
    routing: tuple[float, ...] | None,
    weight_dtype: str,
    head_dtype: str,
    prefill: int,
    tp: int,
    ep: int,
    link: tuple[float, ...] | None,
    correlation: float,
    touched: tuple[tuple[float, float], ...] | None,
    basis: str,
    launch_us: float,
    activations: str,
    calibration_file: str | None,
    devices_file: str | None,
    device: str,
    batch: int,
    context: int,
    mean: float | None,
    alpha: float | None,
    histogram: Sequence[float] | None,
    offsets: Sequence[float] | None,
    mixture: Sequence[tuple[float, float]] | None,
    attribute: str,
) -> Setting:
    if not 0 <= drafts <= 256:
        raise ValueError(f"--drafts: expected 0 .. 256, got {drafts}")
    work = Workload(
        model=find_model(model),
        batch=batch,
        context_tokens=context,
        verify_rows=drafts + 1,
        mask_rows=drafts + 1 if mask_rows is None else mask_rows,
        branches=(),
        dtype=dtype,
        kv_dtype=kv_dtype or dtype,
        lm_head=lm_head,
        routing=routing,
        accepted=0,
        weight_dtype=weight_dtype,
        head_dtype=head_dtype,
        prefill_rows=prefill,
        correlation=correlation,
        touched=touched,
        tp=tp,
        ep=ep,
    )
    measured = calibration(calibration_file)
    if device.lower() == "cpu" and measured and measured.limits:
        found = measured_cpu(measured.limits, calibration_file)
    else:
        found = find(device, load(devices_file))
    rates = linked(replace(ceilings(found, dtype, basis), activations=activations), tp, link)
    given = (drafts, work.mask_rows, mean, alpha, histogram, offsets, mixture)
    other = next(a for a in ATTRIBUTES if a != attribute)
    return Setting(
        title(model),
        work,
        found,
        rates,
        replace(rates, calibration=measured) if measured else None,
        launch_us,
        from_options(*given, attribute),
        from_options(*given, other) if offsets is None else None,
    )


def calibration(path: str | None) -> Calibration | None:
    """What --calibration names."""
    return read_calibration(path) if path else None


def linked(rates: Ceilings, tp: int, link: Sequence[float] | None) -> Ceilings:
    """With the rate and the latency between GPUs. No device figure says them: they depend on the
    node."""
    if tp == 1 and link is None:
        return rates
    if link is None or len(link) != 2 or not (link[0] > 0 and link[1] >= 0):
        got = None if link is None else list(link)
        raise ValueError(
            "--link: expected GB/s and microseconds, such as 400,10, since --tp is more than 1, "
            f"got {got}"
        )
    return replace(rates, link_bytes_per_s=1e9 * link[0], link_s=1e-6 * link[1])


def drafting_branches(
    acceptance: Accepting, proposals: int, branches: Sequence[float] | None = None
) -> Steady:
    """The steady state of the branches given, or of the best `proposals` ones."""
    if branches is None:
        if proposals < 1:
            raise _without_proposals(acceptance, proposals)
        return best_branches(acceptance, proposals)[0]
    if not branches:
        raise _without_proposals(acceptance, "no branches")
    if any(c != int(c) for c in branches):
        raise ValueError(f"branches: expected integers, got {list(branches)}")
    whole = [int(c) for c in branches]
    if len(set(whole)) < len(whole):
        raise ValueError(
            "branches: expected different ones (a repeated branch is dead, yet its rows run), "
            f"got {whole}"
        )
    return steady_state(acceptance, whole)


def _without_proposals(acceptance: Accepting, got: object) -> ValueError:
    most = len(acceptance.drafts) + 1
    return ValueError(
        f"proposals: expected 1 .. {most} (one for each branch; "
        f"without any, decoding is autoregressive), got {got}"
    )
