"""The tiny model's trainer: it learns, a resumed run is the same, and what it exports decodes."""

import dataclasses
import functools
import json

import pytest
import torch
from click.testing import CliRunner

from blockdraft import BlockDecoder, BlockLayout, Request
from blockdraft.data import HELD_OUT
from blockdraft.models.zaya import ZayaModel
from blockdraft.train import corpus, losses, optimizer
from blockdraft.train import run as training
from blockdraft.train.command import main
from blockdraft.train.evaluate import evaluate
from blockdraft.train.recipe import ABLATIONS, Recipe, refining

# plain steps, steps with proposals, the acceptance phase, and longer sequences
SMALL = Recipe(
    steps=8,
    batch=2,
    length=48,
    plain=0.25,
    long=0.25,
    stretch=2,
    accept=0.5,
    blocks=(4, 6),
    experts=2,
    tests=False,
)


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    files = corpus.held_out_files()[:2]
    monkeypatch.setattr(corpus, "training_files", lambda tests: files)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are too small for more
    yield
    torch.set_num_threads(threads)


def test_held_out_files_and_their_tests_are_not_trained_on(monkeypatch):
    monkeypatch.undo()
    held_out = HELD_OUT | {f"test_{name}" for name in HELD_OUT}
    with_tests, without = (corpus.training_files(tests) for tests in (True, False))
    assert not held_out & {path.name for path in with_tests}
    assert set(without) < set(with_tests) and len(without) > 100
    assert {path.name for path in corpus.held_out_files()} == HELD_OUT


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole, first = training.Run(SMALL), training.Run(SMALL)
    training.train(whole, tmp_path / "whole", 100, lambda run: None)
    for _ in range(5):
        first.step()
    (tmp_path / "part").mkdir()
    first.save(tmp_path / "part")
    second = training.Run.resume(tmp_path / "part")
    assert second.done == 5 and second.recipe == SMALL
    training.train(second, tmp_path / "part", 100, lambda run: None)
    # not to the bit: torch's products round by how their operands lie in memory
    for name, tensor in whole.tensors.items():
        assert (tensor - second.tensors[name]).abs().max() < 2e-4, name
    assert whole.averages == pytest.approx(second.averages, rel=1e-3)


def test_it_learns():
    run = training.Run(dataclasses.replace(SMALL, steps=40, batch=4, plain=0.5))
    seen = []
    for _ in range(40):
        run.step()
        seen.append(run.averages["plain"])
    assert seen[-1] < seen[0] - 0.5 and run.averages["accepted"] > 0


def test_the_export_decodes_and_is_evaluated(tmp_path):
    run = training.Run(SMALL)
    for _ in range(3):
        run.step()
    run.save(tmp_path)  # beside the model, whose part it is not
    assert run.export(tmp_path) > 1
    model = ZayaModel.load(tmp_path, torch.float32)
    requests = [Request(list(b"import "), 12, temperature=0.0)]
    block, plain = (
        BlockDecoder(model, layout).generate(requests)[0].tokens
        for layout in (BlockLayout.tidar(6, P=2), BlockLayout.autoregressive())
    )
    assert block == plain and len(block) == 12
    found = evaluate(tmp_path, blocks=(4,), length=64, batches=1)
    each = found.blocks[4]
    assert 2 < found.plain < 7 and len(each.loss) == len(each.sampled) == 4
    assert all(0 <= p <= 1.001 for p in (*each.sampled, *each.greedy, *each.text))
    assert all(1 <= tokens <= 4.001 for tokens in each.tokens.values())
    shown = CliRunner().invoke(main, ["evaluate", "--help"])
    assert shown.exit_code == 0 and "held-out files" in shown.output


def test_ablations_are_trained_compared_and_resumed(tmp_path, monkeypatch):
    small = dataclasses.asdict(SMALL)
    del small["steps"], small["seed"]
    changes = {"full": small, "library's tests, none": {**small, "distil": 0.0}}
    monkeypatch.setattr("blockdraft.train.command.ABLATIONS", changes)
    little = functools.partial(evaluate, blocks=(4,), length=64, batches=1)
    monkeypatch.setattr("blockdraft.train.evaluate.evaluate", little)
    path = tmp_path / "found.json"
    arguments = ["ablate", str(tmp_path / "out"), "--steps", "3", "--json", str(path)]
    first, second = (CliRunner().invoke(main, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    assert all(f"{name} " in first.stdout for name in changes)
    assert "step 3 of 3" in second.output and first.stdout == second.stdout
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "full",
        "library-s-tests-none",
    }
    found = json.loads(path.read_text())
    assert list(found) == list(changes) and len(found["full"]["blocks"]["4"]["loss"]) == 4
    assert found["full"] != found["library's tests, none"]


def test_a_run_goes_on_from_a_model_s_weights_and_skips_no_expert(tmp_path):
    first = training.Run(SMALL)
    first.step()
    first.export(tmp_path)
    run = training.Run(refining(SMALL, SMALL.experts), tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    kept = first.tensors[name].detach().bfloat16().float()
    assert torch.equal(run.tensors[name], kept)
    for biases in (t for n, t in run.tensors.items() if n.endswith("balancing_biases")):
        assert biases[-1] == -1 and biases[:-1].mean().abs() < 1e-6
    with pytest.raises(ValueError, match="start: expected the recipe's shapes.*experts"):
        training.Run(refining(SMALL, SMALL.experts + 1), tmp_path)


def test_expected_length_counts_what_is_accepted_in_a_row():
    accepted = torch.tensor([[0.3, 0.5, 0.5, 1.0], [0.0, 1.0, 0.0, 1.0]])
    assert losses.expected_length(accepted).tolist() == [0.5 + 0.25 + 0.25, 1.0]


def test_agreement_is_the_probability_of_acceptance():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    assert losses.agreement(p.log(), q.log()).item() == pytest.approx(0.6)


@pytest.mark.parametrize("shape", [(20, 12), (3, 8, 16)])
def test_muon_s_updates_are_nearly_orthogonal(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimizer.orthogonal(x))
    assert values.min() > 0.3 and values.max() < 1.4


def test_every_ablation_changes_the_recipe():
    recipes = [dataclasses.replace(Recipe(), **changes) for changes in ABLATIONS.values()]
    assert recipes[0] == Recipe() and len(set(recipes)) == len(recipes)
