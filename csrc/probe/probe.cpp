// Measures the ceilings of this CPU with 1..n threads: DRAM read bandwidth and the rates of fp32
// multiply-adds, bf16 products and fp32 exponentials. Each probe runs all threads for about
// `seconds` and divides their work by the time from the first start to the last stop.
#include <Python.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tile/cpu/amx.h"

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline void keep(vec& x) { asm volatile("" : "+m"(x)); }

void check_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads: expected 1 .. 1024, got " + std::to_string(threads));
}

// Each thread calls body(thread), which returns the units of work done, until `seconds` have
// passed. Returns the units per second of all threads together.
template <class Body>
double rate(int threads, double seconds, Body body) {
  check_threads(threads);
  if (!(seconds > 0))
    throw std::invalid_argument("seconds: expected more than 0, got " + std::to_string(seconds));
  PyThreadState* python = PyEval_SaveThread();
  std::atomic<int> ready{0};
  std::vector<double> units(threads), start(threads), stop(threads);
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      body(t);  // warm up: maps pages, raises the clock
      for (++ready; ready < threads;) std::this_thread::yield();
      start[t] = now();
      do units[t] += body(t);
      while ((stop[t] = now()) - start[t] < seconds);
    });
  for (auto& thread : pool) thread.join();
  PyEval_RestoreThread(python);
  double total = 0, first = start[0], last = stop[0];
  for (int t = 0; t < threads; ++t) {
    total += units[t];
    first = start[t] < first ? start[t] : first;
    last = stop[t] > last ? stop[t] : last;
  }
  return total / (last - first);
}

double read_bandwidth(int threads, double seconds, int64_t mebibytes) {
  check_threads(threads);
  if (mebibytes < 1)
    throw std::invalid_argument("mebibytes: expected at least 1, got " + std::to_string(mebibytes));
  const int64_t count = (mebibytes << 20) / threads / int64_t(sizeof(vec)) / 16 * 16;
  std::vector<std::unique_ptr<vec[]>> memory(threads);
  return rate(threads, seconds, [&](int t) {
    if (!memory[t]) {  // first written by the thread that reads it, hence on its NUMA node
      memory[t].reset(new vec[count]);
      std::memset(memory[t].get(), 1, count * sizeof(vec));
    }
    const vec* p = memory[t].get();
    vec sum[16] = {};
    // Hardware prefetching stops at the end of a page unless a line of a later one is prefetched.
    constexpr int64_t page = 4096 / sizeof(vec);
    for (int64_t i = 0; i < count; i += 16) {
      if (i % page == 0) __builtin_prefetch(p + i + 2 * page);
      for (int j = 0; j < 16; ++j) sum[j] += p[i + j];
    }
    for (auto& s : sum) keep(s);
    return double(count * sizeof(vec));
  });
}

double fma_peak(int threads, double seconds) {
  return rate(threads, seconds, [](int t) {
    vec acc[12], a = vec{} + 0.999f + 1e-6f * t, b = vec{} + 1e-3f;
    for (auto& x : acc) x = vec{} + 1.0f;
    keep(a), keep(b);
    constexpr int steps = 1 << 16;
    for (int i = 0; i < steps; ++i)
      for (auto& x : acc) x = x * a + b;
    for (auto& x : acc) keep(x);
    return 2.0 * kLanes * 12 * steps;
  });
}

#ifdef __AVX512F__
__attribute__((target("avx512bf16"))) double dot_steps() {
  constexpr int steps = 1 << 16;
  __m512 acc[12];
  for (auto& x : acc) {
    x = _mm512_set1_ps(1.0f);
    asm volatile("" : "+v"(x));  // hides from the compiler that all are equal
  }
  __m512i a = _mm512_set1_epi32(0x3f803f80), b = _mm512_set1_epi32(0x3c003c00);
  asm volatile("" : "+v"(a), "+v"(b));
  for (int i = 0; i < steps; ++i)
    for (auto& x : acc) x = _mm512_dpbf16_ps(x, (__m512bh)a, (__m512bh)b);
  for (auto& x : acc) asm volatile("" : "+v"(x));
  return 4.0 * kLanes * 12 * steps;
}

// The loop of the kernels, over operands in the L1.
double tile_steps() {
  using blockdraft::cpu::MatrixUnit;
  constexpr int kTiles = MatrixUnit::kTogether, depth = MatrixUnit::kStep << 12;
  struct {
    alignas(64) blockdraft::bf16 operand[512];
    blockdraft::cpu::WeightPanel step(int) const { return {operand, operand, 32}; }
    void after(int) const {}
  } weights;
  std::memset(weights.operand, 0x3c, sizeof weights.operand);
  alignas(64) float sums[2 * kTiles * MatrixUnit::kSums];
  MatrixUnit::open(MatrixUnit::kTile);
  MatrixUnit::multiply<2, kTiles>(weights, 0, depth, weights.operand, 0, 0, sums, false);
  MatrixUnit::close();
  return 2.0 * 2 * kTiles * MatrixUnit::kSums * depth;
}
#endif

double dot_peak(int threads, double seconds) {
#ifdef __AVX512F__
  if (blockdraft::cpu::has_matrix_unit())
    return rate(threads, seconds, [](int) { return tile_steps(); });
  if (__builtin_cpu_supports("avx512bf16"))
    return rate(threads, seconds, [](int) { return dot_steps(); });
#endif
  return 0;
}

