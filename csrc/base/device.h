// Where a launcher's work goes.
#pragma once

namespace blockdraft {

struct Parallel;  // threads of a CPU, parallel.h

// A GPU's queue of work.
struct Stream {
  void* handle;
};

}  // namespace blockdraft
