// Speculative acceptance, straight from logits: the kernel body, written against the tile layer's
// scans. On a CPU a request goes row by row and stops at the first rejection; on a GPU the rows'
// blocks are measured at once (kStaged), and the steps below are launches of their own:
//
//   measure      a block of a row: what it adds to the row's normaliser
//   normalise    a row: its law
//   surplus      a block of a row, block mode: what it adds to the sum of (scale * p - q)+
//   decide       a request: how many drafts are kept
//   weigh        a block: its mass in the law that the token is drawn from
//   finish       a request: the draw, and all outputs but
//   logprob      a row: log-probability of its committed token, if wanted
#pragma once

#include "sampling.h"

namespace blockdraft {

enum Mode { kToken = 0, kBlock = 1, kGreedy = 2 };

template <class T>
struct AcceptParams {
  const T *target, *draft;  // [batch][drafts + 1][vocab], [batch][drafts][vocab] or null
  int64_t target_request, target_row, draft_request, draft_row;       // strides in elements
  const int32_t *tokens, *draft_len, *branch, *position, *remaining;  // remaining may be null
  const int64_t* seed;
  const double* uniforms;        // [batch][drafts + 1] or null
  const float *draft_lse, *mix;  // or null
  int64_t tokens_row, branch_row, uniforms_row, lse_row, logprob_row;
  SamplingParams target_sampling, drafter_sampling;
  int32_t *accepted, *next_token, *proposal, *shift, *next_draft_len, *status;
  float* logprob;     // [batch][drafts + 1] or null
  double* workspace;  // AcceptMemory of each request; only of a GPU
  int batch, drafts, valid, mask_token, mask_rows, proposals, mode, threads;  // threads: of a CPU
  bool dirac;

  template <class F>
  void each_pointer(F f) {
    f(target), f(draft), f(tokens), f(draft_len), f(branch), f(position), f(remaining), f(seed),
        f(uniforms), f(draft_lse), f(mix);
    target_sampling.each_pointer(f), drafter_sampling.each_pointer(f);
    f(accepted), f(next_token), f(proposal), f(shift), f(next_draft_len), f(status), f(logprob),
        f(workspace);
  }
};

// What is decided before the draw: drafts kept, and the factor of p in the residual law.
struct Verdict {
  int accepted, status;
  double scale;
};

// Memory of a request. Where the steps are launches of their own every row has its partials.
template <class T>
struct AcceptMemory {
  Law<T>* laws;       // [2 * drafts + 1]: target rows, draft rows
  Partial* partials;  // [blocks], or [2 * drafts + 1][blocks]
  double* surplus;    // null, or [drafts][blocks]
  double* sums;       // null, or [blocks]
  Verdict* verdict;   // null, or one

  // In one piece, for launches of their own. blockdraft.ops.accept_drafts knows the size.
  static int64_t doubles(int drafts, int blocks) {
    return (2 * drafts + 1) * (8 + 2 * blocks) + (drafts + 1) * blocks + 2;
  }
  static AcceptMemory at(double* memory, int drafts, int blocks) {
    static_assert(sizeof(Law<T>) == 8 * sizeof(double) && sizeof(Partial) == 2 * sizeof(double) &&
                  sizeof(Verdict) == 2 * sizeof(double));
    const int64_t rows = 2 * drafts + 1;
    double *partials = memory + 8 * rows, *surplus = partials + 2 * rows * blocks,
           *sums = surplus + drafts * blocks;
    return {reinterpret_cast<Law<T>*>(memory), reinterpret_cast<Partial*>(partials), surplus, sums,
            reinterpret_cast<Verdict*>(sums + blocks)};
  }
};

template <class Crew, class T>
class Acceptance {
 public:
  Acceptance(Crew& crew, const AcceptParams<T>& params, int request, const AcceptMemory<T>& memory)
      : crew_(crew),
        p_(params),
        b_(request),
        memory_(memory),
        vocabulary_(params.valid, params.mask_token),
        sampler_(crew, vocabulary_),
        live_(params.draft_len[request]),
        target_(params.target_sampling.of(request)),
        drafter_(params.drafter_sampling.of(request)),
        mix_(params.draft && params.mix ? params.mix[request] : 1.0f) {
    if (p_.mode == kGreedy) target_.temperature = 0;
    sampled_ = p_.draft && !p_.dirac && p_.mode != kGreedy && drafter_.temperature > 0;
  }

