// CPU launcher of block_attention: splits the work into items, runs them on torch's threads, merges the splits in order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "tile/host.h"
namespace tile = blockdraft::host;
#include "block_attention.h"

namespace blockdraft {
namespace {

using torch::stable::Tensor;

constexpr int kMostSplits = 32;     // of a prefix
constexpr int kTileColumns = 544;   // query columns of a row tile: 136 rows of a group of 4, whose operands stay in the L2

template <class T>
T* data(const Tensor& t) { return static_cast<T*>(t.data_ptr()); }

template <class T>
class Launch {
 public:
  Launch(const AttentionShape& shape, const AttentionTensors<T>& tensors, int batch, const Tensor& out,
         const std::optional<Tensor>& lse, const std::optional<Tensor>& workspace, int split)
      : shape_(shape), t_(tensors), out_(data<T>(out)), out_row_(out.stride(0)), out_head_(out.stride(1)),
        lse_(lse ? data<float>(*lse) : nullptr), lse_row_(lse ? lse->stride(0) : 0),
        partials_(workspace ? data<float>(*workspace) : nullptr), total_rows_(out.size(0)), split_(split) {
    for (int b = 0; b < batch; ++b) plan(b);
  }

  void run() {
    torch::stable::parallel_for(0, items_.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) item(items_[i]);
    });
    torch::stable::parallel_for(0, merges_.size(), 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) merge(merges_[i]);
    });
  }

 private:
  struct Work { AttentionItem item; int split, splits; };
  struct Merge { int request, row, splits; };

  void plan(int b) {
    const int rows = t_.cu_rows[b + 1] - t_.cu_rows[b], prefix = t_.prefix_lens[b], group = shape_.query_heads / shape_.kv_heads;
    if (rows == 0) return;
    const int units = (prefix + split_ - 1) / split_, length = (units + kMostSplits - 1) / kMostSplits * split_;
    const int splits = units > 1 ? (prefix + length - 1) / length : 1;
    const int tiles = (rows * group + kTileColumns - 1) / kTileColumns;
    for (int tile = 0; tile < tiles; ++tile) {
      const int first = int64_t(rows) * tile / tiles, last = int64_t(rows) * (tile + 1) / tiles;
      for (int head = 0; head < shape_.kv_heads; ++head)
        for (int s = 0; s < splits; ++s) {
          const int key = s * length, stop = s == splits - 1 ? prefix : key + length;
          items_.push_back({{b, head, first, last - first, key, stop - key, s == splits - 1}, s, splits});
        }
    }
    if (splits > 1)
      for (int row = 0; row < rows; ++row) merges_.push_back({b, row, splits});
  }

  // What a split leaves of one row and head: unnormalised output [head_dim], maximum, sum.
  float* partial(int split, int64_t row, int head) {
    return partials_ + ((split * total_rows_ + row) * shape_.query_heads + head) * (shape_.head_dim + 2);
  }

  void item(const Work& work) {
    const int panels = Attention<T>::panels_of(work.item.rows, shape_.query_heads / shape_.kv_heads);
    const int64_t need = tile::Scratch::floats(panels, shape_.head_dim) + 16;
    thread_local std::vector<float> memory;  // kept between calls: an allocation of this size is a system call
    if (int64_t(memory.size()) < need) memory.resize(need);
    float* base = memory.data() + (-(reinterpret_cast<uintptr_t>(memory.data()) / 4) & 15);  // to a cache line
    Attention<T> attention(shape_, t_, work.item, base);
    attention.run([&](int row, int head, const tile::Panel& panel, int c) {
      const float top = panel.running[c], sum = panel.running[tile::kColumns + c];
      if (work.splits > 1) {
        float* p = partial(work.split, t_.cu_rows[work.item.request] + row, head);
        for (int d = 0; d < shape_.head_dim; ++d) p[d] = panel.output[d * tile::kColumns + c];
        p[shape_.head_dim] = top;
        p[shape_.head_dim + 1] = sum;
        return;
      }
      const bool live = attention.live(row) && sum > 0;
      finish(t_.cu_rows[work.item.request] + row, head, live, top, sum,
             [&](int d) { return panel.output[d * tile::kColumns + c]; });
    });
  }

  void merge(const Merge& m) {
    const bool live = attention_row(shape_, t_, m.request, m.row).limit > 0;
    std::vector<float> total(shape_.head_dim);
    for (int head = 0; head < shape_.query_heads; ++head) {
      const int64_t row = t_.cu_rows[m.request] + m.row;
      float top = tile::kLowest, sum = 0;
      for (int s = 0; s < m.splits; ++s) top = std::fmax(top, partial(s, row, head)[shape_.head_dim]);
      std::fill(total.begin(), total.end(), 0.0f);
      for (int s = 0; s < m.splits; ++s) {
        const float* p = partial(s, row, head);
        const float weight = std::exp2(p[shape_.head_dim] - top);
        sum += weight * p[shape_.head_dim + 1];
        for (int d = 0; d < shape_.head_dim; ++d) total[d] += weight * p[d];
      }
      finish(row, head, live && sum > 0, top, sum, [&](int d) { return total[d]; });
    }
  }

  template <class Read>
  void finish(int64_t row, int head, bool live, float top, float sum, Read read) {
    T* out = out_ + row * out_row_ + head * out_head_;
    const float scale = live ? 1.0f / sum : 0.0f;
    for (int d = 0; d < shape_.head_dim; ++d) tile::from_float(out + d, live ? read(d) * scale : 0.0f);
    if (lse_) lse_[row * lse_row_ + head] = live ? (top + std::log2(sum)) * 0.693147181f : -INFINITY;
  }

  AttentionShape shape_;
  AttentionTensors<T> t_;
  T* out_;
  int64_t out_row_, out_head_;
  float* lse_;
  int64_t lse_row_;
  std::vector<Work> items_;
  std::vector<Merge> merges_;
  float* partials_;
  int64_t total_rows_;
  int split_;
};

