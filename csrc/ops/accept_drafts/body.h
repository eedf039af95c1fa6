// Kernel body of accept_drafts: speculative acceptance from logits, on the tile layer's scans. A
// CPU reads the rows of a request in order and no more of them than the rule needs. A GPU measures
// all rows at once (Crew::kStaged): each step of schedule.h is a launch.
#pragma once

#include "ops/accept_drafts/residual.h"
#include "ops/accept_drafts/rules.h"
#include "ops/accept_drafts/schedule.h"

namespace blockdraft {

template <class Crew, class T>
class Acceptance {
  using Scan = typename Crew::Scan;
  static constexpr int kSpread = Distribution<T>::kSpread;

 public:
  // `row`: the row of a step that has one, else 0.
  Acceptance(Crew& crew, const AcceptParams<T>& params, int request, const RowsMemory<T>& memory,
             int row = 0)
      : crew_(crew),
        params_(params),
        request_(request),
        memory_(memory),
        vocabulary_(params.vocabulary()),
        sampler_(crew, vocabulary_, memory.sums(row), memory.lists),
        live_(params.draft_len[request]),
        mix_(params.draft_logits && params.mix ? params.mix[request] : 1.0f) {
    sampled_ = params.draft_logits && !params.dirac && params.rule != kGreedy &&
               params.drafter_sampling.of(request).temperature > 0;
  }

  void run() {
    if (live_ < 0) return finish({-1, kFine, 1});
    const Verdict verdict = decide(*this, params_.rule);
    if (verdict.status == kFine) weigh(verdict);
    finish(verdict);
  }

  template <AcceptStep kStep>
  void step(int row, int block) {
    if constexpr (kStep == AcceptStep::kMeasure) measure(row, block);
    if constexpr (kStep == AcceptStep::kNormalise)
      if (row <= params_.drafts ? row <= live_ : row - params_.drafts - 1 < live_) normalise(row);
    if constexpr (kStep == AcceptStep::kSurplus) weigh_surplus(row, block);
    if constexpr (kStep == AcceptStep::kDecide) {
      const Verdict none{-1, kFine, 1};
      const Verdict verdict = live_ < 0 ? none : decide(*this, params_.rule);
      if (crew_.leader()) *memory_.verdict = verdict;
    }
    if constexpr (kStep == AcceptStep::kWeigh) weigh_block(*memory_.verdict, block);
    if constexpr (kStep == AcceptStep::kFinish) finish(*memory_.verdict);
    if constexpr (kStep == AcceptStep::kLogprob)
      log_probability(row, params_.accepted[request_], params_.next_token[request_]);
  }

  // The Evidence of rules.h.
  int live() const { return live_; }
  double p(int i) const { return probability(target(i), i); }
  double q(int i) const { return probability(draft(i), i); }

  double uniform_of(int i) const {  // of draft i; at i == drafts, of the draw
    if (params_.uniforms) return params_.uniforms.at(request_)[i];
    const bool drafted = i < params_.drafts;
    return uniform(params_.seed[request_], params_.position[request_], drafted ? i : 0,
                   drafted ? kAccept : kDraw);
  }

  // Makes the distributions of row i, unless earlier launches did. The target's comes last, because
  // its partials are read again for the draw.
  int prepare(int i) {
    if constexpr (!Crew::kStaged) {
      const int rows[] = {params_.drafts + 1 + i, i};
      for (int row : rows) {
        if (row <= params_.drafts || i < live_) normalise(row);
      }
    }
    return i < live_ ? most(target(i).status, draft(i).status) : target(i).status;
  }

  double surplus(int i, double scale) {
    const Distribution<T>& p = target(i);
    const Distribution<T>& q = draft(i);
    if (scale == 0) return 0;
    if (p.point != kSpread)
      return most(scale - q.template probability<Scan>(vocabulary_, p.point), 0.0);
    if (q.point != kSpread) return scale * (1 - probability(p, i));
    double sum = 0;
    if constexpr (Crew::kStaged) {
      for (int block = 0; block < vocabulary_.blocks; ++block) sum += memory_.surplus(i)[block];
    } else {
      sum = sampler_.weigh(
          [&](const auto& scan, int, Span span) { return residual_mass(scan, p, q, scale, span); });
      weighed_ = i;
    }
    return sum * (scale / p.sum);
  }

 private:
  // Whether a row's vocab_blocks have to be measured.
  bool measured(int row) const {
    if (row <= params_.drafts) return row <= live_;
    const int i = row - params_.drafts - 1;
    return sampled_ && i < live_ && !normaliser_given(i);
  }

  void measure(int row, int block) {
    if (!measured(row)) return;
    const Scan scan;
    const Partial partial =
        sampler_.measure_block(scan, logits(row), sampling(row), row == live_, block);
    if (scan.leader()) memory_.partials(row)[block] = partial;
  }

