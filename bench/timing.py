"""How calls are timed: interleaved and repeated on the CPU, by graph replay and events on a GPU."""

import statistics
import time
from collections.abc import Callable

import torch

# Samples disagree if their median absolute deviation is a larger fraction of their median.
UNSTEADY = 0.15
SETTLING, SAMPLE = 12e-3, 3e-3  # seconds of a short call, untimed and timed


def median_and_mad(samples: list[float]) -> tuple[float, float]:
    middle = statistics.median(samples)
    return middle, statistics.median(abs(s - middle) for s in samples)


def disagree(median: float, mad: float) -> bool:
    """Whether the samples are too far apart for their median to be trusted."""
    return mad > UNSTEADY * median


def interleaved(
    calls: list[Callable], seconds: float, rounds: tuple[int, int] = (3, 50)
) -> list[list[float]]:
    """Milliseconds of each call, sampled in turn (A B C A B C ...), so that a drift of the
    machine's speed affects all alike.

    Each call is warmed up. About `seconds` are spent on each call, within `rounds` samples; a
    sample of a short call is the mean of enough repetitions to last a few milliseconds. Untimed
    calls precede each sample, so that no sample includes the cost of what another call left in the
    caches, such as lines that have to be written back: that takes up to 10 milliseconds.
    """
    repeats, expected = [], []
    for call in calls:
        call()
        once = min(max(_seconds(call), 1e-7) for _ in range(3))
        untimed, timed = max(1, int(SETTLING / once)), max(1, min(1000, int(SAMPLE / once)))
        repeats.append((untimed, timed))
        expected.append(once * (untimed + timed))
    count = int(min(max(seconds * len(calls) / sum(expected), rounds[0]), rounds[1]))
    samples = [[] for _ in calls]
    for _ in range(count):
        for own, call, (untimed, repeat) in zip(samples, calls, repeats):
            for _ in range(untimed):
                call()
            began = time.perf_counter()
            for _ in range(repeat):
                call()
            own.append((time.perf_counter() - began) / repeat * 1e3)
    return samples


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def on_gpu(copies: list[Callable], rounds: int = 30) -> list[float]:
    """Milliseconds of one call on a GPU. `copies` are the same call on different buffers, together
    larger than the last-level cache, so that no call finds its inputs there. Replays graphs if the
    call can be captured, else launches it."""
    for call in copies:
        call()
    torch.cuda.synchronize()
    plays = [_captured(call) for call in copies]
    samples = []
    for i in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        plays[i % len(plays)]()
        stop.record()
        stop.synchronize()
        samples.append(start.elapsed_time(stop))
    return samples


def _captured(call: Callable) -> Callable:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # a call that synchronises or allocates cannot be captured
        torch.cuda.synchronize()
        return call
    return graph.replay