  void run() {
    if (live_ < 0) return finish({-1, kFine, 1});
    const Verdict verdict = decide();
    if (verdict.status == kFine) weigh(verdict);
    finish(verdict);
  }

  // The steps as launches of their own, each for one item of rows (below), blocks or both.
  static constexpr int kMeasure = 0, kNormalise = 1, kSurplus = 2, kDecide = 3, kWeigh = 4,
                       kFinish = 5, kLogprob = 6;

  template <int kStep>
  void step(int row, int block) {
    const typename Crew::Scan scan;
    const Span span = vocabulary_.span(block);
    if constexpr (kStep == kMeasure) {
      if (!measured(row)) return;
      const Partial partial =
          sampler_.measure_block(scan, logits(row), shaping(row), row == live_, block);
      if (scan.leader()) partials(row)[block] = partial;
    }
    if constexpr (kStep == kNormalise) {
      if (row <= p_.drafts ? row <= live_ : row - p_.drafts - 1 < live_) normalise(row);
    }
    if constexpr (kStep == kSurplus) {
      if (row == 0 || row >= live_ || !spread(row)) return;
      const double carry = carry_after(row - 1);
      const double sum = uniform_of(row - 1) < carry
                             ? surplus_mass(scan, target(row), draft(row), carry, span)
                             : 0;
      if (scan.leader()) memory_.surplus[row * vocabulary_.blocks + block] = sum;
    }
    if constexpr (kStep == kDecide) {
      const Verdict verdict = live_ < 0 ? Verdict{-1, kFine, 1} : decide();
      if (crew_.leader()) *memory_.verdict = verdict;
    }
    if constexpr (kStep == kWeigh) {
      const Verdict v = *memory_.verdict;
      if (v.accepted < 0 || v.status != kFine || target(v.accepted).point != Law<T>::kSpread)
        return;
      const double sum = weigh(scan, v, block, span);
      if (scan.leader()) memory_.sums[block] = sum;
    }
    if constexpr (kStep == kFinish) finish(*memory_.verdict);
    if constexpr (kStep == kLogprob) log_probability(row, p_.accepted[b_], p_.next_token[b_]);
  }

 private:
  // Rows: 0..drafts are the target's, then come the draft's. Whether a row's blocks have to be
  // measured.
  bool measured(int row) const {
    if (row <= p_.drafts) return row <= live_;
    return sampled_ && row - p_.drafts - 1 < live_ && !normaliser_given(row - p_.drafts - 1);
  }

  void normalise(int row) {
    const int i = row - p_.drafts - 1;
    Law<T> law;
    if (measured(row)) {
      law = sampler_.law(logits(row), shaping(row), partials(row));
      if (i < 0 && mixes(row) &&
          (law.status != kFine ||
           mix_ == 0)) {  // a blend cannot tell which of its rows is at fault
        const int status = sampler_.row_status({target_row(row), nullptr, 1});
        law.status =
            most(status ? status : law.status, sampler_.row_status({draft_row(row), nullptr, 1}));
      }
    } else if (sampled_) {
      law = sampler_.known_law(logits(row), drafter_, p_.draft_lse[b_ * p_.lse_row + i]);
      if (!(Crew::Scan::value(draft_row(i) + token(i)) < __builtin_inff()))
        law.status = kNotNumbers;
    } else {
      law =
          Law<T>{{}, 1, 1, 0, 0, 0, vocabulary_.has(token(i)) ? token(i) : Law<T>::kNowhere, kFine};
    }
    if (crew_.leader()) memory_.laws[row] = law;
    crew_.barrier();
  }

