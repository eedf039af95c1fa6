// Where a launcher's work goes.
#pragma once

namespace blockdraft {

struct Parallel;  // threads of a CPU, parallel.h

// A HIP stream.
struct Stream {
  void* handle;
};

}  // namespace blockdraft
