"""Says how many draft blocks a device can afford, and why: pure functions over frozen dataclasses,
without torch.

    >>> from blockdraft.roofline import acceptance, devices, models, plan, step
    >>> rates = devices.ceilings(devices.find("MI355X", devices.load()), "bf16", "achieved")
    >>> model = models.find("ZAYA1-8B")
    >>> work = step.Workload(model, batch=16, context_tokens=32768, branches=(1, 9))
    >>> seconds = step.pass_seconds(work, rates)  # the ideal time of one pass
    >>> accepting = acceptance.from_options(16, 17, mean=4.6)
    >>> best = plan.best_branches(accepting, 2)[0]  # its branches and tokens_per_pass

costs      flops, exponentials and bytes of each op, shared with `blockdraft.bench`
launches   kernels that a call of each op starts
workload   what a pass is made of; step: its ops and their time
blocks     the draft blocks that are free
acceptance, plan, simulate: which branches to spend proposals on
assembly, isa: what the compilers made of the kernels
"""
