"""accept_drafts and sample_drafts: every backend decides as the reference does, but where that is in doubt by rounding."""

import pytest
from hypothesis import given, settings
from sampling_cases import cases, compare, compare_samples

from blockdraft import ops
from blockdraft.registry import OPS

BACKENDS = [name for name in OPS["accept_drafts"].backends if name != "reference"]


def by(backend):
    return lambda args, options, u: ops.accept_drafts(*args, uniforms=u, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases())
def test_decides_as_the_reference(case, backend):
    same, doubt = compare(case, by(backend))
    assert (same | doubt).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_exceptions_are_rare(backend):
    """5,000 random batches; decisions that differ within the margin are counted."""
    tally = dict(requests=0, exceptions=0)

    @settings(max_examples=5000, deadline=None, derandomize=True)
    @given(case=cases())
    def run(case):
        same, doubt = compare(case, by(backend))
        assert (same | doubt).all()
        tally["requests"] += len(same)
        tally["exceptions"] += int((~same).sum())

    run()
    print(f"{backend}: {tally['exceptions']} of {tally['requests']} requests decided otherwise within the margin")
    assert tally["exceptions"] <= 1e-3 * tally["requests"]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases())
def test_samples_as_the_reference(case, backend):
    compare_samples(case, lambda logits, length, how, u: ops.sample_drafts(logits, length, uniforms=u, backend=backend, **how))