  Verdict decide() { return p_.mode == kBlock ? decide_block() : decide_token(); }

  // Mass of the law of the draw in a block.
  template <class Scan>
  double weigh(const Scan& scan, const Verdict& v, int block, Span span) const {
    const Law<T>& p = target(v.accepted);
    if (v.accepted < live_) return surplus_mass(scan, p, draft(v.accepted), v.scale, span);
    return p.truncated() ? sampler_.law_mass(scan, p, span)
                         : sampler_.mass(p, partials(v.accepted)[block]);
  }

  void finish(Verdict v) {
    int token = -1;
    if (live_ >= 0 && v.status == kFine) token = draw(v);
    if (token < 0) v.accepted = -1;
    next_pass(v, token);
    if (p_.logprob && !Crew::kStaged)
      for (int i = 0; i <= p_.drafts; ++i) log_probability(i, v.accepted, token);
  }

  bool mixes(int i) const { return mix_ != 1 && i < live_; }
  int token(int i) const { return p_.tokens[b_ * p_.tokens_row + i]; }
  const T* target_row(int i) const {
    return p_.target + b_ * p_.target_request + i * p_.target_row;
  }
  const T* draft_row(int i) const { return p_.draft + b_ * p_.draft_request + i * p_.draft_row; }
  const Law<T>& target(int i) const { return memory_.laws[i]; }
  const Law<T>& draft(int i) const { return memory_.laws[p_.drafts + 1 + i]; }
  Partial* partials(int row) const {
    return memory_.partials + (Crew::kStaged ? row * vocabulary_.blocks : 0);
  }
  bool spread(int i) const {
    return target(i).point == Law<T>::kSpread && draft(i).point == Law<T>::kSpread;
  }
  Shaping shaping(int row) const { return row <= p_.drafts ? target_ : drafter_; }

  Logits<T> logits(int row) const {
    if (row > p_.drafts) return {draft_row(row - p_.drafts - 1), nullptr, 1};
    if (!mixes(row)) return {target_row(row), nullptr, 1};
    return mix_ == 0 ? Logits<T>{draft_row(row), nullptr, 1}
                     : Logits<T>{target_row(row), draft_row(row), mix_};
  }

  // sample_drafts leaves no normaliser of a row that has no law, nor a token; and a cut must be
  // found again.
  bool normaliser_given(int i) const {
    if (!p_.draft_lse || drafter_.truncates() || !vocabulary_.has(token(i))) return false;
    const float lse = p_.draft_lse[b_ * p_.lse_row + i];
    return lse - lse == 0;
  }

  double uniform_of(int i) const {  // a draft's, or at `drafts` that of the draw
    if (p_.uniforms) return p_.uniforms[b_ * p_.uniforms_row + i];
    return uniform(p_.seed[b_], p_.position[b_], i < p_.drafts ? i : 0,
                   i < p_.drafts ? kAccept : kDraw);
  }

  // The laws of row i, where they have not been made by launches before. The target comes last: its
  // partials stay.
  int prepare(int i) {
    if constexpr (!Crew::kStaged) {
      const int rows[] = {p_.drafts + 1 + i, i};
      for (int row : rows) {
        if (row > p_.drafts && i == live_) continue;
        if (measured(row))
          sampler_.measure_row(logits(row), shaping(row), row == live_, partials(row));
        normalise(row);
      }
    }
    return i < live_ ? most(target(i).status, draft(i).status) : target(i).status;
  }

  Verdict decide_token() {
    for (int i = 0;; ++i) {
      const int status = prepare(i);
      if (status != kFine || i == live_) return {i, status, 1};
      if (!(uniform_of(i) * probability(draft(i), i) < probability(target(i), i)))
        return {i, kFine, 1};
    }
  }

