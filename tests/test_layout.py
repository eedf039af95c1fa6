"""Positions, parents and masks of packed rows, by hand."""

import pytest
import torch

from blockdraft import BlockLayout, Rows
from blockdraft.layout import ancestors


def test_presets():
    tidar, zyphra = BlockLayout.tidar(16), BlockLayout.zyphra(16)
    assert (tidar.K, tidar.V, tidar.M, tidar.P, tidar.rows) == (15, 16, 16, 16, 272)
    assert (zyphra.K, zyphra.V, zyphra.M, zyphra.P) == (16, 17, 17, 17)
    assert BlockLayout.zyphra(16, P=3).rows == 17 * 4
    assert BlockLayout.autoregressive().rows == 1


def test_positions_and_parents_by_hand():
    table = BlockLayout(K=2, M=3, P=3).table(3, [1, 2, 3])
    assert table.position.tolist() == [3, 4, 5, 4, 5, 6, 5, 6, 7, 6, 7, 8]
    assert table.parent.tolist() == [-1, 0, 1, 0, 3, 4, 1, 6, 7, 2, 9, 10]
    assert ancestors(table, 2)[:, 1:].tolist()[:4] == [[-1, -2], [0, -1], [1, 0], [0, -1]]


def test_mask_by_hand_is_not_lower_triangular():
    mask = BlockLayout(K=1, M=2, P=2).dense_mask(1, [2, 1]).int().tolist()
    assert mask == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 1, 1],
    ]


def test_causal_proposals_windows_and_dead_rows():
    layout = BlockLayout(K=2, M=2, P=2, bidirectional=False)
    table = layout.table(4, [1, -1], draft_len=1)
    assert table.live.tolist() == [True, True, False, True, True, False, False]
    mask = layout.dense_mask(4, [1, -1], draft_len=1, window=3)
    # row 0 stands at 4: a window of 3 shows it positions 2, 3 and itself
    assert mask[0].int().tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    # the proposal stands at 5 and 6, both see position 4 (verify row 0), and it is causal within
    assert mask[3].int().tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]
    assert mask[4].int().tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0]
    assert not mask[[2, 5, 6]].any()


def test_wide_proposal_ignores_the_window_within():
    mask = BlockLayout(K=0, M=5, P=1).dense_mask(3, [1], window=2)
    assert mask[1:, 4:].all() and not mask[1:, :3].any()


def test_prefill_chunks_of_unequal_length():
    rows = Rows.prefill(torch.tensor([5, 0, 2], dtype=torch.int32), [2, 0, 3], 5)
    table = rows.table(5)
    assert table.request.tolist() == [0, 0, 2, 2, 2]
    assert table.position.tolist() == [5, 6, 2, 3, 4]
    assert table.parent.tolist() == [-1, 0, -1, 2, 3]
    assert table.live.all()


@pytest.mark.parametrize(
    "bad, name",
    [
        (dict(K=-1, M=1, P=0), "K"),
        (dict(K=1, M=0, P=0), "M"),
        (dict(K=1, M=1, P=-1), "P"),
        (dict(K=1.5, M=1, P=1), "K"),
        (dict(K=True, M=1, P=1), "K"),
        (dict(K=1, M="2", P=1), "M"),
        (dict(K=1, M=1, P=None), "P"),
    ],
)
def test_bad_layout(bad, name):
    with pytest.raises(ValueError, match=f"^BlockLayout: {name}: expected an integer"):
        BlockLayout(**bad)


@pytest.mark.parametrize("block", [-1, "16", 16.0, True, None])
@pytest.mark.parametrize("preset", ["tidar", "zyphra"])
def test_bad_presets(preset, block):
    with pytest.raises(ValueError, match=f"^BlockLayout.{preset}: block: expected an integer"):
        getattr(BlockLayout, preset)(block)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="BlockLayout: bidirectional: expected True or False"):
        BlockLayout.tidar(4, bidirectional="no")
    with pytest.raises(ValueError, match="BlockLayout.tidar: block: expected an integer >= 1"):
        BlockLayout.tidar(0)
    with pytest.raises(ValueError, match="BlockLayout: P: expected an integer >= 0, got '3'"):
        BlockLayout.tidar(4, P="3")
    with pytest.raises(ValueError, match="BlockLayout.table: branch: expected 2 entries, got 1"):
        BlockLayout(2, 2, 2).table(0, [1])
