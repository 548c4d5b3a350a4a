// Runs one call of the CPU engine on memory that a sanitizer watches: driver VARIANT PASS SCALE THREADS < call >
// results. A call is, in int64: number of fields, for each a value or -1 - index of a buffer; number of buffers, the
// bytes of each; then the buffers. Results are the buffers again. Every buffer is an allocation of its own, exactly as
// large as it says.
//
// The engine's source is included, so that the kernels for 16 lanes run here, compiled for a narrower machine.
#include <cstdio>
#include <string>

#include "engine.cpp"

namespace tivtok {
extern const Variant avx512;
extern const ForwardKernels amx_forward;
static const Choice CHOICES[] = {{"portable", true, &portable, &portable.forward},
                                 {"avx512", true, &avx512, &avx512.forward},
                                 {"amx", true, &avx512, &amx_forward}};
}  // namespace tivtok

static void read_all(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(3);
}

static int64_t read_int() {
    int64_t value;
    read_all(&value, sizeof value);
    return value;
}

int main(int, char** arguments) {
    const std::string variant = arguments[1], pass = arguments[2];
    for (const Choice& choice : CHOICES)
        if (variant == choice.name) chosen = &choice;
    if (variant != chosen.load()->name) return 2;

    std::vector<int64_t> fields(read_int());
    for (int64_t& field : fields) field = read_int();
    std::vector<int64_t> sizes(read_int());
    for (int64_t& size : sizes) size = read_int();
    std::vector<std::unique_ptr<char[]>> buffers;
    for (const int64_t size : sizes) {
        buffers.emplace_back(new char[size]);
        read_all(buffers.back().get(), size);
    }
    for (int64_t& field : fields)
        if (field < 0 && field > -1000) field = reinterpret_cast<int64_t>(buffers[-1 - field].get());

    const auto run = pass == "forward" ? tivtok_cpu_forward : tivtok_cpu_backward;
    if (run(fields.data(), std::stod(arguments[3]), std::stoll(arguments[4]), nullptr)) return 1;
    for (size_t i = 0; i < sizes.size(); i++) std::fwrite(buffers[i].get(), 1, sizes[i], stdout);
}
