"""Subtle mistakes in acceptance must fail the tests of its laws: each is put into the reference,
and into the C++ kernel.

(Uniforms keyed by token positions, and accepted tokens dropped, are caught by
test_decode_law.py.)"""

import ctypes
import shutil
import types
from pathlib import Path

import harness
import pytest
import torch
from laws import (
    Case,
    accept,
    breakpoints,
    constrained,
    distance,
    expected_law,
    kept_law,
    law_of,
    masks,
    penalised_law,
    penalties,
)
from sampling import accept_params

from blockdraft import Accepted
from blockdraft.reference import accept_drafts as reference
from blockdraft.types import NO_PENALTIES

# name: (rule, in reference/accept_drafts.py, in csrc/ops), each a replacement of one place
MUTANTS = {
    "inequality flipped": (
        "token",
        ("(uniforms[:, :K] * qx < px)", "(uniforms[:, :K] * qx > px)"),
        (
            "!(evidence.uniform_of(i) * evidence.q(i) < evidence.p(i))",
            "evidence.uniform_of(i) * evidence.q(i) < evidence.p(i)",
        ),
    ),
    "no clamp of the residual": (
        "token",
        ("q[row, a.clamp(max=K - 1)]).clamp(min=0)", "q[row, a.clamp(max=K - 1)]).abs()"),
        (
            "at.maximum(at.all(0.0f), of_p - of_q * at.all(ratio))",
            "at.maximum(of_q * at.all(ratio) - of_p, of_p - of_q * at.all(ratio))",
        ),
    ),
    "no clamp of the block's ratio": (
        "block",
        ("[:, i].clamp(max=1.0)", "[:, i]"),
        (
            "least(carry * ratio, 1.0)",
            "carry * ratio",
        ),
    ),
    "one uniform for two purposes": (
        "token",
        ("y = draw(mass, uniforms[:, K])", "y = draw(mass, uniforms[:, 0])"),
        ("const double u = uniform_of(params_.drafts);", "const double u = uniform_of(0);"),
    ),
    "early break in block rule": (
        "block",
        (
            "taken = drafted[:, i] & (u[:, i] < h)",
            "taken = drafted[:, i] & (u[:, i] < h) & (a == i)",
        ),
        (
            "end - evidence.first(end, [&](int test) { return passes(end - 1 - test); })",
            "evidence.first(end, [&](int i) { return !passes(i); })",
        ),
    ),
    "residual without the block's scale": (
        "block",
        ("residual = (scale[:, None] * base -", "residual = (base -"),
        ("kept > 0 ? evidence.carry(kept - 1) : 1", "1"),
    ),
    "every row's mask is the first one's": (
        "token",
        ("disallowed(allowed, vocab)", "disallowed(allowed[:, :1], vocab)"),
        ("words(params_.allowed, request_, i)", "words(params_.allowed, request_, 0 * i)"),
    ),
    "no mask in the bonus row": (
        "block",
        (
            "banned = banned | disallowed(allowed, vocab)",
            "banned = banned | disallowed(allowed, vocab) & (torch.arange(V) < K)[:, None]",
        ),
        (
            "words(params_.allowed, request_, i)",
            "words(params_.allowed, request_, i == live_ ? 1 : i)",
        ),
    ),
    "min-p of the sum": (
        "token",
        ("*target_sampling)", "*target_sampling[:3], target_sampling.min_p / 3)"),
        ("log2_double(share)", "log2_double(share * p_.sum)"),
    ),
    "min-p only in p": (
        "token",
        ("draft_banned, *drafter_sampling)", "draft_banned, *drafter_sampling[:3])"),
        ("return params.drafter_sampling.of(request_);", "return {1, 0, 1, 0};"),
    ),
}


MUTANTS |= {
    "drafts without penalties of their own": (
        "token",
        (
            "verified = penalised(verified, penalties, x)",
            "verified = penalised(verified, penalties)",
        ),
        (", penalties(i)};", ", penalties(0)};"),
    ),
    "penalties of draft rows count drafts": (
        "block",
        (
            "draft_logits = penalised(draft_logits, penalties)",
            "draft_logits = penalised(draft_logits, penalties, x[:, :-1])",
        ),
        ("request_, i), penalties(0)};", "request_, i), penalties(i)};"),
    ),
}


