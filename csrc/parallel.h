// How a launcher gets threads without knowing whose they are.
#pragma once

#include <stdint.h>

#include <functional>

namespace blockdraft {

// Calls body(begin, end) over parts of 0..n that together cover it, on as many threads as the
// caller wants to lend.
using Parallel = std::function<void(int64_t n, int64_t grain,
                                    const std::function<void(int64_t begin, int64_t end)>& body)>;

}  // namespace blockdraft
