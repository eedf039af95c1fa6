// The attention tiles of CDNA 3 and 4 (gfx942, gfx950).
//
// A group is a workgroup of four waves, one on each SIMD, with all of its registers. A wave has
// panels of 32 columns: column l % 32 belongs to lanes l and l ^ 32. After S^T = K Q^T by 32x32
// MFMA, register i of lane l holds key 8 (i / 4) + 4 (l / 32) + i % 4 of column l % 32. That is
// already the B operand of O^T += V^T P^T if the keys of V^T have the same order: a lane reads
// those rows of V and transposes what it has read, and P never leaves registers. Row r of output d
// is dimension kParts r + d of the head, so that a lane reads kParts adjacent elements of a row.
//
// A cache of fp8 becomes bf16 where a tile is deposited. Its scales multiply scores and weights.
//
// Up to the columns of one wave, each wave has all of them and every fourth key tile: it waits for
// no other one until the chunk ends (kShared is false). Otherwise the waves divide the columns and
// share each tile.
#pragma once

#include "base/formats.h"
#include "tile/attention.h"
#include "tile/cdna/codes.h"
#include "tile/cdna/group.h"
#include "tile/cdna/mfma.h"

namespace blockdraft::cdna {

constexpr int kAttentionWaves = 4, kAttentionThreads = kAttentionWaves * kWave;

inline float from_other_half(float x) {  // of lane l ^ 32
  const int other = ((thread_index() & (kWave - 1)) ^ 32) << 2;
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(other, __builtin_bit_cast(int, x)));
}

// x, in another register from here on.
inline uint32_t copied(uint32_t x) {
#ifdef __AMDGCN__
  uint32_t out;
  asm volatile("v_mov_b32 %0, %1" : "=&v"(out) : "v"(x));
  return out;
#else
  return x;
#endif
}

template <class T>
constexpr int kWaveColumns = sizeof(T) == 2 ? 2 * kColumns : kColumns;

// C: of the cache, T or the device's fp8.
template <class T, class C, class X, int kDim, bool kShared>
class Tile : public Group<kAttentionThreads> {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kPanels = kWaveColumns<T> / kColumns, kParts = kDim / 32;
  static constexpr int kFragment = 16 / sizeof(T);       // elements
  static constexpr int kDepth = kDim / (2 * kFragment);  // fragments of a query
  static constexpr int kWeights = 16 / kFragment;        // fragments of a panel's weights
  static constexpr int kRowLanes = kDim / kFragment, kLoadRows = kWave / kRowLanes;
  // What a wave reads of a tile, half of which is in one page.
  static constexpr int kSharers = kShared ? kAttentionWaves : 1, kPages = kShared ? 1 : 2;
  static constexpr int kKeyLoads = 32 / kLoadRows / kSharers, kValueLoads = 16 / kSharers;
  static constexpr int kPiece = 4 * kParts;
  static constexpr int kStagedCodes = Format<C>::kScaled && !kShared ? kValueLoads : 0;
  static constexpr bool kStreamed = sizeof(T) == 2;  // tiles of fp32 leave no registers for it
  typedef __typeof__(Fragment{}[0]) Element;
  typedef Element Part __attribute__((ext_vector_type(kParts)));  // of a row of V
  typedef typename Codes<kFragment>::Word KeyCodes;
  typedef typename Codes<kParts>::Word ValueCodes;

 public:
  static constexpr int kKeys = 32, kBuffers = kShared ? 2 : 1;
  static constexpr int kStreams = kShared ? 1 : kAttentionWaves;
  static constexpr int kGroupColumns = kAttentionWaves * kWaveColumns<T>;
  static constexpr bool kReadsCodes = Format<C>::kScaled;
  typedef C Cached;

  // In LDS. Rows of keys are fragments, in an order that keeps lanes apart in the banks. Values are
  // fragments of a lane.
  union Memory {
    struct {
      alignas(16) Fragment keys[kShared ? 2 : kAttentionWaves][kKeys * kRowLanes];
      alignas(16) Element values[kShared ? 2 : 0][kKeys * kDim];  // none: they stay in registers
    };
    struct {  // what waves tell each other at the end of a chunk
      float pieces[2][kAttentionWaves - 1][kPanels][kPiece][kWave];
      float tops[kAttentionWaves][kPanels][kColumns], sums[kAttentionWaves][kPanels][kColumns];
    };
  };