  // Nothing after a draft that the target cannot have is looked at, nor the bonus row unless all
  // are kept.
  Verdict decide_block() {
    int end = 0, status = kFine;
    while (end < live_ && (status = prepare(end)) == kFine && probability(target(end), end) > 0)
      ++end;
    if (status != kFine) return {0, status, 1};
    Verdict v = last_kept(end);
    if (v.accepted == live_) v.status = prepare(live_);
    return v;
  }

  // Of drafts 0..end - 1 the last whose test succeeds counts, whatever came of those before it: so
  // they are tried from the last on.
  Verdict last_kept(int end) {
    Verdict v{0, kFine, 1};
    for (int i = end - 1; i >= 0 && v.status == kFine; --i) {
      const double carry = carry_after(i), u = uniform_of(i);
      if (!(u < carry)) continue;  // h is at most as large
      double h = carry;
      if (i + 1 < live_) {
        const double surplus = surplus_of(i + 1, carry);
        if (surplus != surplus) v.status = kNotNumbers;  // in a row whose normaliser was given
        h = surplus > 0 ? surplus / (surplus + 1 - carry) : 0;
      }
      if (u < h) return {i + 1, v.status, carry};
    }
    return v;
  }

  double probability(const Law<T>& law, int i) const {
    return law.template probability<typename Crew::Scan>(vocabulary_, token(i));
  }

  // The block rule's p_i, of drafts 0..i.
  double carry_after(int i) const {
    double carry = 1;
    for (int j = 0; j <= i && carry > 0; ++j) {
      const double p = probability(target(j), j);
      carry = p > 0 ? least(carry * p / probability(draft(j), j), 1.0) : 0;
    }
    return carry;
  }

  // Sum of (scale * p - q)+ of row i.
  double surplus_of(int i, double scale) {
    const Law<T>&p = target(i), &q = draft(i);
    if (scale == 0) return 0;
    if (p.point != Law<T>::kSpread)
      return most(scale - q.template probability<typename Crew::Scan>(vocabulary_, p.point), 0.0);
    if (q.point != Law<T>::kSpread) return scale * (1 - probability(p, i));
    double sum = 0;
    if constexpr (Crew::kStaged)
      for (int block = 0; block < vocabulary_.blocks; ++block)
        sum += memory_.surplus[i * vocabulary_.blocks + block];
    else {
      sum = sampler_.weigh(
          [&](const auto& scan, int, Span span) { return surplus_mass(scan, p, q, scale, span); });
      weighed_ = i;
    }
    return sum * (scale / p.sum);
  }

  void weigh(const Verdict& v) {
    if (target(v.accepted).point == Law<T>::kSpread && weighed_ != v.accepted)
      sampler_.weigh(
          [&](const auto& scan, int block, Span span) { return weigh(scan, v, block, span); });
  }

  int draw(Verdict& v) {
    const Law<T>& p = target(v.accepted);
    const double u = uniform_of(p_.drafts);
    if (p.point != Law<T>::kSpread) return p.point;
    double total = sampler_.total();
    if (total != total) v.status = kNotNumbers;
    if (total != total) return -1;
    if (v.accepted < live_ && total > 0)
      return sampler_.find(u * total, [&](const auto& scan, Span span, double r) {
        return surplus_crossing(scan, p, draft(v.accepted), v.scale, span, r);
      });
    if (v.accepted < live_)  // no residual
      total = sampler_.weigh(
          [&](const auto& scan, int, Span span) { return sampler_.law_mass(scan, p, span); });
    return sampler_.find(u * total, [&](const auto& scan, Span span, double r) {
      return sampler_.law_crossing(scan, p, span, r);
    });
  }