  void normalise(int row) {
    const int i = row - params_.drafts - 1;
    const Logits<T> own = logits(row);
    Distribution<T> made;
    if (measured(row)) {
      made = measured_row(row, own);
      // The status of a blend does not show which of its two rows is invalid.
      if (i < 0 && mixes(row) && (made.status != kFine || mix_ == 0))
        made.status = most(blend_status(row, own), made.status);
    } else if (sampled_) {
      const double* lse = params_.draft_lse.at(request_, i);
      made = sampler_.known_distribution(own, sampling(row), lse);
      if (!(Scan::value(draft_row(i) + token(i)) < __builtin_inff())) made.status = kNotNumbers;
    } else {
      const int point = vocabulary_.has(token(i)) ? token(i) : Distribution<T>::kNowhere;
      made = Distribution<T>{{}, 1, 1, 0, 0, 0, point, kFine};
    }
    if (crew_.leader()) memory_.distribution(row) = made;
    crew_.barrier();
  }

  // The distribution of a row; on a GPU, its vocab_blocks were measured by an earlier launch.
  Distribution<T> measured_row(int row, const Logits<T>& own) {
    Partial* const partials = memory_.partials(row);
    const bool drawn = row == live_;
    if constexpr (Crew::kStaged) return sampler_.distribution(own, sampling(row), drawn, partials);
    return sampler_.measured_distribution(own, sampling(row), drawn, partials);
  }

  // The worse status of the two rows of a blend.
  int blend_status(int row, Logits<T> one) {
    one.other = nullptr;
    int status = kFine;
    BLOCKDRAFT_ROLLED
    for (int i = 0; i < 2; ++i) {
      one.row = i ? draft_row(row) : target_row(row);
      status = most(status, sampler_.row_status(one));
    }
    return status;
  }

  void weigh_surplus(int row, int block) {
    if (row == 0 || row >= live_ || !spread(row)) return;
    const Scan scan;
    const double carry = block_carry(*this, row - 1);
    const Span span = vocabulary_.span(block);
    const double sum =
        uniform_of(row - 1) < carry ? residual_mass(scan, target(row), draft(row), carry, span) : 0;
    if (scan.leader()) memory_.surplus(row)[block] = sum;
  }

  // Mass of a vocab_block in the distribution that the token is drawn from.
  template <class AnyScan>
  double mass_of_draw(const AnyScan& scan, const Verdict& verdict, int block, Span span) const {
    const int row = verdict.accepted;
    const Distribution<T>& p = target(row);
    if (row < live_) return residual_mass(scan, p, draft(row), verdict.scale, span);
    return sampler_.mass(p, memory_.partials(row)[block]);
  }

  void weigh_block(const Verdict& verdict, int block) {
    if (verdict.accepted < 0 || verdict.status != kFine) return;
    if (target(verdict.accepted).point != kSpread) return;
    const Scan scan;
    const double sum = mass_of_draw(scan, verdict, block, vocabulary_.span(block));
    if (scan.leader()) memory_.sums(0)[block] = sum;
  }

  void weigh(const Verdict& verdict) {
    if (target(verdict.accepted).point != kSpread || weighed_ == verdict.accepted) return;
    sampler_.weigh([&](const auto& scan, int block, Span span) {
      return mass_of_draw(scan, verdict, block, span);
    });
  }

  int draw(Verdict& verdict) {
    const Distribution<T>& p = target(verdict.accepted);
    if (p.point != kSpread) return p.point;
    const bool rejected = verdict.accepted < live_;
    const double u = uniform_of(params_.drafts);
    double total = sampler_.total();
    if (total != total) {
      verdict.status = kNotNumbers;
      return -1;
    }
    if (rejected && total > 0) {
      const Distribution<T>& q = draft(verdict.accepted);
      return sampler_.find(u * total, [&](const auto& scan, Span span, double r) {
        return residual_crossing(scan, p, q, verdict.scale, span, r);
      });
    }
    if (rejected)  // the residual has no mass
      total = sampler_.weigh(
          [&](const auto& scan, int, Span span) { return sampler_.mass_in(scan, p, span); });
    return sampler_.find(u * total, [&](const auto& scan, Span span, double r) {
      return sampler_.crossing_in(scan, p, span, r);
    });
  }

  void finish(Verdict verdict) {
    int token = -1;
    if (live_ >= 0 && verdict.status == kFine) token = draw(verdict);
    if (token < 0) verdict.accepted = -1;
    next_pass(verdict, token);
    if (params_.target_logprob && !Crew::kStaged)
      for (int i = 0; i <= params_.drafts; ++i) log_probability(i, verdict.accepted, token);
  }

