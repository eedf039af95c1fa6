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

    def new_cache(self, max_tokens, page):
        zero = torch.zeros(len(max_tokens), dtype=torch.int32)
        return SimpleNamespace(
            prefix_lens=zero.clone(), last=zero.long(), max_tokens=max(max_tokens), tokens=None
        )

    def prefill(self, prompts, cache, chunk):
        cache.prefix_lens += torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
        cache.last = torch.tensor([prompt[-1] if prompt else 0 for prompt in prompts])

    def forward(self, tokens, rows, cache):
        masks = rows.branch.shape[1] * rows.mask_rows
        tokens = tokens.unflatten(0, (len(rows.branch), -1)).long()
        verify = cache.tokens = tokens[:, : tokens.shape[1] - masks]
        context = torch.cat([cache.last[:, None], verify[:, :-1]], 1) * 2 + verify.clamp(max=1)
        # A proposal of branch c follows verify row c-1, although other rows are between them.
        root = context.gather(1, rows.branch.clamp(min=1).long() - 1)
        drafted = 4 + root[..., None] * self.mask_rows + torch.arange(self.mask_rows)
        return torch.cat([context, drafted.flatten(1)], 1).flatten()[:, None].float()

    def logits(self, hidden):
        return self.table[hidden[..., 0].long()]

    def commit(self, accepted, rows, cache):
        kept = cache.tokens.gather(1, accepted.clamp(min=0).long()[:, None])[:, 0]
        cache.last = torch.where(accepted >= 0, kept, cache.last)
        cache.prefix_lens += accepted + 1
