"""Requests that come to a batch, and leave it, at random."""

import random

import torch

from blockdraft import Request, words_of
from blockdraft.models.cache import OutOfPages


def never_twice(emitted, drafts):
    """A grammar over the vocabulary of 9: no token twice in a row."""
    allowed = torch.ones(len(drafts) + 1, 9, dtype=torch.bool)
    for i, row in enumerate(allowed):
        row[(emitted + drafts[:i])[-1:]] = False
    return words_of(allowed)


def requests(count, seed=0, longest=40):
    """Requests that differ in length, in every option, and in whether they stop."""
    draw = random.Random(seed)
    return [
        Request(
            [draw.randrange(8) for _ in range(draw.randint(1, 30))],
            draw.randint(1, longest),
            seed=draw.randrange(2**40),
            temperature=draw.choice([0.0, 0.7, 1.0]),
            top_k=draw.choice([0, 0, 3]),
            top_p=draw.choice([1.0, 1.0, 0.8]),
            min_p=draw.choice([0.0, 0.0, 0.1]),
            mix=draw.choice([1.0, 1.0, 0.5]),
            top_logprobs=draw.choice([0, 0, 1, 4]),
            stop=draw.choice([(), (), (2,), (5, 7, 1)]),
            repetition_penalty=draw.choice([1.0, 1.0, 1.5]),
            frequency_penalty=draw.choice([0.0, 0.0, 0.3]),
            logit_bias=draw.choice([{}, {}, {}, {3: 0.5}, {7: 1.0, 0: -1.0}]),
            allowed=draw.choice([None, None, (0, 2, 3, 5), never_twice]),
        )
        for _ in range(count)
    ]


def soak(decoder, work, capacity, pages, steps, seed=0):
    """Add the requests at random times, and abort some; returns each one's completion."""
    draw = random.Random(seed)
    batch = decoder.batch(capacity, max_tokens=80, pages=pages)
    free = batch.cache.free_pages
    waiting, running, done = list(enumerate(work)), {}, {}
    refused = 0
    for _ in range(steps):
        while waiting and draw.random() < 0.5:
            i, request = waiting[0]
            try:
                (ticket,) = batch.add(request)
            except (OutOfPages, OverflowError):
                refused += 1
                break
            running[ticket] = i
            waiting.pop(0)
        if running and draw.random() < 0.1:
            ticket = draw.choice(list(running))
            done[running.pop(ticket)] = batch.abort(ticket)
        for ticket, completion in batch.step(draw.choice([1, 1, 3])).items():
            done[running.pop(ticket)] = completion
        if not waiting and not running:
            break
    assert batch.active == 0 and not waiting and not running
    assert batch.cache.free_pages == free
    return done, refused