// 2^x to 3e-7 for -126 <= x <= 127, by the shortest polynomial that is this exact. Other bases need
// one more product; tables may be faster.
inline vec exponential(vec x) {
#ifdef __AVX512F__
  const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
  const vec r = x - (vec)whole;
#else
  // 1.5 * 2^23 + 127: adding it rounds to an integer and leaves the biased exponent in the low
  // bits.
  const vec magic = vec{} + 12583039.0f;
  const vec shifted = x + magic, r = x - (shifted - magic);
#endif
  vec p = 1.3276803e-3f * r + 9.6755586e-3f;
  p = p * r + 5.5507120e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314694e-1f;
  p = p * r + 1.0000001f;
#ifdef __AVX512F__
  return (vec)_mm512_scalef_ps((__m512)p, whole);
#else
  return p * (vec)((ivec)shifted << 23);
#endif
}

double exp_peak(int threads, double seconds) {
  return rate(threads, seconds, [](int) {
    vec x[8], sum[8] = {};
    for (int j = 0; j < 8; ++j) x[j] = vec{} - 0.1f * float(j + 1);
    constexpr int steps = 1 << 13;
    for (int i = 0; i < steps; ++i)
      for (int j = 0; j < 8; ++j) {
        sum[j] += exponential(x[j]);
        x[j] += -1e-3f;  // another argument each time, still above -126
      }
    for (auto& s : sum) keep(s);
    return double(kLanes) * 8 * steps;
  });
}

float exp_one(float x) { return exponential(vec{} + x)[0]; }

bool has_avx512() {  // all that x86-64-v4 has
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// Calls `probe`; a C++ exception becomes Python's ValueError.
template <class Probe>
PyObject* number(Probe probe) {
  try {
    return PyFloat_FromDouble(probe());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

template <double (*kProbe)(int, double)>
PyObject* call_rate(PyObject*, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"threads", "seconds", nullptr};
  int threads;
  double seconds = 0.5;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|d", const_cast<char**>(names), &threads,
                                   &seconds))
    return nullptr;
  return number([&] { return kProbe(threads, seconds); });
}

PyObject* call_read_bandwidth(PyObject*, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"threads", "seconds", "mebibytes", nullptr};
  int threads;
  double seconds = 0.5;
  long long mebibytes = 1024;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|dL", const_cast<char**>(names), &threads,
                                   &seconds, &mebibytes))
    return nullptr;
  return number([&] { return read_bandwidth(threads, seconds, mebibytes); });
}

// What this build multiplies with on this CPU.
const char* instructions() {
#ifdef __AVX512F__
  if (blockdraft::cpu::has_matrix_unit()) return "AVX-512 and AMX";
  return __builtin_cpu_supports("avx512bf16") ? "AVX-512 with BF16" : "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "no AVX2";
#endif
}
PyObject* call_instructions(PyObject*, PyObject*) { return PyUnicode_FromString(instructions()); }

PyObject* call_has_avx512(PyObject*, PyObject*) { return PyBool_FromLong(has_avx512()); }

PyObject* call_exponential(PyObject*, PyObject* x) {
  const double value = PyFloat_AsDouble(x);
  if (PyErr_Occurred()) return nullptr;
  return number([&] { return exp_one(float(value)); });
}

template <class Function>
PyMethodDef method(const char* name, Function function, int flags, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), flags, doc};
}

constexpr int kNamed = METH_VARARGS | METH_KEYWORDS;

PyMethodDef methods[] = {
    method("read_bandwidth", call_read_bandwidth, kNamed,
           "(threads, seconds=0.5, mebibytes=1024): bytes per second read from memory by all "
           "threads together; `mebibytes` in all should exceed the last-level cache."),
    method("fma_peak", call_rate<fma_peak>, kNamed,
           "(threads, seconds=0.5): fp32 operations per second (a multiply-add counts two)."),
    method("dot_peak", call_rate<dot_peak>, kNamed,
           "(threads, seconds=0.5): operations per second of bf16 products, of the matrix unit or "
           "else of dot products; 0 if this CPU has neither."),
    method("exp_peak", call_rate<exp_peak>, kNamed,
           "(threads, seconds=0.5): fp32 exponentials per second."),
    method("has_avx512", call_has_avx512, METH_NOARGS,
           "Whether this CPU runs what is built for x86-64-v4."),
    method("instructions", call_instructions, METH_NOARGS,
           "The instructions that this build multiplies with on this CPU."),
    method("exponential", call_exponential, METH_O,
           "2^x as exp_peak times it, of one number in -126..127."),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

// The additional level of macros expands the arguments before # and ## apply.
#define BLOCKDRAFT_JOIN(a, b) a##b
#define BLOCKDRAFT_INIT(module) BLOCKDRAFT_JOIN(PyInit_, module)
#define BLOCKDRAFT_TEXT(x) #x
#define BLOCKDRAFT_NAME(module) BLOCKDRAFT_TEXT(module)

PyMODINIT_FUNC BLOCKDRAFT_INIT(BLOCKDRAFT_MODULE)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, BLOCKDRAFT_NAME(BLOCKDRAFT_MODULE),
                                   "Ceilings of this CPU, measured with plain threads; no torch.",
                                   -1, methods};
  return PyModule_Create(&definition);
}
