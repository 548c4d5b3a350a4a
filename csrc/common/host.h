// What the host code of every launch shares.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

enum class ElementType { bf16, fp16 };

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
