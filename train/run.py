"""The training loop, and the checkpoints that it resumes from."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..layout import BlockLayout
from ..models.checkpoint import read
from ..models.config import ZayaConfig
from ..models.weights import is_scale, shapes
from . import corpus
from .forward import draw, logits_of
from .losses import losses
from .optimizer import Optimizer, Tensors, balance, rate
from .recipe import Recipe, config

BALANCING = 1e-3  # step of the balancing biases, at first


def initial(shape_of: dict[str, tuple[int, ...]], layers: int, seed: int) -> Tensors:
    """Random normal matrices; scales and temperatures of 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shape_of.items():
        if name.endswith("balancing_biases"):
            tensors[name] = torch.zeros(shape)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        elif is_scale(name):
            tensors[name] = torch.ones(shape)
        else:
            fan = math.prod(shape[1:]) if "conv" in name else shape[-1]
            std = 0.05 if "embed" in name else fan**-0.5
            if name.endswith(("o_proj.weight", "experts.down_proj")):
                std /= math.sqrt(2 * layers)
            tensors[name] = torch.randn(shape, generator=generator) * std
    return tensors


def bar_skip(tensors: Tensors) -> None:
    """No token skips its experts, as in released checkpoints: probabilities differ by less than the
    biases do. Otherwise whole layers learn to skip, since skipping is easily learned."""
    for name, tensor in tensors.items():
        if name.endswith("balancing_biases"):
            tensor[:-1] -= tensor[:-1].mean()
            tensor[-1] = -1.0


def is_learned(name: str) -> bool:
    return not name.endswith("balancing_biases")


class Run:
    """A training run, one `step` at a time. What a step draws follows from its number, so that a
    run resumed from `save` is the same run."""

    def __init__(self, recipe: Recipe, start: Path | None = None):
        """`start`: a folder with the model whose weights to begin with; None: random ones."""
        self.recipe = recipe
        self.config = ZayaConfig(**{k: v for k, v in config(recipe).items() if k != "model_type"})
        self.data = corpus.tokens(corpus.training_files(recipe.tests), recipe.seed)
        shape_of = shapes(self.config)
        if start is None:
            self.tensors = initial(shape_of, self.config.num_hidden_layers, recipe.seed)
        else:
            self.tensors = read(start, torch.float32)
            found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            if found != shape_of:
                differing = sorted({name for name, _ in found.items() ^ shape_of.items()})
                raise ValueError(
                    f"Run: start: expected the recipe's shapes, differing: {differing}"
                )
        bar_skip(self.tensors)
        learned = {n: t.requires_grad_() for n, t in self.tensors.items() if is_learned(n)}
        self.optimizer = Optimizer(learned, recipe.peak_lr, recipe.muon)
        self.done = 0
        self.averages: dict[str, float] = {}

    def step(self) -> None:
        recipe, share = self.recipe, self.done / self.recipe.steps
        generator = torch.Generator().manual_seed(recipe.seed * 2**32 + self.done)
        longer = recipe.stretch if share >= 1 - recipe.long else 1
        length, batch = recipe.length * longer, max(recipe.batch // longer, 1)
        if share < recipe.plain:
            layout, batch = BlockLayout(length - 1, 1, 0), 2 * batch
        else:
            pick = torch.randint(len(recipe.blocks), (), generator=generator).item()
            block = recipe.blocks[pick]
            # longer sequences have only twice the mask rows: attention is quadratic in all rows
            masks = recipe.length * (1 if longer == 1 else 2)
            layout = BlockLayout(length - 1, block, masks // block)
        drawn = draw(self.data, layout, batch, generator)
        verify, masks, loads = logits_of(self.tensors, self.config, layout, drawn)
        found = losses(verify, masks, drawn, recipe, share >= 1 - recipe.accept)
        (found.plain if found.masks is None else found.plain + found.masks).backward()
        self.optimizer.step(rate(self.done, recipe.steps))
        balance(self.tensors, loads, self.config, BALANCING * (1 - share))
        self.done += 1
        for name, value in found._asdict().items():
            if value is not None:
                last = self.averages.get(name, value.item())
                self.averages[name] = 0.98 * last + 0.02 * value.item()

    def save(self, folder: Path) -> None:
        """The checkpoint to resume from: run.state (safetensors), and the recipe."""
        state = {f"weight.{n}": t.detach() for n, t in self.tensors.items()}
        state |= self.optimizer.state()
        state = {name: t.contiguous() for name, t in state.items()}
        part = folder / "state.part"
        save_file(state, part, metadata={"step": str(self.done)})
        part.replace(folder / "run.state")
        kept = dict(step=self.done, recipe=asdict(self.recipe), averages=self.averages)
        (folder / "run.json").write_text(json.dumps(kept, indent=1) + "\n")

    @classmethod
    def resume(cls, folder: Path) -> "Run":
        kept = json.loads((folder / "run.json").read_text())
        kept["recipe"]["blocks"] = tuple(kept["recipe"]["blocks"])
        run = cls(Recipe(**kept["recipe"]))
        state = load_file(folder / "run.state")
        with torch.no_grad():
            for name, tensor in run.tensors.items():
                tensor.copy_(state[f"weight.{name}"])
        run.optimizer.load(state)
        run.done, run.averages = kept["step"], kept["averages"]
        return run

    def export(self, folder: Path) -> float:
        """The model as a Hugging Face checkpoint, bf16; returns its size in MB."""
        stored = {
            name: (t.detach().bfloat16() if is_learned(name) else t).contiguous()
            for name, t in self.tensors.items()
        }
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        described = {**config(self.recipe), "architectures": ["ZayaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n")
        return (folder / "model.safetensors").stat().st_size / 1e6


def train(run: Run, folder: Path, save_every: int, report: Callable[[Run], None]) -> None:
    """Take the steps that are left; `report` is called after each."""
    folder.mkdir(parents=True, exist_ok=True)
    while run.done < run.recipe.steps:
        run.step()
        report(run)
        if run.done % save_every == 0:
            run.save(folder)
    run.save(folder)
