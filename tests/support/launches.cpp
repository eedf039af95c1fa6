// The launchers of the .hip files, with a HIP runtime that reports launches instead of making them.
#include <stddef.h>
#include <stdint.h>

#include <map>

#include "ops/accept_drafts/params.h"
#include "ops/block_attention/params.h"
#include "ops/cca_qkv/params.h"
#include "ops/commit/params.h"
#include "ops/fused_moe/params.h"
#include "ops/moe_dispatch/params.h"
#include "ops/plan_branches/params.h"
#include "ops/residual_norm/params.h"
#include "ops/rope_qkv/params.h"
#include "ops/sample_drafts/params.h"
#include "ops/zaya_router/params.h"

namespace {

struct Extent {
  uint32_t x, y, z;
};

using Report = void (*)(const char* kernel, uint32_t groups, uint32_t threads,
                        const void* arguments);
Report report;

std::map<const void*, const char*>& kernels() {
  static std::map<const void*, const char*> known;
  return known;
}

}  // namespace

// What clang calls, and hip_runtime_api.h declares.
extern "C" {

void** __hipRegisterFatBinary(const void*) { return nullptr; }
void __hipUnregisterFatBinary(void**) {}
void __hipRegisterFunction(void**, const void* host, char*, const char* name, unsigned, void*,
                           void*, void*, void*, int*) {
  kernels()[host] = name;
}
int __hipPopCallConfiguration(Extent*, Extent*, size_t*, void**) { return 1; }
const char* hipGetErrorString(int) { return "a launch that is not reported"; }
int hipLaunchKernel(const void* kernel, Extent groups, Extent threads, void** arguments, size_t lds,
                    void*) {
  const bool flat = groups.y * groups.z * threads.y * threads.z == 1;
  if (!flat || lds || !kernels().count(kernel)) return 1;
  report(kernels()[kernel], groups.x, threads.x, arguments[0]);
  return 0;
}

}  // extern "C"

namespace blockdraft {
namespace {

template <class T>
using PlainCca = CcaParams<T>;
template <class T>
using PlainRope = RopeParams<T>;
template <class T>
using PlainMoe = FusedMoeParams<T>;

template <template <class> class Params>
void launch_as(int type, const void* params) {
  if (type == 0) launch(*static_cast<const Params<float>*>(params), Stream{});
  if (type == 1) launch(*static_cast<const Params<bf16>*>(params), Stream{});
  if (type == 2) launch(*static_cast<const Params<fp16>*>(params), Stream{});
}

}  // namespace

extern "C" {

void report_launches(Report to) { report = to; }

void launch_accept_drafts(int type, const void* p) { launch_as<AcceptParams>(type, p); }
void launch_block_attention(int type, const void* p) { launch_as<AttentionParams>(type, p); }
// From 3 on bf16, with a cache of e4m3fn, e4m3fnuz.
void launch_cca_qkv(int type, const void* p) {
  launch_as<PlainCca>(type, p);
  if (type == 3) launch(*static_cast<const CcaParams<bf16, e4m3fn>*>(p), Stream{});
  if (type == 4) launch(*static_cast<const CcaParams<bf16, e4m3fnuz>*>(p), Stream{});
}
// From 3 on bf16, with weights in lower precision: e4m3fn, e4m3fnuz, e2m1x2.
void launch_fused_moe(int type, const void* p) {
  launch_as<PlainMoe>(type, p);
  if (type == 3) launch(*static_cast<const FusedMoeParams<bf16, e4m3fn>*>(p), Stream{});
  if (type == 4) launch(*static_cast<const FusedMoeParams<bf16, e4m3fnuz>*>(p), Stream{});
  if (type == 5) launch(*static_cast<const FusedMoeParams<bf16, e2m1x2>*>(p), Stream{});
}
void launch_residual_norm(int type, const void* p) { launch_as<ResidualNormParams>(type, p); }
// From 3 on bf16, with a cache of e4m3fn, e4m3fnuz.
void launch_rope_qkv(int type, const void* p) {
  launch_as<PlainRope>(type, p);
  if (type == 3) launch(*static_cast<const RopeParams<bf16, e4m3fn>*>(p), Stream{});
  if (type == 4) launch(*static_cast<const RopeParams<bf16, e4m3fnuz>*>(p), Stream{});
}
void launch_sample_drafts(int type, const void* p) { launch_as<SampleParams>(type, p); }
void launch_zaya_router(int type, const void* p) { launch_as<ZayaRouterParams>(type, p); }
void launch_moe_dispatch(int, const void* p) {
  launch(*static_cast<const DispatchParams*>(p), Stream{});
}
// `unit`: bytes of a probability.
void launch_plan_branches(int unit, const void* p) {
  if (unit == 4) launch(*static_cast<const PlanParams<float>*>(p), Stream{});
  if (unit == 8) launch(*static_cast<const PlanParams<double>*>(p), Stream{});
}
// `unit`: bytes of what is copied.
void launch_commit(int unit, const void* p) {
  if (unit == 2) launch(*static_cast<const CommitParams<uint16_t>*>(p), Stream{});
  if (unit == 4) launch(*static_cast<const CommitParams<uint32_t>*>(p), Stream{});
  if (unit == 16) launch(*static_cast<const CommitParams<Bits128>*>(p), Stream{});
}

}  // extern "C"
}  // namespace blockdraft
