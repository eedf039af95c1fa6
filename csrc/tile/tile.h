// The tile layer: what a kernel body may use. A body is written once against the names below and compiled for each target;
// host.h implements them with vector extensions for a CPU (cdna.h and sim.h are to implement the same names).
//
// A group (host: one thread; GPU: one workgroup) works on one item. It holds query columns in *panels* and walks over key
// tiles of at most kKeys rows. Queries are columns throughout, S^T = K Q^T and O^T += V^T P^T, so that the softmax of a query
// stays within a lane, neither product needs a transposed operand, and the scores of one product are the operand of the next.
//
//   kColumns, kKeys            columns of a panel; most rows of a key tile
//   Scratch                    memory of the group, sized by Scratch::floats(panels, head_dim)
//   Panel                      one panel: staged queries, accumulated output, running maximum and sum per column
//
//   stage_column(panel, c, src, scale)        column c of a panel's queries := scale * src[0..head_dim), of any input type
//   clear_columns(panel, from)                columns from..kColumns-1 of a panel's queries := 0
//   begin(panel)                              output := 0, maximum := lowest, sum := 0
//   stage_rows(scratch, operand, row, count)  key or value tile := row(i)[0..head_dim) for i < count
//   prefetch(row, n)                          hint: a row of n elements is staged soon
//   scores(panel, scratch, n)                 S^T := K Q^T for n staged rows
//   mask(scratch, visible, n)                 S^T[i][c] := -inf where !visible(i, c)
//   absorb(panel, scratch, n)                 running maximum, rescale, P := exp2(S^T - maximum), sum, O^T += V^T P
//
// A panel's results are unnormalised: output, and the running maximum (in powers of 2) and sum of each column.
//
//   PerPanel<T>                               what a body keeps for each panel of the group
#pragma once

#include <cstddef>
#include <cstdint>

namespace blockdraft {

// 16-bit floating point as stored; arithmetic is always fp32.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

}  // namespace blockdraft
