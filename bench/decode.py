"""Whole greedy decodes of the shipped model: block diffusion against autoregressive decoding in the
same process."""

import sysconfig
from pathlib import Path

import torch

from .. import BlockDecoder, BlockLayout, Request
from ..data import TINY
from ..models.zaya import ZayaModel
from ..roofline import costs
from .rows import DTYPES, Implementation, Row, own

CONTEXT, TOKENS = 128, 48


def cases(quick):
    return [dict(batch=1)] if quick else [dict(batch=b) for b in (1, 4, 16)]


def build(case, dtype, device):
    model = ZayaModel.load(TINY, DTYPES[dtype], device)
    source = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_bytes()
    prompts = [list(source[600 * i : 600 * i + CONTEXT]) for i in range(case["batch"])]
    work = [Request(prompt, TOKENS, temperature=0.0) for prompt in prompts]

    def blocks(proposals):
        decoder = BlockDecoder(model, BlockLayout.tidar(16, P=proposals))
        return lambda: [c.tokens for c in decoder.generate(work)]

    def autoregressive():
        decoder = BlockDecoder(model, BlockLayout.autoregressive())
        return lambda: [c.tokens for c in decoder.generate(work)]

    def transformers():
        from transformers import ZayaForCausalLM

        hf = ZayaForCausalLM.from_pretrained(TINY, dtype=DTYPES[dtype]).eval().to(device)
        ids = torch.tensor(prompts, device=device)
        banned = list(range(model.config.num_valid_vocab, model.config.vocab_size))
        return lambda: hf.generate(
            ids,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=256,
            suppress_tokens=banned,
        )[:, CONTEXT:].tolist()

    expected = autoregressive()()

    def check(tokens, slack):
        # in half precision another order of sums may flip a near tie; the beginning must still
        # agree
        whole = TOKENS if dtype == "float32" else 4
        assert [t[:whole] for t in tokens] == [t[:whole] for t in expected], (
            "tokens differ from autoregressive decoding"
        )

    # the limit is that of autoregressive decoding: active weights read once a token
    active = costs.active_weights(model.config)
    cost = TOKENS * costs.Cost(
        2 * active * case["batch"], 0, active * model.weights.embedding.element_size()
    )
    return Row(
        "decode",
        case,
        dtype,
        cost,
        [
            own("block P=3", blocks(3)),
            own("block P=16", blocks(16)),
            Implementation("autoregressive", autoregressive),
            Implementation("transformers generate", transformers),
        ],
        check,
    )
