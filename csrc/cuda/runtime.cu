#include <cuda_runtime.h>

#include <string>

// Why this library cannot run beside the driver there is, or null. Does not touch a device: it is
// asked before the first one is used.
extern "C" __attribute__((visibility("default"))) const char* sda_fast_cuda_problem() {
  static const std::string problem = [] {
    const auto version = [](int v) {
      return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
    };
    int driver = 0, runtime = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      return std::string("there is no CUDA driver");
    }
    if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) {
      return std::string("the CUDA runtime gives no version");
    }
    // Within a major version, a newer runtime runs on an older driver.
    if (driver / 1000 < runtime / 1000) {
      return "it was built with CUDA " + version(runtime) + ", and the driver only serves CUDA " +
             version(driver);
    }
    return std::string();
  }();
  return problem.empty() ? nullptr : problem.c_str();
}