  struct Panel {
    X x;
    bool present;
    Fragment queries[kDepth];
    acc16 output[kParts], scores;
    Fragment weights[kWeights];
    float top, sum;

    template <class F>
    bool any(F f) const {
      return __builtin_amdgcn_ballot_w64(present && f(x)) != 0;
    }
  };

  explicit Tile(Memory& memory) : memory_(memory) {}

  int stream() const { return kShared ? 0 : wave(); }

  template <class Describe, class Query>
  void open(int n, Describe x, Query query, float scale) {
    scale_ = scale;
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      Panel& panel = panels_[p];
      const int column = (kShared ? wave() * kPanels : 0) * kColumns + p * kColumns + lane() % 32;
      panel.present = column < n;
      panel.x = x(least(column, n - 1));
    }
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      Panel& panel = panels_[p];
      const T* src = query(panel.x);
#pragma unroll
      for (int c = 0; c < kDepth; ++c) panel.queries[c] = Fragment{};
      if (src && panel.present)
#pragma unroll
        for (int c = 0; c < kDepth; ++c)
          panel.queries[c] = read<Fragment>(src + (2 * c + half()) * kFragment);
    }
    active_ = !kShared || wave() * kPanels * kColumns < n;
  }

  void begin() {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
#pragma unroll
      for (int d = 0; d < kParts; ++d) panels_[p].output[d] = acc16{};
      panels_[p].top = -__builtin_inff();
      panels_[p].sum = 0;
    }
  }

  template <class Place>
  void locate(Place place, int n) {
#pragma unroll
    for (int r = 0; r < kKeyLoads; ++r) key_places_[r] = place(least(key_row(r), n - 1));
#pragma unroll
    for (int i = 0; i < kValueLoads; ++i) value_places_[i] = place(least(value_row(i), n - 1));
    if constexpr (kReadsCodes) page_ = place(least(scaled_row(), n - 1));
  }

  // Rows beyond n repeat the last row. They are masked, but NaN from elsewhere would reach the
  // output as 0 * NaN.
  template <class Key, class Value>
  void load(Key key, Value value, int n) {
#pragma unroll
    for (int r = 0; r < kKeyLoads; ++r)
      keys_[r] = read<Fragment>(key(key_places_[r], least(key_row(r), n - 1)) + key_dim());
#pragma unroll
    for (int i = 0; i < kValueLoads; ++i) {
      const Part part =
          read<Part>(value(value_places_[i], least(value_row(i), n - 1)) + value_dim());
      if constexpr (kReadsCodes)
        __builtin_memcpy(pairs_[i], &part, sizeof part);
      else
        values_[i] = part;
    }
  }

  void use(const AttentionScales& scales) {
    scales_ = half() ? scales.values : scales.keys;
    scales_page_ = half() ? scales.value_page : scales.key_page;
  }

  // The codes are the device's own, and the scales those of `use`.
  template <class Key, class Value>
  void load_codes(bool, Key key, Value value, int n) {
    const float scale = read_scale();
#pragma unroll
    for (int r = 0; r < kKeyLoads; ++r) {
      const CodedRow row = key(key_places_[r], least(key_row(r), n - 1));
      uint32_t pairs[4];
      decode(pairs, read<KeyCodes>(row.codes + key_dim()), from_lane(scale, key_row(r)));
      keys_[r] = fragment(pairs);
    }
#pragma unroll
    for (int i = 0; i < kValueLoads; ++i) {
      const CodedRow row = value(value_places_[i], least(value_row(i), n - 1));
      decode(pairs_[i], read<ValueCodes>(row.codes + value_dim()),
             from_lane(scale, 32 + value_row(i)));
    }
  }

  void deposit(int n) {
    if constexpr (kBuffers == 2) buffer_ ^= 1;
    staged_ = n;
    Fragment* keys = memory_.keys[kShared ? uniform(buffer_) : wave()];
#pragma unroll
    for (int r = 0; r < kKeyLoads; ++r) {
      const int row = key_row(r);
      keys[row * kRowLanes + (lane() % kRowLanes ^ row % kRowLanes)] = keys_[r];
    }
    if constexpr (kShared) {
      // A wave has four keys of each lane's fragments.
      typedef Element Four __attribute__((ext_vector_type(4)));
      Element* values = memory_.values[uniform(buffer_)];
      const int first = wave() * 4;
#pragma unroll
      for (int d = 0; d < kParts; ++d) {
        Four four;
        if constexpr (kReadsCodes)
          four = __builtin_bit_cast(Four, word2{pair_of(0, d), pair_of(2, d)});
        else
          four = Four{values_[0][d], values_[1][d], values_[2][d], values_[3][d]};
        const int fragment = (d * kWeights + first / kFragment) * kWave + lane();
        *reinterpret_cast<Four*>(values + fragment * kFragment + first % kFragment) = four;
      }
    }
  }

  // Waves that have tiles of their own only need that what they write to LDS is there.
  void barrier() const {
    if constexpr (kShared)
      Group::barrier();
    else
      __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  }

  template <class F>
  void each_panel(F f) {
    if (kShared && !active_) return;
#pragma unroll
    for (int p = 0; p < kPanels; ++p) f(panels_[p]);
  }

  void scores(Panel& panel) const {
    panel.scores = acc16{};
#pragma unroll
    for (int c = 0; c < kDepth; ++c) add_products(panel, c, key_fragment(c));
    scale_rows<false>(panel.scores, 0);
    if (staged_ < kKeys) {
#pragma unroll
      for (int i = 0; i < 16; ++i)
        panel.scores[i] = key_of(i) < staged_ ? panel.scores[i] : -__builtin_inff();
    }
  }

  template <class Visible>
  void mask(Panel& panel, Visible visible) const {
    const auto seen = visible(panel.x);
    const uint32_t count = most(seen.to - seen.from, 0);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      panel.scores[i] =
          uint32_t(key_of(i) - seen.from) < count ? panel.scores[i] : -__builtin_inff();
  }

  void absorb(Panel& panel) const {
    weigh<false>(panel);
#pragma unroll
    for (int c = 0; c < kWeights; ++c)
#pragma unroll
      for (int d = 0; d < kParts; ++d) add_values(panel, d, c, value_fragment<false>(d, c));
  }

  // Asks for the first tile that the next call of stream_cached absorbs.
  template <class Cached>
  void fetch(const Cached& cached, int first)
    requires kStreamed
  {
    const Offsets offsets(cached);
    const Pages pages(cached, first);
    fetch_keys(cached, offsets, pages, first);
    fetch_values(cached, offsets, pages, first);
    if constexpr (kReadsCodes) {
      find_page(cached, first);
      row_scale_ = read_scale();
    }
  }
  // Whether the last call of stream_cached has done so.
  bool fetched() const { return fetched_; }

  // No tile has been asked for: its registers are free.
  void forget() {
#pragma unroll
    for (auto& keys : keys_) keys = __builtin_nondeterministic_value(keys);
#pragma unroll
    for (auto& values : values_) values = __builtin_nondeterministic_value(values);
#pragma unroll
    for (auto& codes : key_codes_) codes = __builtin_nondeterministic_value(codes);
#pragma unroll
    for (auto& codes : value_codes_) codes = __builtin_nondeterministic_value(codes);
#pragma unroll
    for (auto& pairs : pairs_)
#pragma unroll
      for (uint32_t& pair : pairs) pair = __builtin_nondeterministic_value(pair);
  }

  // Absorbs `tiles` whole tiles of cached keys that every column sees, each kStreams after the one
  // before; `next`: the first key of a tile of the same kind that the next call begins with, or -1.
  // Uniform addresses, no tests, and each tile is asked for as soon as there is a place for it.
  template <class Cached>
  void stream_cached(const Cached& cached, int first, int tiles, int next)
    requires kStreamed
  {
    if (tiles == 0) return;
    fetched_ = next >= 0;
    Offsets offsets(cached);
    // Of a tile that is asked for; after the last one it is asked for again: loads under a condition
    // would be waited for too early.
    auto start = [&](int tile) {
      return tile < tiles || next < 0 ? first + least(tile, tiles - 1) * kStreams * kKeys : next;
    };
    Pages pages(cached, start(1));
    if constexpr (kReadsCodes) find_page(cached, start(1));
    // Codes of values leave their place in `deposit_cached`.
    constexpr bool kValuesFirst = kShared || kReadsCodes;
    for (int tile = 1; tile <= tiles; ++tile) {
      if constexpr (kBuffers == 1) barrier();
      deposit_cached();
      barrier();
      offsets.renew();
      fetch_keys(cached, offsets, pages, start(tile));
      if constexpr (kValuesFirst) fetch_values(cached, offsets, pages, start(tile));
      if constexpr (kReadsCodes) {
        row_scale_ = read_scale();
        find_page(cached, start(tile + 1));
      }
      if (!kShared || active_) absorb_all_panels();
      if constexpr (!kValuesFirst) fetch_values(cached, offsets, pages, start(tile));
      pages = Pages(cached, start(tile + 1));
    }
  }

 private:
  static constexpr float kSlack = 8;  // of exponents

  // A lane scales a row: lanes 0 to 31 those of scores, the others those of weights.
  static int scaled_row() { return lane() % 32; }

  // A whole tile of the cache. A wave's own values are decoded as they are multiplied.
  void deposit_cached() {
    if constexpr (kReadsCodes) {
#pragma unroll
      for (int r = 0; r < kKeyLoads; ++r) {
        uint32_t pairs[4];
        decode(pairs, key_codes_[r]);
        keys_[r] = fragment(pairs);
      }
#pragma unroll
      for (int i = 0; i < kValueLoads; ++i)
        if constexpr (kShared)
          decode(pairs_[i], value_codes_[i]);
        else
          staged_codes_[i] = copied(value_codes_[i]);
      staged_scale_ = row_scale_ * (half() ? 1 : scale_);
    }
    deposit(kKeys);
  }

  // Scores, or weights (from lane 32 on), by the scales of their rows. kCached: of a whole tile of
  // the cache, whose halves are in a page each; scales of other tiles are in their numbers.
  template <bool kCached>
  void scale_rows(acc16& x, int first) const {
    if constexpr (kReadsCodes && kCached) {
      const int scale = __builtin_bit_cast(int, staged_scale_);
      x.lo *= __builtin_bit_cast(float, __builtin_amdgcn_readlane(scale, first));
      x.hi *= __builtin_bit_cast(float, __builtin_amdgcn_readlane(scale, first + 16));
    } else if (first == 0) {
      x *= scale_;
    }
  }

  // A whole tile, each of whose fragments is read once for all panels.
  void absorb_all_panels() {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) panels_[p].scores = acc16{};
    Fragment keys[kDepth];  // all are asked for before the first is waited for