  // The weights (p - ratio * q)+, or p where q is a point, of which 1 / p.sum is left out: where
  // the laws are equal nothing must remain, so that a fused multiply-add may not see two different
  // roundings.
  template <bool kPlain>
  static auto surplus(const Law<T>& p, const Law<T>& q, double scale) {
    const float ratio = float(p.sum / q.sum / scale);
    return [&p, &q, ratio, infinite = !(ratio < __builtin_inff())](auto at, auto&) {
      const auto of_p = p.template weight<kPlain>(at);
      if constexpr (!kPlain)
        if (q.point != Law<T>::kSpread)
          return at.select(at.template id<T>() == at.all(q.point), at.all(0.0f), of_p);
      const auto of_q = q.template weight<kPlain>(at);
      const auto rest = at.maximum(at.all(0.0f), of_p - of_q * at.all(ratio));
      return infinite ? at.select(of_q == at.all(0.0f), of_p, rest) : rest;  // 0 times infinity
    };
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static double surplus_mass(const Scan& scan, const Law<T>& p, const Law<T>& q,
                                             double scale, Span span) {
    if (p.plain() && q.plain() && q.point == Law<T>::kSpread)
      return scan.sum(span, surplus<true>(p, q, scale)).sum;
    return scan.sum(span, surplus<false>(p, q, scale)).sum;
  }
  template <class Scan>
  BLOCKDRAFT_SCAN static int surplus_crossing(const Scan& scan, const Law<T>& p, const Law<T>& q,
                                              double scale, Span span, double r) {
    return scan.crossing(span, surplus<false>(p, q, scale), r);
  }

  // Of the committed tokens under the unmixed target law, of temperature 1 where it is 0.
  void log_probability(int i, int accepted, int next_token) {
    const int token = i < accepted ? this->token(i) : next_token;
    float value = 0;
    if (i <= accepted && !mixes(i) && target_.temperature > 0) {
      value = target(i).template log_probability<typename Crew::Scan>(token);
    } else if (i <= accepted) {
      const Logits<T> row{target_row(i), nullptr, 1};
      const Shaping shaping{target_.temperature > 0 ? target_.temperature : 1, target_.top_k,
                            target_.top_p};
      sampler_.measure_row(row, shaping, false, partials(i));
      value = sampler_.law(row, shaping, partials(i))
                  .template log_probability<typename Crew::Scan>(token);
    }
    if (crew_.leader()) p_.logprob[b_ * p_.logprob_row + i] = value;
  }

  // The proposal of the largest live branch <= accepted + 1 (ties: the lowest), and how many drafts
  // it supplies.
  void next_pass(const Verdict& v, int token) const {
    if (!crew_.leader()) return;
    int proposal = -1, best = 0;
    for (int j = 0; j < p_.proposals; ++j) {
      const int branch = p_.branch[b_ * p_.branch_row + j];
      if (branch > best && branch <= v.accepted + 1) best = branch, proposal = j;
    }
    const int shift = proposal < 0 ? 0 : v.accepted + 1 - best;
    int length = proposal < 0 ? 0 : least(most(p_.mask_rows - 1 - shift, 0), p_.drafts);
    if (p_.remaining) length = least(length, most(p_.remaining[b_] - v.accepted - 2, 0));
    p_.accepted[b_] = v.accepted, p_.next_token[b_] = token, p_.status[b_] = v.status;
    p_.proposal[b_] = proposal, p_.shift[b_] = shift,
    p_.next_draft_len[b_] = v.accepted < 0 ? -1 : length;
  }

  Crew& crew_;
  const AcceptParams<T>& p_;
  int b_;
  AcceptMemory<T> memory_;
  Vocabulary vocabulary_;
  Sampler<Crew, T> sampler_;
  int live_;  // drafts under test
  Shaping target_, drafter_;
  float mix_;
  bool sampled_;  // q is a law of the draft's logits, not a point
  int weighed_ =
      -1;  // the row whose residual, of the verdict's scale, the crew's sums already hold
};

}  // namespace blockdraft
