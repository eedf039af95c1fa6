"""How many draft blocks a device can afford, and why. Pure functions over frozen dataclasses; no
torch.

    from ..roofline import acceptance, devices, models, plan, step
    rates = devices.ceilings(devices.find("MI355X", devices.load()), "bf16", "achieved")
    work = step.Workload(models.find("ZAYA1-8B"), batch=16, context_tokens=32768, branches=(1, 9))
    step.pass_seconds(work, rates)                                  # of one pass, ideally
    law = acceptance.from_options(16, 17, mean=4.6)
    best = plan.best_branches(law, 2)[0]                            # branches, tokens_per_pass

costs: flops, exponentials and bytes of each op, shared with `blockdraft.bench`. step: a pass as a
list of them, and its time. blocks: the free blocks. acceptance, plan, simulate: which branches.
assembly, isa: what the compilers made of the kernels.
"""
