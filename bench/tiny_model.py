"""Train the byte-level ZAYA that ships in `blockdraft/data`, with TiDAR's objective, on the
standard library of the running Python.

    python -m blockdraft.bench.tiny_model OUT_FOLDER

A training sequence is one BlockLayout with an empty prefix: S clean tokens as verify rows
(autoregressive loss) and proposals at random branches (loss on the tokens that the mask rows
replace), all in one pass under the structured mask.
"""

import json
import math
import random
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import click
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .. import reference
from ..data import BYTE_EOS, BYTE_MASK, BYTE_VOCAB, HELD_OUT
from ..layout import BlockLayout, own_mask
from ..models.config import ZayaConfig
from ..models.weights import assemble, shapes
from ..models.zaya import ZayaModel

CONFIG = dict(
    model_type="zaya",
    vocab_size=BYTE_VOCAB,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    moe_intermediate_size=192,
    num_experts=4,
    router_hidden_size=32,
    max_position_embeddings=8192,
    rope_parameters={
        "hybrid": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    },
    eos_token_id=BYTE_EOS,
    mask_token_id=BYTE_MASK,
    num_valid_vocab=BYTE_MASK,
)
MASK_ROWS = 16


def corpus() -> list[bytes]:
    """Every module of the standard library except its tests, installed packages and the held-out
    modules."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "__pycache__",
        "lib2to3",
    }
    paths = sorted(
        p
        for p in root.rglob("*.py")
        if not skip & set(p.relative_to(root).parts) and p.name not in HELD_OUT
    )
    return [p.read_bytes() for p in paths]


def initial(config: ZayaConfig, generator) -> dict[str, torch.Tensor]:
    """Random normal matrices; scales and temperatures of 1."""
    tensors = {}
    for name, shape in shapes(config).items():
        if name.endswith("balancing_biases"):
            # All classes are equal. -1, since transformers resets that of skip to it.
            tensors[name] = torch.full(shape, -1.0)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        elif name.endswith(("norm.weight", "layernorm.weight", "_scale", "temp")):
            tensors[name] = torch.ones(shape)
        else:
            fan = math.prod(shape[1:]) if "conv" in name else shape[-1]
            std = 0.05 if "embed" in name else fan**-0.5
            if name.endswith(("o_proj.weight", "experts.down_proj")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            tensors[name] = torch.randn(shape, generator=generator) * std
    return tensors


class TrainingOps(SimpleNamespace):
    """The reference ops in differentiable form. Attention uses one dense mask, which all sequences
    of the batch share."""

    def __init__(self, rows):
        batch = len(rows.prefix_lens)
        table = rows.table(batch * rows.max_rows)
        first = type(table)(*(field[: rows.max_rows] for field in table))
        mask = own_mask(first, 0, rows.bidirectional)
        self.loads = []

        def attention(q, k, v, k_cache, v_cache, block_table, rows, scale, window):
            q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        def cca(*args, late_start=None):
            return reference.cca_qkv(*args[:13], late_start=late_start)

        def router(*args, **kwargs):
            out = reference.zaya_router(*args, **kwargs)
            self.loads.append(out[1])
            return out

        super().__init__(
            block_attention=attention,
            cca_qkv=cca,
            zaya_router=router,
            fused_moe=reference.fused_moe,
            linear=reference.linear,
            loads=self.loads,
        )


def batch_of(data, layout, size, generator):
    """The token of each row, the rows, and the target of each row."""
    clean_len = layout.V
    starts = torch.randint(len(data) - clean_len - 1, (size,), generator=generator)
    clean = data[starts[:, None] + torch.arange(clean_len + 1)].long()
    branch = (
        torch.randperm(clean_len - layout.M + 1, generator=generator)[: layout.P].sort().values + 1
    )
    masks = torch.full((size, layout.P * layout.M), BYTE_MASK)
    tokens = torch.cat([clean[:, :-1], masks], 1)
    targets = torch.cat(
        [clean[:, 1:], clean[:, (branch[:, None] + torch.arange(layout.M)).flatten()]], 1
    )
    i32 = dict(dtype=torch.int32)
    rows = layout.pack(
        torch.zeros(size, **i32),
        torch.full((size,), layout.K, **i32),
        branch.int().expand(size, -1),
        0,
    )
    return tokens.flatten(), rows, targets


def loss_of(tensors, config, tokens, rows, targets, clean_len):
    ops = TrainingOps(rows)
    model = ZayaModel(config, assemble(config, tensors), ops)
    logits = model.logits(model.forward(tokens, rows)).float()
    loss = F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
    ar, masked = loss[:, :clean_len].mean(), loss[:, clean_len:]
    return ar, masked.mean() if masked.numel() else None, ops.loads


def balance(tensors, loads, config, rate):
    """Moves the biases of each layer towards equal expert load (auxiliary-loss-free balancing);
    that of skip is not changed."""
    for i, experts in enumerate(loads):
        bias = tensors[f"model.layers.{i}.mlp.gate.balancing_biases"]
        share = torch.bincount(experts[experts >= 0].long(), minlength=config.num_experts) / len(
            experts
        )
        bias[:-1] += rate * torch.sign(share.mean() - share)


def train(steps, batch, length, ar_share, seed, peak_lr, report=print):
    config = ZayaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"})
    generator = torch.Generator().manual_seed(seed)
    random.seed(seed)
    files = corpus()
    random.shuffle(files)
    data = torch.cat([torch.tensor(list(f) + [BYTE_EOS], dtype=torch.int16) for f in files])
    parameters = sum(math.prod(shape) for shape in shapes(config).values())
    report(f"{len(files)} files, {len(data) / 1e6:.1f} MB, {parameters:,} parameters")
    tensors = initial(config, generator)
    learned = {
        n: t.requires_grad_() for n, t in tensors.items() if not n.endswith("balancing_biases")
    }
    matrices = [t for t in learned.values() if t.dim() > 1]
    vectors = [t for t in learned.values() if t.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_lr, total_steps=steps, pct_start=0.04, div_factor=20, final_div_factor=50
    )
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    averages = {}
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            proposals = 0 if step < ar_share * steps else length // MASK_ROWS
            layout = BlockLayout(length - 1, MASK_ROWS, proposals)
            ar, masked, loads = loss_of(
                tensors,
                config,
                *batch_of(data, layout, batch * (1 if proposals else 2), generator),
                length,
            )
            loss = ar if masked is None else ar + masked
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
            optimizer.step()
            schedule.step()
            balance(tensors, loads, config, 1e-3 * (1 - step / steps))
            for name, value in (("ar", ar), ("mask", masked)):
                if value is not None:
                    averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
            text = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
            progress.update(task, advance=1, description=text)
            if step % 100 == 99:
                report(f"step {step + 1}: {text} nats/byte")
    return {name: t.detach() for name, t in tensors.items()}


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=2200, show_default=True)
@click.option(
    "--batch",
    default=16,
    show_default=True,
    help="Sequences a step (twice as many without proposals).",
)
@click.option("--length", default=256, show_default=True, help="Clean tokens of a sequence.")
@click.option(
    "--ar-share",
    default=0.35,
    show_default=True,
    help="First share of the steps, trained without proposals.",
)
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(out: Path, steps, batch, length, ar_share, lr, seed):
    from safetensors.torch import save_file

    began = time.perf_counter()
    tensors = train(
        steps,
        batch,
        length,
        ar_share,
        seed,
        lr,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    out.mkdir(parents=True, exist_ok=True)
    stored = {
        n: t if n.endswith("balancing_biases") else t.to(torch.bfloat16) for n, t in tensors.items()
    }
    save_file(
        {n: t.contiguous() for n, t in stored.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["ZayaForCausalLM"]}, indent=1) + "\n"
    )
    size = (out / "model.safetensors").stat().st_size / 1e6
    minutes = (time.perf_counter() - began) / 60
    print(f"{out}: {size:.2f} MB after {minutes:.1f} min")


if __name__ == "__main__":
    main()