#pragma unroll
    for (int c = 0; c < kDepth; ++c) keys[c] = key_fragment(c);
    __builtin_amdgcn_sched_barrier(0);
#pragma unroll
    for (int c = 0; c < kDepth; ++c)
#pragma unroll
      for (int p = 0; p < kPanels; ++p) add_products(panels_[p], c, keys[c]);
    __builtin_amdgcn_sched_barrier(0);  // values may not be there yet
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      scale_rows<true>(panels_[p].scores, 0);
      weigh<true>(panels_[p]);
    }
#pragma unroll
    for (int c = 0; c < kWeights; ++c)
#pragma unroll
      for (int d = 0; d < kParts; ++d) {
        const Fragment values = value_fragment<true>(d, c);
#pragma unroll
        for (int p = 0; p < kPanels; ++p) add_values(panels_[p], d, c, values);
      }
  }

  // Turns scores into weights. A column's `top` is its maximum or a little less, so that outputs
  // are seldom rescaled.
  template <bool kCached>
  void weigh(Panel& panel) const {
    float highest = panel.scores[0];
#pragma unroll
    for (int i = 1; i < 16; ++i) highest = __builtin_fmaxf(highest, panel.scores[i]);
    if (__builtin_amdgcn_ballot_w64(highest > panel.top + kSlack)) {
      highest = __builtin_fmaxf(highest, from_other_half(highest));
      const float top = highest > panel.top + kSlack ? highest : panel.top;
      const float shrink = __builtin_amdgcn_exp2f(panel.top - finite_or_zero(top));
#pragma unroll
      for (int d = 0; d < kParts; ++d) panel.output[d] *= shrink;
      panel.sum *= shrink;
      panel.top = top;
    }
    const float base = finite_or_zero(panel.top);
    acc16 p;
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = __builtin_amdgcn_exp2f(panel.scores[i] - base);
    const auto eight = p.lo + p.hi;
    const auto four = eight.lo + eight.hi;
    // The sum over this lane's keys; that of the other half is added in the end.
    panel.sum += four.x + four.y + (four.z + four.w);
    scale_rows<kCached>(p, 32);
#pragma unroll
    for (int c = 0; c < kWeights; ++c) panel.weights[c] = Mma<T>::pack(p, c * kFragment);
  }
  static void add_values(Panel& panel, int d, int c, Fragment values) {
    panel.output[d] = Mma<T>::multiply(values, panel.weights[c], panel.output[d]);
  }
  // V^T of output d and the keys of weights c. kCached: of a whole tile of the cache.
  template <bool kCached>
  Fragment value_fragment(int d, int c) const {
    if constexpr (kShared) {
      const Element* from = memory_.values[uniform(buffer_)];
      return reinterpret_cast<const Fragment*>(from)[(d * kWeights + c) * kWave + lane()];
    } else if constexpr (kReadsCodes) {
      uint32_t pairs[8][kParts / 2], out[4];
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if constexpr (kCached)
          decode(pairs[j], ValueCodes(staged_codes_[8 * c + j]));
        else
          __builtin_memcpy(pairs[j], pairs_[8 * c + j], sizeof pairs[j]);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        out[j] = paired(pairs[2 * j][d / 2], pairs[2 * j + 1][d / 2], d % 2);
      return fragment(out);
    } else {
      Fragment values;
#pragma unroll
      for (int j = 0; j < kFragment; ++j) values[j] = values_[c * kFragment + j][d];
      return values;
    }
  }
  static Fragment fragment(const uint32_t* pairs) {
    return __builtin_bit_cast(Fragment, word4{pairs[0], pairs[1], pairs[2], pairs[3]});
  }
  // Number d of rows i and i + 1.
  uint32_t pair_of(int i, int d) const {
    return paired(pairs_[i][d / 2], pairs_[i + 1][d / 2], d % 2);
  }

  Fragment key_fragment(int c) const {
    const Fragment* row =
        memory_.keys[kShared ? uniform(buffer_) : wave()] + lane() % 32 * kRowLanes;
    return row[2 * c ^ (half() ^ lane() % kRowLanes)];
  }
  static void add_products(Panel& panel, int c, Fragment keys) {
    panel.scores = Mma<T>::multiply(keys, panel.queries[c], panel.scores);
  }

  // Of what a lane reads within half a tile, in bytes.
  struct Offsets {
    static constexpr int kKeyHalf = kShared ? kKeyLoads : kKeyLoads / 2;
    static constexpr int kValueHalf = kShared ? kValueLoads : kValueLoads / 2;
    uint32_t key[kKeyHalf], value[kValueHalf];

    template <class Cached>
    explicit Offsets(const Cached& cached) {
#pragma unroll
      for (int r = 0; r < kKeyHalf; ++r)
        key[r] = (key_row(r) % 16 * uint32_t(cached.key_slot) + key_dim()) * sizeof(C);
#pragma unroll
      for (int i = 0; i < kValueHalf; ++i)
        value[i] = (value_row(i) % 16 * uint32_t(cached.value_slot) + value_dim()) * sizeof(C);
    }

    // They might be others from here on. Otherwise the compiler would widen them to 64 bits before
    // the loop, and add them to each load's uniform address.
    void renew() {
#ifdef __AMDGCN__
#pragma unroll
      for (uint32_t& byte : key) asm volatile("" : "+v"(byte));
#pragma unroll
      for (uint32_t& byte : value) asm volatile("" : "+v"(byte));
#endif
    }
  };

  // The pages of a tile's halves, or of this wave's, read by the scalar unit.
  struct Pages {
    int id[kPages];

    template <class Cached>
    Pages(const Cached& cached, int start) {
#pragma unroll
      for (int h = 0; h < kPages; ++h)
        id[h] = uniform(constant(cached.pages + (half_start(start, h) >> cached.page_shift)));
    }
  };
  static int half_start(int start, int h) { return start + 16 * (kShared ? wave() / 2 : h); }
  // In elements, of where such a half begins.
  template <class Cached>
  static int64_t place(const Cached& cached, int start, int id, int64_t page, int slot) {
    return id * page + (start & ((1 << cached.page_shift) - 1)) * slot;
  }

  template <class Cached>
  void fetch_keys(const Cached& cached, const Offsets& offsets, const Pages& pages, int start) {
    constexpr int kHalf = Offsets::kKeyHalf;
#pragma unroll
    for (int h = 0; h < kPages; ++h) {
      const auto* base = cached.keys + place(cached, half_start(start, h), pages.id[h],
                                             cached.key_page, cached.key_slot);
#pragma unroll
      for (int r = 0; r < kHalf; ++r) read_at(cached_keys()[h * kHalf + r], base, offsets.key[r]);
    }
  }
  template <class Cached>
  void fetch_values(const Cached& cached, const Offsets& offsets, const Pages& pages, int start) {
    constexpr int kHalf = Offsets::kValueHalf;
#pragma unroll
    for (int h = 0; h < kPages; ++h) {
      const auto* base = cached.values + place(cached, half_start(start, h), pages.id[h],
                                               cached.value_page, cached.value_slot);
#pragma unroll
      for (int i = 0; i < kHalf; ++i)
        read_at(cached_values()[h * kHalf + i], base, offsets.value[i]);
    }
  }

  template <class V>
  static void read_at(V& out, const C* base, uint32_t byte) {
    typedef const __attribute__((address_space(1))) char Bytes;
    out = *(const __attribute__((address_space(1))) V*)((Bytes*)base + byte);
  }

  // Where they are read into.
  auto& cached_keys() {
    if constexpr (kReadsCodes)
      return key_codes_;
    else
      return keys_;
  }
  auto& cached_values() {
    if constexpr (kReadsCodes)
      return value_codes_;
    else
      return values_;
  }

  // The scale of a lane's row. Its page is found a tile before, so that it need not be waited for.
  template <class Cached>
  void find_page(const Cached& cached, int start) {
    page_ = read<int>(cached.pages + ((start + scaled_row()) >> cached.page_shift));
  }
  float read_scale() const { return read<float>(scales_ + page_ * scales_page_); }

 public:
  struct Output {
    const float* values;  // [4 kParts] of rows first + 4 half .. + 3
    int first;
    bool leader() const { return half() == 0; }
    template <class D>
    void store(D* p, float scale) const {
      D out[kPiece];
#pragma unroll
      for (int i = 0; i < kPiece; ++i) from_float(out + i, scale == 0 ? 0.0f : scale * values[i]);
      __builtin_memcpy((__attribute__((address_space(1))) D*)p + (first + 4 * half()) * kParts, out,
                       sizeof out);
    }
  };

  // What waves have of a node: the dimensions of one of their number.
  struct Piece {
    float values[kPanels][kPiece], top[kPanels], sum[kPanels];
  };

  // The chunk, of at most two, is complete; see the contract. The waves' parts are joined in their
  // order, each wave some dimensions of all columns.
  void settle(int chunk, bool) {
    if constexpr (!kShared) {
      Piece x;
      join_waves(x);
      if (chunk) join(node_, x);
      node_ = x;
    }
  }

  template <class F>
  void close(F f) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      const Panel& panel = panels_[p];
      if constexpr (kShared) {
        const float sum = panel.sum + from_other_half(panel.sum);
        if (!panel.present) continue;
        f(panel.x, panel.top, sum, Whole{panel.output});
      } else {
        if (panel.present)
          f(panel.x, node_.top[p], node_.sum[p], Output{node_.values[p], wave() * 8});
      }
    }
  }

 private:
  struct Whole {
    const acc16* output;
    bool leader() const { return half() == 0; }
    template <class D>
    void store(D* p, float scale) const {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float values[kPiece];
        piece(output, w, values);
        Output{values, w * 8}.store(p, scale);
      }
    }
  };

  // Registers 4 w .. 4 w + 3 of the outputs: kPiece adjacent dimensions.
  static void piece(const acc16* output, int w, float* values) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int d = 0; d < kParts; ++d) values[j * kParts + d] = output[d][4 * w + j];
  }

  void join_waves(Piece& x) {
    Group::barrier();  // the tiles in LDS have been read
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      const float sum = panels_[p].sum + from_other_half(panels_[p].sum);
      if (half() == 0) {
        memory_.tops[wave()][p][lane()] = panels_[p].top;
        memory_.sums[wave()][p][lane()] = sum;
      }
    }
    float factors[kPanels][kAttentionWaves];
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
      for (int b = 2 * pass; b < 2 * pass + 2; ++b)
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          float values[kPiece];
          piece(panels_[p].output, b, values);
          if (wave() == b) {
#pragma unroll
            for (int i = 0; i < kPiece; ++i) x.values[p][i] = values[i];
          } else {
#pragma unroll
            for (int i = 0; i < kPiece; ++i)
              memory_.pieces[b % 2][wave() - (wave() > b)][p][i][lane()] = values[i];
          }
        }
      Group::barrier();
      if (pass == 0) {
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          float top = -__builtin_inff(), sum = 0;
#pragma unroll
          for (int w = 0; w < kAttentionWaves; ++w)
            top = __builtin_fmaxf(top, memory_.tops[w][p][lane() % 32]);
#pragma unroll
          for (int w = 0; w < kAttentionWaves; ++w) {
            factors[p][w] = __builtin_exp2f(memory_.tops[w][p][lane() % 32] - finite_or_zero(top));
            sum = __builtin_fmaf(memory_.sums[w][p][lane() % 32], factors[p][w], sum);
          }
          x.top[p] = top;
          x.sum[p] = sum;
        }
      }
      if (wave() / 2 == pass) {
#pragma unroll
        for (int p = 0; p < kPanels; ++p)
#pragma unroll
          for (int i = 0; i < kPiece; ++i) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < kAttentionWaves; ++w) {
              const float own = x.values[p][i];
              const int sender = w == 3 ? 2 : w - (w > wave());
              const float other = memory_.pieces[wave() % 2][sender][p][i][lane()];
              total = __builtin_fmaf(w == wave() ? own : other, factors[p][w], total);
            }
            x.values[p][i] = total;
          }
      }
      Group::barrier();
    }
  }

  // right := left and right.
  static void join(const Piece& left, Piece& right) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      AttentionJoin both(left.top[p], right.top[p]);
      right.sum[p] = both(left.sum[p], right.sum[p]);
