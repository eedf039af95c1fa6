"""What a batch's requests change of their logits before these become distributions, in tensors that
stay while their values change: penalties, whose counts follow what is emitted, and masks of allowed
tokens."""

from collections.abc import Sequence

import torch

from .contract import Check
from .types import Penalties, Request, words_of


class PenaltyTable:
    """The slots' `Penalties`. A request without any has factors that change nothing."""

    # of `counts`, as `Penalties` reads them; an untouched id has no count
    _UNTOUCHED, _BIASED, _UNUSED = -2, -1, 2**31 - 1

    def __init__(self, capacity: int, vocab: int, device: torch.device) -> None:
        def full(value: float, *shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((capacity, *shape), value, dtype=dtype, device=device)

        width = -(-vocab // 32)
        # whole words of ids
        self._counts = full(self._UNTOUCHED, 32 * width, dtype=torch.int32)
        self._place = torch.arange(32, device=device)
        self.now = Penalties(
            touched=full(0, width, dtype=torch.int32),
            counts=self._counts[:, :vocab],
            repetition=full(1, dtype=torch.float32),
            presence=full(0, dtype=torch.float32),
            frequency=full(0, dtype=torch.float32),
            bias_ids=full(self._UNUSED, 1, dtype=torch.int32),
            bias=full(0, 1, dtype=torch.float32),
        )

    def write(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        """Set the slots' penalties, as they are before the first token is emitted."""
        self._widen(max(len(r.logit_bias) for r in requests))
        now, device = self.now, self._counts.device
        for slot, request in zip(slots, requests):
            ids = sorted(request.logit_bias)
            for tensor, values in (
                (now.bias_ids, ids),
                (now.bias, [request.logit_bias[i] for i in ids]),
            ):
                rest = [self._UNUSED] * (tensor.shape[1] - len(ids))
                tensor[slot] = torch.tensor(values + rest, dtype=tensor.dtype).to(device)
            for name in ("repetition", "presence", "frequency"):
                getattr(now, name)[slot] = getattr(request, f"{name}_penalty")
            counts = self._counts[slot]
            counts.fill_(self._UNTOUCHED)
            counts[torch.tensor(ids, dtype=torch.long).to(device)] = self._BIASED
            counts[torch.tensor(request.prompt).to(device)] = 0
            now.touched[slot] = words_of(counts > self._UNTOUCHED)

    def count(self, tokens: torch.Tensor, last: torch.Tensor) -> None:
        """Count tokens [B,V] up to column last[b] as emitted. (What becomes of the counts of a
        slot that idles does not matter.)"""
        live = torch.arange(tokens.shape[1], device=tokens.device) <= last[:, None]
        ids = torch.where(live, tokens, tokens[:, :1]).clamp(min=0).long()
        # an id that occurs twice is written twice alike
        self._counts.scatter_(1, ids, self._counts.gather(1, ids).clamp(min=0))
        self._counts.scatter_add_(1, ids, live.int())
        word = ids // 32
        near = (word[..., None] * 32 + self._place).flatten(1)
        touched = self._counts.gather(1, near) > self._UNTOUCHED
        self.now.touched.scatter_(1, word, words_of(touched))

    def _widen(self, biases: int) -> None:
        """Make room for so many biases of each request."""
        more = biases - self.now.bias.shape[1]
        if more > 0:
            pad = torch.nn.functional.pad
            self.now = self.now._replace(
                bias_ids=pad(self.now.bias_ids, (0, more), value=self._UNUSED),
                bias=pad(self.now.bias, (0, more)),
            )


class MaskTable:
    """The words of the ids that each slot's rows allow: int32 [B,V,W] of verify rows, and [B,1,W]
    of draft rows, which only know the masks that never change."""

    def __init__(self, capacity: int, rows: int, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self.verify = torch.full(
            (capacity, rows, -(-vocab // 32)), -1, dtype=torch.int32, device=device
        )
        self.draft = self.verify[:, :1].clone()

    def write(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        for slot, request in zip(slots, requests):
            if isinstance(request.allowed, (list, tuple)):
                ids = torch.zeros(self.vocab, dtype=torch.bool)
                ids[list(request.allowed)] = True
                words = words_of(ids).to(self.verify.device)
            else:
                words = -1
            self.verify[slot] = self.draft[slot] = words

    def ask(self, slot: int, request: Request, emitted: list[int], drafts: list[int]) -> None:
        """Set the verify rows of a request that has a function for them."""
        words = torch.as_tensor(request.allowed(emitted, drafts))
        shape = [len(drafts) + 1, self.verify.shape[-1]]
        fits = words.dtype == torch.int32 and list(words.shape) == shape
        got = f"{words.dtype} {list(words.shape)}"
        Check("Request").need(fits, "allowed", f"a function that returns int32 {shape}", got)
        self.verify[slot, : len(words)] = words
