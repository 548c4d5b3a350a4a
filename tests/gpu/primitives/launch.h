// Launching the conformance kernels: by nvcc on a GPU, by any other compiler on the emulator. Returns 0, or the CUDA
// error.
#pragma once
#include "common/device.h"

#ifdef __CUDACC__
#include <cuda.h>

template <class... Params, class... Args>
int launch(int threads, size_t shared_bytes, void (*kernel)(Params...), const Args&... args) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    kernel<<<1, threads, shared_bytes>>>(args...);
    const cudaError_t error = cudaGetLastError();
    return error != cudaSuccess ? error : cudaDeviceSynchronize();
}

inline decltype(&cuTensorMapEncodeTiled) encode_tiled() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}
#else
#include "emulator/launch.h"

template <class... Params, class... Args>
int launch(int threads, size_t shared_bytes, void (*kernel)(Params...), const Args&... args) {
    emu::launch(1, threads, shared_bytes, kernel, args...);
    return 0;
}

inline decltype(&cuTensorMapEncodeTiled) encode_tiled() { return &cuTensorMapEncodeTiled; }
#endif