  // Log-probability of the token committed at row i, in the target's unmixed distribution, and the
  // row's greatest ones. Temperature 0 counts as 1.
  void log_probability(int i, int accepted, int next_token) {
    const int token = i < accepted ? this->token(i) : next_token;
    float value = 0;
    int listed = 0;
    if (i <= accepted) {
      Distribution<T> p = target(i);
      Sampling unmixed = sampling(i);
      if (mixes(i) || !(unmixed.temperature > 0)) {
        if (!(unmixed.temperature > 0)) unmixed.temperature = 1;
        const Logits<T> row = as_target(i, target_row(i));
        p = sampler_.measured_distribution(row, unmixed, false, memory_.partials(i));
      }
      value = p.template log_probability<Scan>(token);
      listed = list_top(i, p);
    }
    if (!crew_.leader()) return;
    const auto& params = Scan::reload(&params_);  // lest it takes registers until here
    params.target_logprob.at(request_)[i] = value;
    for (; listed < params.top; ++listed) {
      params.top_tokens.at(request_, i)[listed] = -1;
      params.top_logprobs.at(request_, i)[listed] = -__builtin_inff();
    }
  }

  // Returns how many of the wanted ids have a probability.
  int list_top(int i, const Distribution<T>& p) {
    auto put = [&](int rank, int id) {
      if (!crew_.leader()) return;
      const auto& params = Scan::reload(&params_);
      params.top_tokens.at(request_, i)[rank] = id;
      params.top_logprobs.at(request_, i)[rank] = p.template log_probability<Scan>(id);
    };
    const int top = Scan::reload(&params_).top;
    return top ? sampler_.each_greatest(p, top, put) : 0;
  }

  // Chooses the proposal of the largest live branch <= accepted + 1 (ties: the lowest index), and
  // how many drafts it supplies.
  void next_pass(const Verdict& verdict, int token) const {
    if (!crew_.leader()) return;
    int proposal = -1;
    int best = 0;
    for (int j = 0; j < params_.proposals; ++j) {
      const int branch = params_.branch.at(request_)[j];
      if (branch > best && branch <= verdict.accepted + 1) {
        best = branch;
        proposal = j;
      }
    }
    const int shift = proposal < 0 ? 0 : verdict.accepted + 1 - best;
    int length = proposal < 0 ? 0 : least(most(params_.mask_rows - 1 - shift, 0), params_.drafts);
    if (params_.remaining)
      length = least(length, most(params_.remaining[request_] - verdict.accepted - 2, 0));
    params_.accepted[request_] = verdict.accepted;
    params_.next_token[request_] = token;
    params_.status[request_] = verdict.status;
    params_.proposal[request_] = proposal;
    params_.shift[request_] = shift;
    params_.next_draft_len[request_] = verdict.accepted < 0 ? -1 : length;
  }

  bool mixes(int i) const { return mix_ != 1 && i < live_; }
  int token(int i) const { return params_.draft_tokens.at(request_)[i]; }
  const T* target_row(int i) const { return params_.target_logits.at(request_, i); }
  const T* draft_row(int i) const { return params_.draft_logits.at(request_, i); }
  const Distribution<T>& target(int i) const { return memory_.distribution(i); }
  const Distribution<T>& draft(int i) const { return memory_.distribution(params_.drafts + 1 + i); }
  bool spread(int i) const { return target(i).point == kSpread && draft(i).point == kSpread; }
  // Read again for each row, lest all take registers.
  Sampling sampling(int row) const {
    const auto& params = Scan::reload(&params_);
    if (row > params.drafts) return params.drafter_sampling.of(request_);
    Sampling target = params.target_sampling.of(request_);
    if (params.rule == kGreedy) target.temperature = 0;
    return target;
  }
  double probability(const Distribution<T>& of, int i) const {
    return of.template probability<Scan>(vocabulary_, token(i));
  }

  Logits<T> logits(int row) const {
    const int i = row - params_.drafts - 1;
    if (i >= 0)
      return {draft_row(i), nullptr, 1, words(params_.draft_allowed, request_, i), penalties(0)};
    if (!mixes(row)) return as_target(row, target_row(row));
    if (mix_ == 0) return as_target(row, draft_row(row));
    return as_target(row, target_row(row), draft_row(row), mix_);
  }
  // Logits with the mask and the penalties of target row i.
  Logits<T> as_target(int i, const T* row, const T* other = nullptr, float weight = 1) const {
    return {row, other, weight, words(params_.allowed, request_, i), penalties(i)};
  }
  Penalties penalties(int drafted) const {
    return Penalties::of<Scan>(params_.penalties, request_, drafted);
  }

  // sample_drafts writes neither a normaliser nor a token for a row without a distribution.
  bool normaliser_given(int i) const {
    if (!params_.draft_lse || !vocabulary_.has(token(i))) return false;
    const double* lse = params_.draft_lse.at(request_, i);
    return lse[0] - lse[0] == 0 && lse[1] - lse[1] == 0;
  }

  Crew& crew_;
  const AcceptParams<T>& params_;
  int request_;
  RowsMemory<T> memory_;
  Vocabulary vocabulary_;
  Sampler<Crew, T> sampler_;
  int live_;  // drafts under test
  float mix_;
  bool sampled_;      // q is a distribution of the draft's logits, not a point
  int weighed_ = -1;  // the row whose residual masses the sums already hold; -1: none
};

}  // namespace blockdraft
