// Launches C++ that was made from PTX (cuda_emulator.build_text), with no source of ours behind it.
#include "emulator/launch.h"

extern "C" void launch(void* kernel, void** params, int64_t x, int64_t y, int64_t z, int64_t threads,
                       int64_t shared_bytes) {
    const auto translated = reinterpret_cast<emu::TranslatedKernel>(kernel);
    emu::launch_threads(emu::Dim3(x, y, z), threads, shared_bytes, [&] { translated(params); }, true);
}