#pragma unroll
      for (int i = 0; i < kPiece; ++i)
        right.values[p][i] = both(left.values[p][i], right.values[p][i]);
      right.top[p] = both.top;
    }
  }

  // The row of a tile that this lane's load reads, and from which element.
  static int key_row(int load) {
    return (kShared ? wave() * 8 : 0) + load * kLoadRows + lane() / kRowLanes;
  }
  static int key_dim() { return lane() % kRowLanes * kFragment; }
  static int value_row(int load) { return key_of((kShared ? wave() * 4 : 0) + load); }
  static int value_dim() { return lane() % 32 * kParts; }

  // From global memory.
  template <class V>
  static V read(const void* p) {
    return *(const __attribute__((address_space(1))) V*)p;
  }

  static int wave() { return __builtin_amdgcn_readfirstlane(thread_index() / kWave); }
  static int lane() { return thread_index() & (kWave - 1); }
  static int half() { return lane() >> 5; }
  // The row that register i of the scores or of an output holds.
  static int key_of(int i) { return 8 * (i / 4) + 4 * half() + i % 4; }

  Memory& memory_;
  Panel panels_[kPanels];
  float scale_;
  bool active_;
  bool fetched_ = false;
  int staged_ = 0, buffer_ = 0;
  int key_places_[kKeyLoads], value_places_[kValueLoads];
  Fragment keys_[kKeyLoads];
  Part values_[kReadsCodes ? 0 : kValueLoads];
  uint32_t pairs_[kReadsCodes ? kValueLoads : 0][kParts / 2];  // values instead
  // Of tiles of fp8 that are streamed.
  KeyCodes key_codes_[kReadsCodes ? kKeyLoads : 0];
  ValueCodes value_codes_[kReadsCodes ? kValueLoads : 0];
  uint32_t staged_codes_[kStagedCodes];
  const float* scales_;
  int64_t scales_page_;
  int page_;
  float row_scale_, staged_scale_;
  Piece node_;
};

static_assert(AttentionTarget<Tile<float, float, int, 64, false>, float, int>);
static_assert(AttentionTarget<Tile<bf16, e4m3fn, int, 64, true>, bf16, int>);

}  // namespace blockdraft::cdna