template <class T>
void launch(AttentionShape shape, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& k_cache,
            const std::optional<Tensor>& v_cache, const std::optional<Tensor>& block_table, const Tensor& cu_rows,
            const Tensor& prefix_lens, const Tensor& draft_len, const Tensor& branch, const Tensor& out,
            const std::optional<Tensor>& lse, const std::optional<Tensor>& workspace, int split) {
  AttentionTensors<T> t{};
  t.q = data<T>(q), t.k = data<T>(k), t.v = data<T>(v);
  t.q_row = q.stride(0), t.q_head = q.stride(1);
  t.k_row = k.stride(0), t.k_head = k.stride(1);
  t.v_row = v.stride(0), t.v_head = v.stride(1);
  if (k_cache) {
    t.k_cache = data<T>(*k_cache), t.v_cache = data<T>(*v_cache);
    t.k_page = k_cache->stride(0), t.k_slot = k_cache->stride(1), t.k_kv_head = k_cache->stride(2);
    t.v_page = v_cache->stride(0), t.v_slot = v_cache->stride(1), t.v_kv_head = v_cache->stride(2);
    t.block_table = data<int32_t>(*block_table), t.table_row = block_table->stride(0);
    shape.page = int(k_cache->size(1));
  }
  t.cu_rows = data<int32_t>(cu_rows), t.prefix_lens = data<int32_t>(prefix_lens), t.draft_len = data<int32_t>(draft_len);
  t.branch = data<int32_t>(branch), t.branch_row = branch.stride(0);
  Launch<T>(shape, t, int(prefix_lens.size(0)), out, lse, workspace, split).run();
}

}  // namespace

void block_attention_cpu(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_cache, std::optional<Tensor> v_cache,
                         std::optional<Tensor> block_table, Tensor cu_rows, Tensor prefix_lens, Tensor draft_len, Tensor branch,
                         int64_t mask_rows, bool bidirectional, int64_t, int64_t, double scale, int64_t window, int64_t split,
                         Tensor out, std::optional<Tensor> lse, std::optional<Tensor> workspace) {
  if (q.numel() == 0) return;
  const AttentionShape shape{int(q.size(1)), int(k.size(1)), int(q.size(2)), 1, int(mask_rows), int(branch.size(1)),
                             bidirectional, int(window), float(scale * 1.4426950408889634)};
  auto run = [&](auto type) {
    launch<decltype(type)>(shape, q, k, v, k_cache, v_cache, block_table, cu_rows, prefix_lens, draft_len, branch, out, lse, workspace,
                          int(split));
  };
  switch (q.scalar_type()) {
    case torch::headeronly::ScalarType::Float: return run(float{});
    case torch::headeronly::ScalarType::BFloat16: return run(bf16{});
    case torch::headeronly::ScalarType::Half: return run(fp16{});
    default: STD_TORCH_CHECK(false, "block_attention: q: expected float32, bfloat16 or float16");
  }
}

}  // namespace blockdraft
