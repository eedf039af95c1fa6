"""Says how many draft blocks a device can afford, and why: pure functions over frozen dataclasses,
without torch.

In a notebook a `Study` gives the commands' answers as rows, which pandas takes:

    >>> from blockdraft.roofline import Study
    >>> study = Study(device="MI355X", batch=16, context=32768)  # options as the commands have them
    >>> rows = study.plan(max_proposals=4).to_rows()  # pandas.DataFrame(rows)
    >>> fastest = max(rows, key=lambda row: row["tokens_per_s"])["branches"]

Underneath stand functions of a workload, rates and an acceptance:

    >>> from blockdraft.roofline import acceptance, devices, models, plan, step
    >>> rates = devices.ceilings(devices.find("MI355X", devices.load()), "bf16", "achieved")
    >>> model = models.find("ZAYA1-8B")
    >>> work = step.Workload(model, batch=16, context_tokens=32768, branches=(1, 9))
    >>> seconds = step.pass_seconds(work, rates)  # the ideal time of one pass
    >>> accepting = acceptance.from_options(16, 17, mean=4.6)
    >>> best = plan.best_branches(accepting, 2)[0]  # its branches and tokens_per_pass

costs      flops, exponentials and bytes of each op, shared with `blockdraft.bench`
launches   kernels that a call of each op starts
memory     what is kept, and how many requests fit; experts: how rows spread over them
calibration, whole_pass: what measurements say of a device
search, deploy: K, M, P and branches together; devices, batches, limits and prices
workload   what a pass is made of; step: its ops and their time
blocks     the draft blocks that are free
acceptance, plan, simulate: which branches to spend proposals on
assembly, isa: what the compilers made of the kernels
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .study import Study

__all__ = ["Study"]


def __getattr__(name: str) -> object:
    """Study is imported when it is asked for, since it brings every command's options."""
    if name == "Study":
        from .study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
