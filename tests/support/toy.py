"""A model so small that all its decodes can be enumerated: a second-order Markov chain over two
tokens. Its drafter is a copy with noise."""

from types import SimpleNamespace

import torch

MASK = 2


class ToyModel:
    """`hidden` is an index into a table of logits: by context (two tokens) and, for mask rows, by
    mask offset."""

    config = SimpleNamespace(vocab_size=3, num_valid_vocab=2, mask_token_id=MASK)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, mask_rows):
        generator = torch.Generator().manual_seed(3)
        self.target = torch.randn(4, 2, generator=generator)
        drafts = self.target[:, None] + torch.randn(4, mask_rows, 2, generator=generator)
        table = torch.cat([self.target, drafts.flatten(0, 1)])
        self.table = torch.cat([table, torch.zeros(len(table), 1)], 1)
        self.mask_rows = mask_rows

    def new_cache(self, requests, max_tokens, page, pages):
        zero = torch.zeros(requests, dtype=torch.int32)
        cache = SimpleNamespace(prefix_lens=zero.clone(), last=zero.long(), opened=set())

        def open(request, tokens):
            cache.opened.add(request)
            cache.prefix_lens[request] = cache.last[request] = 0

        cache.open, cache.close = open, cache.opened.remove
        return cache

    def prefill(self, prompts, cache, chunk):
        cache.prefix_lens += torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
        last = torch.tensor([prompt[-1] if prompt else -1 for prompt in prompts])
        cache.last = torch.where(last >= 0, last, cache.last)

    def plan(self, inputs, cache):
        return ToyPass(self, inputs, cache)


class ToyPass:
    def __init__(self, model, inputs, cache):
        self.model, self.inputs, self.cache = model, inputs, cache
        self.logits, self.draft_logits = (
            torch.zeros(*rows.shape, 3) for rows in (inputs.verify_rows, inputs.draft_rows)
        )
        self.hidden = None

    def _write(self, logits, rows):
        logits.copy_(self.model.table[self.hidden[rows.long()]])

    def run(self):
        rows, cache = self.inputs.rows, self.cache
        masks = rows.branch.shape[1] * rows.mask_rows
        tokens = self.inputs.tokens.unflatten(0, (len(rows.branch), -1)).long()
        verify = self.tokens = tokens[:, : tokens.shape[1] - masks]
        context = torch.cat([cache.last[:, None], verify[:, :-1]], 1) * 2 + verify.clamp(max=1)
        # A proposal of branch c follows verify row c-1, although other rows are between them.
        root = context.gather(1, rows.branch.clamp(min=1).long() - 1)
        drafted = 4 + root[..., None] * self.model.mask_rows + torch.arange(rows.mask_rows)
        self.hidden = torch.cat([context, drafted.flatten(1)], 1).flatten()
        self._write(self.logits, self.inputs.verify_rows)

    def draft(self):
        self._write(self.draft_logits, self.inputs.draft_rows)

    def commit(self):
        accepted, cache = self.inputs.accepted, self.cache
        kept = self.tokens.gather(1, accepted.clamp(min=0).long()[:, None])[:, 0]
        cache.last = torch.where(accepted >= 0, kept, cache.last)
        cache.prefix_lens += accepted + 1
