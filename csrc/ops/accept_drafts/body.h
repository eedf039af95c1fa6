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
  static constexpr int kMeasured = -1;  // the status of a draft's row that is yet to be normalised

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
        live_(constant(params.draft_len + request)),
        mix_(params.draft_logits && params.mix ? constant(params.mix + request) : 1.0f) {
    sampled_ = params.draft_logits && !params.dirac && params.rule != kGreedy &&
               params.drafter_sampling.of(request).temperature > 0;
  }

  void run() {
    if (live_ < 0) return finish({-1, kFine, 1});
    finish(decide(*this, params_.rule));
  }

  // The steps of a GPU.
  void measure(int row, int block) {
    if (row == 0 && block == 0 && crew_.leader()) *memory_.arrived = 0;
    if (!measured(row)) return;
    const Scan scan;
    const Partial partial =
        sampler_.measure_block(scan, logits(row), sampling(row), row == live_, block);
    if (scan.leader()) memory_.partials(row)[block] = partial;
  }

  void normalise_live(int row) {
    if (row <= params_.drafts ? row <= live_ : row - params_.drafts - 1 < live_) normalise(row);
  }

  // Each target row by a scan; the drafter's rows by the threads of one, then each that was measured
  // by a scan.
  void normalise_all() {
    crew_.share(1,
                [this](const Scan& scan, int) { scan.each(live_, [this](int i) { look_at(i); }); });
    int rows = live_ + 1, first = 0;
    BLOCKDRAFT_ROLLED
    while (true) {
      const Sampling own = sampling(first);
      crew_.share(rows, [&](const Scan& scan, int i) {
        if (first == 0 || waits(first + i)) normalise_by(scan, first + i, own);
      });
      if (first > 0) return;
      rows = live_;
      first = row_of_draft(0);
      if (Scan::first(live_, [&](int i) { return waits(first + i); }) == live_) return;
    }
  }

  // The verdict as far as it is known before the residual's masses are: that of the block rule is to
  // reject `row`, if it may come to that.
  template <bool kByBlock>
  Verdict verdict(int row) {
    if (live_ < 0) return {-1, kFine, 1};
    return kByBlock && by_block() ? tested(row) : decide_token(*this);
  }

  // What a draw from this row may need: the residual's masses of some vocab_blocks.
  void weigh_some(const Verdict& verdict, int row, int crew) {
    const int at = verdict.accepted;
    if (verdict.status != kFine || at < 0 || at >= live_) return;
    const Distribution<T>& p = target(at);
    const Distribution<T>& q = draft(at);
    if (p.point != kSpread) return;
    const int some = blocks_of_crew(params_), first = crew * some;
    for (int block = first; block < least(first + some, vocabulary_.blocks); ++block) {
      const Span span = vocabulary_.span(block);
      const double sum = residual_mass(crew_.together(), p, q, verdict.scale, span);
      if (crew_.leader()) crew_.publish(memory_.sums(row) + block, sum);
    }
  }

  int32_t* arrived() const { return memory_.arrived; }

  template <bool kByBlock>
  void conclude(const Verdict& verdict) {
    if (!kByBlock || !by_block() || live_ < 0) return finish(verdict);
    crew_.share(live_, [this](const Scan& scan, int i) {
      const double sum = parts(i).total();
      if (scan.leader()) memory_.state(i).residual = sum;
    });
    finish(decide_block(*this));
  }

  void log_probability(int row) {
    log_probability(row, params_.accepted[request_], params_.next_token[request_]);
  }

  // The Evidence of rules.h.
  int live() const { return live_; }
  template <class Holds>
  static int first(int n, Holds holds) {
    return Scan::first(n, holds);
  }
  double p(int i) const { return chance(i); }
  double q(int i) const { return chance(row_of_draft(i)); }
  double carry(int i) const { return memory_.state(i).carry; }
  void make_carries(int n) {
    chain_carries(n, [this](int i, double carry) { memory_.state(i).carry = carry; });
    crew_.barrier();
  }

  double uniform_of(int i) const {  // of draft i; at i == drafts, of the draw
    if (memory_.within && i < live_) return memory_.state(i).uniform;
    return made_uniform(i);
  }

  // Makes the distributions of row i, unless earlier launches did. The target's comes last, because
  // its partials are read again for the draw.
  void prepare(int i) {
    if constexpr (!Crew::kStaged) {
      if (i < live_) normalise(row_of_draft(i));
      normalise(i);
    }
  }
  int status(int i) const {
    return i < live_ ? most(target(i).status, draft(i).status) : target(i).status;
  }

  double surplus(int i, double scale) {
    const Distribution<T>& p = target(i);
    const Distribution<T>& q = draft(i);
    if (scale == 0) return 0;
    if (p.point != kSpread)
      return most(scale - q.template probability<Scan>(vocabulary_, p.point), 0.0);
    if (q.point != kSpread) return scale * (1 - this->p(i));
    return (Crew::kStaged ? memory_.state(i).residual : weigh(i, scale)) * (scale / p.sum);
  }

 private:
  // Whether a row's vocab_blocks have to be measured.
  bool measured(int row) const {
    if (row <= params_.drafts) return row <= live_;
    const int i = row - params_.drafts - 1;
    return sampled_ && i < live_ && !normaliser_given(i);
  }

  void normalise(int row) {
    keep(row, made(row), crew_.leader());
    crew_.barrier();
  }

  // Whether look_at has found that a drafter's row was measured.
  bool waits(int row) const { return memory_.state(row).distribution.status == kMeasured; }

  // What decides on draft i beside the normalisers that were measured.
  void look_at(int i) const {
    const int id = token(i);
    BLOCKDRAFT_ROLLED
    for (int row = i; row <= row_of_draft(i); row += params_.drafts + 1) {
      RowState<T>& state = memory_.state(row);
      state.token = id;
      if (vocabulary_.has(id) && (row == i || sampled_))
        state.logit = logits(row).template at<Scan>(id);
    }
    const int row = row_of_draft(i);
    if (measured(row))
      memory_.state(row).distribution.status = kMeasured;
    else
      memory_.state(row).distribution = given(row);
    memory_.state(i).uniform = made_uniform(i);
  }

  void normalise_by(const Scan& scan, int row, const Sampling& sampling) {
    auto alone = crew_.alone();
    Sampler<decltype(alone), T> own(alone, vocabulary_, memory_.sums(row), {});
    const Distribution<T> made = own.template distribution<false>(
        logits(row), sampling, row == live_, memory_.partials(row));
    keep(row, made, scan.leader());
  }

  double made_uniform(int i) const {
    if (params_.uniforms) return constant(params_.uniforms.at(request_) + i);
    const bool drafted = i < params_.drafts;
    return uniform(constant(params_.seed + request_), constant(params_.position + request_),
                   drafted ? i : 0, drafted ? kAccept : kDraw);
  }

  void keep(int row, const Distribution<T>& made, bool leader) const {
    const int i = row <= params_.drafts ? row : row - params_.drafts - 1;
    double chance = __builtin_nan("");
    if (!memory_.within && i < live_ && made.status == kFine)
      chance = made.template probability<Scan>(vocabulary_, token(i));
    if (!leader) return;
    memory_.state(row).distribution = made;
    memory_.state(row).chance = chance;
  }

  // The probability of a row's draft; where states are within, from its logit.
  double chance(int row) const {
    const RowState<T>& state = memory_.state(row);
    if (!memory_.within) return state.chance;
    if (state.distribution.status != kFine) return __builtin_nan("");
    return state.distribution.probability(vocabulary_, state.token, state.logit);
  }

  Distribution<T> made(int row) {
    if (!measured(row)) return given(row);
    const Logits<T> own = logits(row);
    Distribution<T> made = measured_row(row, own);
    // The status of a blend does not show which of its two rows is invalid.
    if (row <= params_.drafts && mixes(row) && (made.status != kFine || mix_ == 0))
      made.status = most(blend_status(row, own), made.status);
    return made;
  }

  // The distribution of a draft's row that is not measured.
  Distribution<T> given(int row) const {
    const int i = row - params_.drafts - 1;
    if (!sampled_) {
      const int point = vocabulary_.has(token(i)) ? token(i) : Distribution<T>::kNowhere;
      return {{}, 1, 1, 0, 0, 0, point, kFine};
    }
    Distribution<T> known =
        sampler_.known_distribution(logits(row), sampling(row), params_.draft_lse.at(request_, i));
    if (!(Scan::value(draft_row(i) + token(i)) < __builtin_inff())) known.status = kNotNumbers;
    return known;
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

  template <class F>
  double chain_carries(int n, F f) const {
    return Scan::chain(
        n, 1.0, [this](int i) { return p(i) > 0 ? p(i) / q(i) : 0.0; }, next_carry, f);
  }

  // The verdict by which the block rule may come to reject a row; else one that rejects none.
  Verdict tested(int row) const {
    if (row >= live_) return {live_, kFine, 1};
    const double carry = chain_carries(row, [](int, double) {});
    if (row > 0 && !(uniform_of(row - 1) < carry)) return {live_, kFine, 1};
    return {row, status(row), carry};
  }

  // The residual's masses of a row.
  Sampler<Crew, T> parts(int row) const {
    return {crew_, vocabulary_, memory_.sums(row), memory_.lists};
  }
  double weigh(int row, double scale) {
    weighed_ = row;
    return parts(row).weigh([&](const auto& scan, int, Span span) {
      return residual_mass(scan, target(row), draft(row), scale, span);
    });
  }

  int draw(Verdict& verdict) {
    const int row = verdict.accepted;
    const Distribution<T>& p = target(row);
    if (p.point != kSpread) return p.point;
    const double u = uniform_of(params_.drafts);
    if (row < live_) {
      if (!Crew::kStaged && weighed_ != row) weigh(row, verdict.scale);
      const Distribution<T>& q = draft(row);
      const auto residual = parts(by_block() ? row : 0);
      const auto masses = residual.sums();
      const double total = masses.fold(0.0, residual.plus);
      if (total != total) {
        verdict.status = kNotNumbers;
        return -1;
      }
      if (total > 0)
        return residual.find(masses, u * total, [&](const auto& scan, Span span, double r) {
          return residual_crossing(scan, p, q, verdict.scale, span, r);
        });
      // The residual has no mass.
      crew_.each_block(vocabulary_, [&](const auto& scan, int block, Span span) {
        const double mass = sampler_.mass_in(scan, p, span);
        if (scan.leader()) memory_.partials(row)[block] = {mass, p.top, kFine};
      });
    }
    const auto partials = sampler_.terms(memory_.partials(row));
    const auto masses = sampler_.masses(p);
    const double sum = partials.fold(0.0, sampler_.plus, masses);
    auto crossing = [&](const auto& scan, Span span, double r) {
      return sampler_.crossing_in(scan, p, span, r);
    };
    return sampler_.find(partials, u * sum, crossing, masses);
  }

  void finish(Verdict verdict) {
    int token = -1;
    if (live_ >= 0 && verdict.status == kFine) token = draw(verdict);
    if (token < 0) verdict.accepted = -1;
    next_pass(verdict, token);
    if constexpr (!Crew::kStaged)
      if (params_.target_logprob)
        for (int i = 0; i <= params_.drafts; ++i) log_probability(i, verdict.accepted, token);
  }

  // Log-probability of the token committed at row i, in the target's unmixed distribution, and the
  // row's greatest ones. Temperature 0 counts as 1.
  void log_probability(int i, int accepted, int next_token) {
    const int token = i < accepted ? this->token(i) : next_token;
    float value = 0;
    int listed = 0;
    if (i <= accepted) {
      const Sampling own = sampling(i);
      const bool measures = mixes(i) || !(own.temperature > 0);
      const Distribution<T> p = measures ? unmixed(i, own) : committed(i, own);
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

  Distribution<T> unmixed(int i, Sampling sampling) {
    if (!(sampling.temperature > 0)) sampling.temperature = 1;
    const Logits<T> row = as_target(i, target_row(i));
    return sampler_.measured_distribution(row, sampling, false, memory_.partials(i));
  }
  // That of a row which is not mixed, nor all on one id.
  Distribution<T> committed(int i, const Sampling& sampling) {
    if (!Crew::kStaged || normalises_apart(params_)) return target(i);
    return sampler_.template distribution<false>(logits(i), sampling, false, memory_.partials(i));
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
    const auto& params = Scan::reload(&params_);
    int proposal = -1;
    int best = 0;
    for (int j = 0; j < params.proposals; ++j) {
      const int branch = params.branch.at(request_)[j];
      if (branch > best && branch <= verdict.accepted + 1) {
        best = branch;
        proposal = j;
      }
    }
    const int shift = proposal < 0 ? 0 : verdict.accepted + 1 - best;
    int length = proposal < 0 ? 0 : least(most(params.mask_rows - 1 - shift, 0), params.drafts);
    if (params.remaining)
      length = least(length, most(params.remaining[request_] - verdict.accepted - 2, 0));
    params.accepted[request_] = verdict.accepted;
    params.next_token[request_] = token;
    params.status[request_] = verdict.status;
    params.proposal[request_] = proposal;
    params.shift[request_] = shift;
    params.next_draft_len[request_] = verdict.accepted < 0 ? -1 : length;
  }

  bool by_block() const { return params_.rule == kBlock; }
  bool mixes(int i) const { return mix_ != 1 && i < live_; }
  int token(int i) const { return constant(params_.draft_tokens.at(request_) + i); }
  const T* target_row(int i) const { return params_.target_logits.at(request_, i); }
  const T* draft_row(int i) const { return params_.draft_logits.at(request_, i); }
  int row_of_draft(int i) const { return params_.drafts + 1 + i; }
  const Distribution<T>& target(int i) const {
    const Distribution<T>& known = memory_.state(i).distribution;
    if (memory_.within && !known.logits.plain()) __builtin_unreachable();  // see the schedule
    return known;
  }
  const Distribution<T>& draft(int i) const { return target(row_of_draft(i)); }
  // Read again for each row, lest all take registers.
  Sampling sampling(int row) const {
    const auto& params = Scan::reload(&params_);
    if (row > params.drafts) return params.drafter_sampling.of(request_);
    Sampling target = params.target_sampling.of(request_);
    if (params.rule == kGreedy) target.temperature = 0;
    return target;
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
    return Penalties::of<Scan>(params_.penalties, request_, drafted, memory_.touched);
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

// A group of a step; `own`: memory of the workgroup, see rows_within. What later parts, or the end of
// a long one, need of the parameters is read anew, lest it takes registers until then.
template <AcceptStep kStep, class Crew, class T>
void accept_step(Crew& crew, const AcceptParams<T>& params, int64_t group, char* own) {
  auto part = [&](const AcceptParams<T>& p, auto work) {
    if (kStep == AcceptStep::kDrawAlone && normalises_apart(p)) __builtin_unreachable();
    const AcceptGrid grid = accept_grid(p, kStep);
    const int request = grid.request(group), row = grid.row(group);
    auto memory = RowsMemory<T>::staged(p.workspace.at(request), p.workspace.stride[1],
                                        p.vocabulary().blocks);
    if (rows_within(kStep)) memory.keep_states(own);
    Acceptance<Crew, T> acceptance(crew, p, request, memory, row);
    return work(acceptance, row, grid.block(group), grid.rows * grid.blocks);
  };
  if constexpr (kStep == AcceptStep::kMeasure)
    part(params, [](auto& a, int row, int block, int) { a.measure(row, block); });
  if constexpr (kStep == AcceptStep::kNormalise)
    part(params, [](auto& a, int row, int, int) { a.normalise_live(row); });
  if constexpr (kStep == AcceptStep::kLogprob)
    part(Crew::Scan::reload(&params), [](auto& a, int row, int, int) { a.log_probability(row); });
  if constexpr (kStep == AcceptStep::kDrawAlone)
    part(params, [](auto& a, int, int, int) { a.normalise_all(); });
  if constexpr (kStep == AcceptStep::kDraw || kStep == AcceptStep::kDrawAlone) {
    constexpr bool kByBlock = kStep == AcceptStep::kDraw;
    Verdict verdict;
    const bool last =
        part(Crew::Scan::reload(&params), [&](auto& a, int row, int block, int groups) {
          verdict = a.template verdict<kByBlock>(row);
          a.weigh_some(verdict, row, block);
          return crew.last(a.arrived(), groups);
        });
    if (last)
      part(Crew::Scan::reload(&params),
           [&](auto& a, int, int, int) { a.template conclude<kByBlock>(verdict); });
  }
}

}  // namespace blockdraft
