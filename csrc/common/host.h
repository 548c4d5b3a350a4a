// What the host code of every launch shares.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "common/tensor.h"

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would be told of it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Lets a kernel have so much dynamic shared memory on the current device.
template <class Kernel>
void allow_shared(Kernel kernel, int bytes, const char* name) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          (std::string("shared memory of ") + name).c_str());
}
