"""What a trained drafter is worth on text that it has never seen."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table

from ..layout import BlockLayout
from ..models.checkpoint import read
from ..models.config import ZayaConfig
from . import corpus
from .forward import draw, logits_of
from .losses import agreement, expected_length, replaced

WAYS = ("at temperature 1", "greedy", "of the text itself")  # how drafts are accepted


class ByOffset(NamedTuple):
    """Of proposals of M masks, by mask offset [M] (offset 0 stands for the anchor, which is no
    draft). loss: nats a token; sampled: the probability that a draft is accepted at temperature 1;
    greedy: that both heads' best tokens agree; text: that the best draft is the file's own token.
    tokens: a forward, by the three ways of acceptance, after the drafts before were accepted."""

    loss: list[float]
    sampled: list[float]
    greedy: list[float]
    text: list[float]
    tokens: dict[str, float]


class Evaluation(NamedTuple):
    plain: float  # nats a token of the autoregressive head
    blocks: dict[int, ByOffset]

    def asdict(self) -> dict[str, object]:
        return dict(plain=self.plain, blocks={m: b._asdict() for m, b in self.blocks.items()})


@torch.no_grad()
def evaluate(
    folder: Path, blocks: tuple[int, ...] = (4, 8, 16), length: int = 512, batches: int = 8
) -> Evaluation:
    """On pieces of the held-out files, of `length` tokens, 8 at a time."""
    config = ZayaConfig.load(folder)
    tensors = read(folder, torch.float32, "cpu")
    data = corpus.tokens(corpus.held_out_files())
    plain, found = [], {}
    for block in blocks:
        layout = BlockLayout(length - 1, block, length // block)
        sums: list[list[torch.Tensor]] = [[], [], [], [], []]
        for seed in range(batches):
            drawn = draw(data, layout, 8, torch.Generator().manual_seed(seed))
            verify, masks, _ = logits_of(tensors, config, layout, drawn)
            plain.append(F.cross_entropy(verify.flatten(0, 1), drawn.clean[:, 1:].flatten()))
            place = replaced(drawn, block)
            target, draft = (t.log_softmax(-1) for t in (verify[:, place - 1], masks))
            text = drawn.clean[:, place]
            best = draft.argmax(-1)
            sampled = agreement(target, draft)
            greedy = (best == target.argmax(-1)).float()
            true = (best == text).float()
            loss = -draft.gather(-1, text[..., None])[..., 0]
            lengths = torch.stack([expected_length(a).mean() for a in (sampled, greedy, true)])
            for values, each in zip(sums, (loss, sampled, greedy, true)):
                values.append(each.mean((0, 1)))
            sums[4].append(1 + lengths)
        *by_offset, tokens = (torch.stack(each).mean(0).tolist() for each in sums)
        found[block] = ByOffset(*by_offset, dict(zip(WAYS, tokens)))
    return Evaluation(torch.stack(plain).mean().item(), found)


def tables(found: Evaluation) -> list[Table]:
    out = []
    for block, each in found.blocks.items():
        tokens = ", ".join(f"{count:.2f} {name}" for name, count in each.tokens.items())
        table = Table(
            title=f"{block} masks: tokens a forward {tokens}", title_justify="left", box=None
        )
        for name in ("offset", "nats", "accepted at T = 1", "greedy", "text"):
            table.add_column(name, justify="right")
        for m in range(block):
            row = (each.loss[m], each.sampled[m], each.greedy[m], each.text[m])
            table.add_row(str(m), *(f"{value:.3f}" for value in row))
        out.append(table)
    return out


def comparison(found: dict[str, Evaluation]) -> Table:
    """Of several models: the losses of the longest block by a few offsets, and tokens a forward by
    the length of the block. Where a head is unsure, much is accepted: the text itself is as hard
    for every model."""
    blocks = list(next(iter(found.values())).blocks)
    longest = blocks[-1]
    offsets = [m for m in (1, 4, 15) if m < longest]
    table = Table(
        box=None,
        title=f"nats of the autoregressive head and of {longest} masks by offset; tokens a forward",
        caption=f"M masks, sampled at T = 1; text: drafts of {longest} masks that are the file's",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in ("head", *map(str, offsets), *(f"M={block}" for block in blocks), "text"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in found.items():
        last = each.blocks[longest]
        losses = each.plain, *(last.loss[m] for m in offsets)
        tokens = *(b.tokens[WAYS[0]] for b in each.blocks.values()), last.tokens[WAYS[-1]]
        table.add_row(name, *(f"{x:.2f}" for x in losses), *(f"{x:.2f}" for x in tokens))
    return table
