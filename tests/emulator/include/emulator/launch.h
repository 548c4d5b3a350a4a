// What a test driver sees: launching a kernel on the emulator. Blocks run one after another, the threads of a block as
// fibers.
#pragma once
#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#include "common/device.h"

namespace emu {

using TranslatedKernel = void (*)(void** params);

// Runs `thread` once for every thread of the grid. Findings are kept for emu_reports() (runtime.h). Translated PTX
// copies registers while a wgmma uses them, so wgmma is then computed at issue.
void launch_threads(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread,
                    bool is_translated = false);

// Whether translated PTX stores to shared memory what was written there before, and may.
bool is_repeated_store(const void* p, const void* value, size_t bytes);

// The C++ made from nvcc's PTX of this kernel where emu_use_ptx has named a library (lacking the kernel is a finding),
// else null.
TranslatedKernel translated_kernel(void* kernel);

// kernel<<<grid, block, shared_bytes>>>(args...): the kernel's source, or its PTX where one is loaded.
template <class... Params, class... Args>
void launch(Dim3 grid, Dim3 block, size_t shared_bytes, void (*kernel)(Params...), const Args&... args) {
    std::tuple<std::remove_const_t<Params>...> params(args...);
    if (TranslatedKernel translated = translated_kernel(reinterpret_cast<void*>(kernel))) {
        std::apply(
            [&](auto&... p) {
                void* pointers[] = {&p...};
                launch_threads(grid, block, shared_bytes, [&] { translated(pointers); }, true);
            },
            params);
    } else {
        launch_threads(grid, block, shared_bytes, [&] { std::apply(kernel, params); });
    }
}

}  // namespace emu
