// Compressed convolutional attention, from projections to q, k, v: the kernel body, written against
// the tile layer. A group has one head of some rows.
#pragma once

#include "ops/cca_qkv/params.h"
#include "ops/head.h"
#include "tile/gemm.h"

namespace blockdraft {

enum class CcaStep { kConvolve };

// Calls run<step>(groups) for each launch, where a group has so many rows.
template <class T, class C, class Run>
void schedule(const CcaParams<T, C>& p, int columns, Run run) {
  const int64_t tiles = ceil_div(p.total_rows, columns);
  run.template operator()<CcaStep::kConvolve>(tiles * p.heads());
}

// A group's memory, for rows whose convolved tokens are of type X. All parts but `rows` and `scale`
// begin at multiples of 16 bytes.
template <class X>
struct CcaMemory {
  X* tokens;       // [columns][token_stride]: the first convolution's output, the taps of a channel
                   // together
  float* outputs;  // [columns][output_stride]: the second one's; may be where the tokens are
  float* squares;  // [columns][chunks]
  float* planes;   // [taps0 + 2][head_dim]: conv0's weights by taps, its biases, conv1's biases
  float* scale;    // [columns]
  PackedRow* rows;  // [columns]
  int token_stride, output_stride;

  // Bytes of a row's tokens and outputs, of all that a row has, and of what all rows share. 16
  // bytes more than is used, so that rows begin in different banks of a GPU.
  static int64_t of_tokens(int head_dim, int taps) { return head_dim * taps * sizeof(X) + 16; }
  static int64_t of_outputs(int head_dim) { return head_dim * sizeof(float) + 16; }
  static int64_t of_row(int head_dim, int taps, bool apart) {
    const int64_t tokens = of_tokens(head_dim, taps), outputs = of_outputs(head_dim);
    const int64_t both = apart ? tokens + outputs : most(tokens, outputs);
    return both + (head_dim / kChunk + 1) * sizeof(float) + sizeof(PackedRow);
  }
  static int64_t shared(int head_dim, int taps0) { return (taps0 + 2) * head_dim * sizeof(float); }

  // Divides `memory` among so many rows; `apart`: outputs have memory of their own.
  CcaMemory(char* memory, int columns, int head_dim, int taps0, int taps1, bool apart)
      : token_stride(of_tokens(head_dim, taps1) / sizeof(X)),
        output_stride(of_outputs(head_dim) / sizeof(float)) {
    auto take = [&](int64_t bytes) {
      char* start = memory;
      memory += bytes;
      return start;
    };
    const int64_t token_bytes = columns * of_tokens(head_dim, taps1);
    const int64_t output_bytes = columns * of_outputs(head_dim);
    planes = reinterpret_cast<float*>(take(shared(head_dim, taps0)));
    char* both = take(apart ? token_bytes : most(token_bytes, output_bytes));
    tokens = reinterpret_cast<X*>(both);
    outputs = reinterpret_cast<float*>(apart ? take(output_bytes) : both);
    rows = reinterpret_cast<PackedRow*>(take(columns * sizeof(PackedRow)));
    squares = reinterpret_cast<float*>(take(columns * (head_dim / kChunk) * sizeof(float)));
    scale = reinterpret_cast<float*>(memory);
  }
};

// Rows of a group of a GPU, as many as it has memory for at most. Where there are many rows, fewer
// groups read weights for more rows each.
template <class T, class C>
int cca_columns(const CcaParams<T, C>& p) {
  const int64_t bytes = kCcaBytes - CcaMemory<T>::shared(p.head_dim, p.taps0);
  const int room = int(bytes / CcaMemory<T>::of_row(p.head_dim, p.taps1, false));
  return least(room, p.total_rows < 1024 ? 16 : 32);
}

template <class Gemm, class T, class C, class X>
struct Cca {
  typedef CcaParams<T, C> Params;

  Gemm& group;
  const CcaMemory<X>& memory;
  const int first, count;  // rows first .. first + count - 1
  const int head, dim;     // its channels

  void find_rows(const Params& p) {
    const int request = request_of(group, p.rows, first);
    group.each(count, [&](int c) { memory.rows[c] = find_row(p, first + c, request); });
  }

  void load_planes(const Params& p) {
    group.each(p.taps0, dim, [&](int tap, int i) {
      memory.planes[tap * dim + i] = Gemm::value(p.conv0_weight.at(head * dim + i)[tap]);
    });
    group.each(dim, [&](int i) {
      memory.planes[p.taps0 * dim + i] = Gemm::value(p.conv0_bias[head * dim + i]);
      memory.planes[(p.taps0 + 1) * dim + i] = Gemm::value(p.conv1_bias[head * dim + i]);
    });
  }

