"""Whole greedy decodes of the shipped model: block diffusion compared with autoregressive decoding
in the same process."""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import BlockDecoder, BlockLayout, Request
from ..choose import choose_layout
from ..data import TINY
from ..models.config import ZayaConfig
from ..models.zaya import ZayaModel
from ..roofline import costs
from ..roofline.costs import Cost
from .case import Implementation, Prepared, own

CONTEXT, TOKENS = 128, 48
Tokens = list[list[int]]


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(batch=1)] if quick else [dict(batch=b) for b in (1, 4, 16, 32)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    """The cost of autoregressive decoding, which reads the active weights once per token."""
    active = costs.active_weights(ZayaConfig.load(TINY))
    return TOKENS * Cost(2 * active * parameters["batch"], 0, active * itemsize)


def prompts(batch: int) -> Tokens:
    source = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_bytes()
    apart = min(600, (len(source) - CONTEXT) // batch)
    return [list(source[apart * i : apart * i + CONTEXT]) for i in range(batch)]


def requests(texts: Tokens) -> list[Request]:
    return [Request(text, TOKENS, temperature=0.0) for text in texts]


def decode(decoder: BlockDecoder, texts: Tokens) -> Callable[[], Tokens]:
    work = requests(texts)
    return lambda: [completion.tokens for completion in decoder.generate(work)]


def transformers(
    texts: Tokens, config: ZayaConfig, dtype: torch.dtype, device: str
) -> Callable[[], Tokens]:
    from transformers import ZayaForCausalLM

    model = ZayaForCausalLM.from_pretrained(TINY, dtype=dtype).eval().to(device)
    ids = torch.tensor(texts, device=device)
    banned = list(range(config.num_valid_vocab, config.vocab_size))
    options = dict(
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=256,
        suppress_tokens=banned,
    )
    return lambda: model.generate(ids, **options)[:, CONTEXT:].tolist()


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    model = ZayaModel.load(TINY, dtype, device)
    texts = prompts(parameters["batch"])

    def autoregressive() -> Callable[[], Tokens]:
        return decode(BlockDecoder(model, BlockLayout.autoregressive()), texts)

    def chosen() -> Callable[[], Tokens]:
        best = choose_layout(model, requests(texts))[0]
        return decode(BlockDecoder(model, best.layout, branches=best.branches), texts)

    def blocks(proposals: int) -> Callable[[], Tokens]:
        return decode(BlockDecoder(model, BlockLayout.tidar(16, P=proposals)), texts)

    expected = autoregressive()()
    # In half precision another order of sums may decide a near tie differently, but the first
    # tokens must agree.
    compared = TOKENS if dtype == torch.float32 else 4

    def check(tokens: Tokens, slack: float) -> None:
        same = [t[:compared] for t in tokens] == [t[:compared] for t in expected]
        assert same, "tokens differ from autoregressive decoding"

    return Prepared(
        [
            Implementation("block chosen", chosen, is_peer=False),
            own("block P=3", blocks(3)),
            own("block P=16", blocks(16)),
            Implementation("autoregressive", autoregressive),
            Implementation(
                "transformers generate", lambda: transformers(texts, model.config, dtype, device)
            ),
        ],
        check,
    )