def options_of(name, vocab):
    """What a mutant's test asks of sampling, and the laws that it then has: (options of accept, the
    target's and the drafter's distribution after a prefix)."""
    if name and "mask" in name:
        return dict(allowed=lambda x: masks(x, x.shape[1] + 1, vocab)), constrained, None
    if name and "penalties" in name:
        return (
            dict(penalties=lambda x: penalties(x, vocab)),
            penalised_law,
            lambda logits: penalised_law(logits, follow=False),
        )
    if name and "min-p" in name:
        how = dict(min_p=0.15)
        kept = lambda logits: lambda prefix: kept_law(logits[prefix], **how)  # noqa: E731
        return dict(sampling=how), kept, kept
    return {}, None, None


def mutated(text: str, change: tuple[str, str]) -> str:
    assert text.count(change[0]) == 1, f"the mutant's place moved: {change[0]}"
    return text.replace(*change)


def calling(function):
    """`function`(target_logits, ..., uniforms, target_sampling, ...), the reference's signature,
    where tests call an op."""

    def run(
        op,
        backend,
        logits,
        x,
        length,
        branch,
        mask_rows,
        *,
        seed,
        position,
        target_sampling,
        draft_logits,
        drafter,
        rule,
        mix,
        uniforms,
        allowed=None,
        penalties=NO_PENALTIES,
    ):
        return function(
            logits,
            x,
            length,
            branch,
            mask_rows,
            uniforms,
            target_sampling,
            target_sampling,
            penalties=penalties,
            allowed=allowed,
            mix=mix,
            draft_logits=draft_logits,
            dirac=drafter == "greedy",
            rule=rule,
        )

    return run


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_mutants_of_the_reference(name):
    """Through exact enumeration, the test of losslessness; unchanged (None) it passes."""
    path = Path(reference.__code__.co_filename)
    rule, change, _ = MUTANTS[name] if name else ("block", ("", ""), None)
    module = types.ModuleType("mutant")
    module.__package__ = "blockdraft.reference"
    exec(
        compile(mutated(path.read_text(), change) if name else path.read_text(), path, "exec"),
        module.__dict__,
    )
    worst = 0.0
    for seed in range(2):
        case = Case(3, 2, seed)
        options, of_target, of_drafter = options_of(name, 3)
        if options:
            options |= dict(rows=of_target(case.p), drawn=of_drafter and of_drafter(case.q))
        law, _ = law_of(case, rule=rule, run=calling(module.accept_drafts), **options)
        worst = max(worst, distance(law, expected_law(case, 2, options.get("rows"))))
    print(f"{name}: the law is off by {worst:.1e}")
    assert worst > 1e-3 if name else worst < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_mutants_of_the_kernel(name, tmp_path):
    """At the breakpoints of the reference's law."""
    rule, _, change = MUTANTS[name] if name else ("block", None, None)
    csrc = tmp_path / "csrc"
    shutil.copytree(harness.ROOT / "csrc", csrc)
    if name:
        headers = [csrc / f"ops/accept_drafts/{stem}.h" for stem in ("rules", "residual", "body")]
        headers.append(csrc / "ops/sampling/truncate.h")
        (header,) = [header for header in headers if change[0] in header.read_text()]
        header.write_text(mutated(header.read_text(), change))
    library = harness.built(
        [
            harness.ROOT / "tests/support/sampling_checks.cpp",
            csrc / "ops/accept_drafts/cpu.cpp",
            csrc / "ops/sample_drafts/cpu.cpp",
        ],
        csrc,
    )

    def run(op, backend, logits, *args, **options):
        if backend == "reference":
            return op(logits, *args, backend=backend, **options)
        options |= dict(
            num_valid_vocab=logits.shape[-1], drafter_sampling=options["target_sampling"]
        )
        params, outputs, _kept = accept_params(logits, *args, **options)
        library.check_accept_drafts(0, 0, ctypes.byref(params), ctypes.c_uint64(1), -1)
        return outputs

    x, _, target, draft = Case(6, 2, 3).drafts()
    how = dict(rule=rule, **options_of(name, 6)[0])
    rows, uniforms = breakpoints(x, target, draft, 2, 1e-5, backend="reference", **how)
    want, got = (
        accept(x[rows], target[rows], draft[rows], uniforms, 2, backend=backend, run=run, **how)
        for backend in ("reference", "kernel")
    )
    wrong = (want.accepted != got.accepted) | (want.next_token != got.next_token)
    print(f"{name}: {int(wrong.sum())} of {len(wrong)} decisions differ")
    assert bool(wrong.any()) == bool(name)
    assert isinstance(got, Accepted) and torch.equal(got.status, torch.zeros_like(got.status))