  // The channels of a row that this head's residual path averages with its own.
  const T* others(const Params& p, const PackedRow& row) const {
    const int kv = head - p.query_heads, group = p.group();
    return p.qk.at(row.row) + (kv < 0 ? p.query_heads + head / group : kv * group) * dim;
  }
  // A row's pieces are far from each other, so that no CPU would guess the next.
  void fetch(const Params& p, int c) const {
    if (c >= count || memory.rows[c].position < 0) return;
    const PackedRow& row = memory.rows[c];
    Gemm::expect(p.qk.at(row.row) + head * dim, dim);
    Gemm::expect(others(p, row), head < p.query_heads ? dim : p.group() * dim);
  }

  // The first convolution.
  auto mix(const Params& p, int c) const {
    constexpr int kAhead = 4;
    fetch(p, c + kAhead);
    const PackedRow& row = memory.rows[c];
    const float *planes = memory.planes, *bias = planes + p.taps0 * dim;
    X* out = memory.tokens + c * memory.token_stride;
    const bool live = row.position >= 0, pairs = p.taps0 == 2 && p.taps1 == 2;
    auto recent = [&](int back) { return live && pairs ? source(p, row, back) : nullptr; };
    const T *last = recent(2), *before = recent(1), *now = recent(0);
    return [=, this, &p, &row](int chunk) {
      if (!live) return;
      const int i = chunk * kChunk;
      X* to = out + i * p.taps1;
      if (pairs) {  // all tokens are asked for at once, also where there is none
        auto read = [&](const T* source) { return Gemm::values((source ? source : now) + i); };
        const eight last_read = read(last), before_read = read(before), z = read(now);
        const eight x = last ? last_read : eight{}, y = before ? before_read : eight{};
        const eight first = Gemm::values(planes + i), second = Gemm::values(planes + dim + i);
        const eight a = Gemm::values(bias + i) + x * first + y * second;
        const eight b = Gemm::values(bias + i) + y * first + z * second;
        Gemm::store(to, eight{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]});
        Gemm::store(to + kChunk, eight{a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]});
        return;
      }
      for (int tap = 0; tap < p.taps1; ++tap) {
        eight sum = Gemm::values(bias + i);
        for (int j = 0; j < p.taps0; ++j)
          sum +=
              token(source(p, row, p.history() - tap - j), i) * Gemm::values(planes + j * dim + i);
        for (int j = 0; j < kChunk; ++j) Gemm::store(to + j * p.taps1 + tap, sum[j]);
      }
    };
  }

  // The head's channels of the token `back` before a row; null before a sequence, where there are
  // zeros.
  const T* source(const Params& p, const PackedRow& row, int back) const {
    const int from = row.ancestor(back);
    if (from >= 0) return p.qk.at(from) + head * dim;
    return row.slot < 0 ? nullptr : p.conv_state.at(row.slot, p.history() + from) + head * dim;
  }
  static eight token(const T* source, int channel) {
    return source ? Gemm::values(source + channel) : eight{};
  }

  void convolve(const Params& p) {
    for (int start = 0; start < dim; start += Gemm::kRows) {
      if (start > 0) group.barrier();
      group.multiply(
          least(dim - start, Gemm::kRows), count, dim * p.taps1,
          [&](int i) { return p.conv1_weight.at(head * dim + start + i); },
          [&](int c) { return memory.tokens + c * memory.token_stride; },
          [&](int i, int c, auto y) {
            float* out = memory.outputs + c * memory.output_stride + start + i;
            Gemm::store(out, y, dim - start - i);
          });
    }
  }

  // The residual path: a query head adds its average with its KV head; a KV head adds the mean of
  // the averages of its group.
  auto add_residual(const Params& p, int c) const {
    const PackedRow& row = memory.rows[c];
    const bool live = row.position >= 0;
    const int heads = head < p.query_heads ? 1 : p.group();  // of `others`
    const float share = 1 / float(heads);
    const T* in = p.qk.at(row.row);
    const T* own = in + head * dim;
    const T* others = this->others(p, row);
    const float* bias = memory.planes + (p.taps0 + 1) * dim;
    float *out = memory.outputs + c * memory.output_stride,
          *squares = memory.squares + c * (dim / kChunk);
    return [=, this](int chunk) {
      if (!live) return;
      const int i = chunk * kChunk;
      const eight mine = Gemm::values(own + i);
      // Of a group, up to four are asked for at once; a query head has one.
      auto read = [&](int j) { return Gemm::values(others + least(j, heads - 1) * dim + i); };
      eight other = read(0);
      const eight second = read(1), third = read(2), fourth = read(3);
      other += heads > 1 ? second : eight{};
      other += heads > 2 ? third : eight{};
      other += heads > 3 ? fourth : eight{};
      for (int j = 4; j < heads; ++j) other += read(j);
      other *= share;
      const eight sum = Gemm::values(out + i) + Gemm::values(bias + i) + 0.5f * (mine + other);
      Gemm::store(out + i, sum);
      const eight x = sum * sum;
      const four y = four{x[0], x[1], x[2], x[3]} + four{x[4], x[5], x[6], x[7]};
      squares[chunk] = (y[0] + y[1]) + (y[2] + y[3]);
    };
  }

  void find_scale(const Params& p, int c) {
    float total = 0;
    for (int j = 0; j < dim / kChunk; ++j) total += memory.squares[c * (dim / kChunk) + j];
    // This order of operands keeps NaN.
    const float norm = p.norm_eps < 0 ? most(-p.norm_eps, __builtin_sqrtf(total))
                                      : __builtin_sqrtf(total + p.norm_eps);
    const float temp = head < p.query_heads ? 1 : Gemm::value(p.temp[head - p.query_heads]);
    memory.scale[c] = __builtin_sqrtf(float(dim)) / norm * temp;
  }

  // Rotates the first channels by halves.
  auto finish(const Params& p, int c) const {
    const PackedRow& row = memory.rows[c];
    const bool live = row.position >= 0;
    const int kv = head - p.query_heads, half = p.rotary / 2;
    const float *in = memory.outputs + c * memory.output_stride,
                *table = p.cos_sin.at(live ? row.position : 0);
    const float scale = memory.scale[c];
    T* out = kv < 0 ? p.q.at(row.row, head) : p.k.at(row.row, kv);
    const Cell<C> cell = kv < 0 ? Cell<C>{} : cell_of(p.k_cache, p.k_scale, row, kv);
    return [=](int chunk) {
      const int i = chunk * kChunk;
      const eight x = live ? rotated<Gemm>(in, i, table, half) * scale : eight{};
      Gemm::store(out + i, keep<Gemm>(cell, i, x));
    };
  }

  // Half of the value channels come from the row's parent.
  auto copy_value(const Params& p, int c) const {
    const PackedRow& row = memory.rows[c];
    const int kv = head - p.query_heads, first = kv * dim, half = p.half();
    const T *now = nullptr, *late = nullptr;
    if (row.position >= 0) {
      const int parent = row.ancestor(1);
      now = p.v_now.at(row.row);
      late = parent >= 0     ? p.v_late.at(parent)
             : row.slot >= 0 ? p.late_state.at(row.slot)
                             : p.late_start;
    }
    T* out = p.v.at(row.row, kv);
    const Cell<C> cell = cell_of(p.v_cache, p.v_scale, row, kv);
    return [=](int chunk) {
      const int i = chunk * kChunk, channel = first + i;
      const eight x = channel < half ? token(now, channel) : token(late, channel - half);
      Gemm::store(out + i, keep<Gemm>(cell, i, x));
    };
  }

  void run(const Params& params) {
    const int chunks = dim / kChunk;
    find_rows(params);
    load_planes(params);
    // Parameters are read again for each phase: a GPU has no registers to keep them in.
    auto phase = [&](auto f) {
      group.barrier();
      f(Gemm::reload(params));
    };
    phase([&](const Params& p) {
      if (head >= p.query_heads)
        group.each_of(count, chunks, [&](int c) { return copy_value(p, c); });
      group.each_of(count, chunks, [&](int c) { return mix(p, c); });
    });
    phase([&](const Params& p) { convolve(p); });
    phase([&](const Params& p) {
      group.each_of(count, chunks, [&](int c) { return add_residual(p, c); });
    });
    phase([&](const Params& p) { group.each(count, [&](int c) { find_scale(p, c); }); });
    phase([&](const Params& p) {
      group.each_of(count, chunks, [&](int c) { return finish(p, c); });
    });
  }
};

// Item `id`: a head of rows from a multiple of `columns` on.
template <class Gemm, class T, class C, class X>
void cca_qkv(Gemm& group, const CcaParams<T, C>& p, int64_t id, int columns,
             const CcaMemory<X>& memory) {
  const int first = int(id / p.heads()) * columns;
  Cca<Gemm, T, C, X>{
      group, memory, first, least(p.total_rows - first, columns), int(id % p.heads()), p.head_dim}
      .run(p);
}

}  // namespace blockdraft
