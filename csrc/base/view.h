// A tensor's memory as kernels see it.
#pragma once

#include <stdint.h>

namespace blockdraft {

// The `kStrides` leading dimensions have strides; the last dimension is contiguous.
template <class T, int kStrides>
struct View {
  T* data;                   // null for a tensor that was not given
  int64_t stride[kStrides];  // in elements

  explicit operator bool() const { return data != nullptr; }

  // Pointer to the elements at these leading indices; omitted indices are 0.
  template <class... Index>
  T* at(Index... index) const {
    static_assert(sizeof...(Index) <= kStrides);
    T* p = data;
    int d = 0;
    ((p += index * stride[d++]), ...);
    return p;
  }
};

// *p, which nothing writes while the kernel runs. A GPU's scalar unit reads it if the address is the
// same in all threads, and then waits for no other load.
template <class T>
T constant(const T* p) {
#ifdef __AMDGCN__
  return *(const __attribute__((address_space(4))) T*)p;
#else
  return *p;
#endif
}

// Calls f on every pointer in a member of a parameter struct.
template <class F, class T>
void visit_pointers(F f, T*& pointer) {
  f(pointer);
}
template <class F, class T, int kStrides>
void visit_pointers(F f, View<T, kStrides>& view) {
  f(view.data);
}
template <class F, class Struct>
void visit_pointers(F f, Struct& members) {
  members.each_pointer(f);
}

// In a parameter struct: lists the members that are or contain pointers.
#define BLOCKDRAFT_POINTERS(...)                                             \
  template <class F>                                                         \
  void each_pointer(F f) {                                                   \
    auto visit = [&](auto&... member) { (visit_pointers(f, member), ...); }; \
    visit(__VA_ARGS__);                                                      \
  }

}  // namespace blockdraft
