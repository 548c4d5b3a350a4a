// A launch: every block in turn, from poisoned shared memory. Faults and endless loops inside a kernel become findings.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace emu {

Options options;
Counters counters;
bool in_kernel;

namespace {

void* translated_library;

uint8_t* make_window() {
    void* p = mmap(nullptr, kSharedWindow, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) perror("emulator: no memory for shared memory"), exit(1);
    return static_cast<uint8_t*>(p);
}

// Goes on in abandon(), on the stack of the thread that ran.
void leave_kernel(ucontext_t* context) {
    const auto top = reinterpret_cast<greg_t>(stack_of(block.current) + kStackBytes - 64);
    context->uc_mcontext.gregs[REG_RSP] = top - 8;
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&abandon);
}

void on_fault(int signal, siginfo_t* info, void* raw) {
    auto* context = static_cast<ucontext_t*>(raw);
    void* pc = reinterpret_cast<uint8_t*>(context->uc_mcontext.gregs[REG_RIP]) + 1;
    if (!in_kernel || block.current < 0) {
        if (signal == SIGSEGV) ::signal(SIGSEGV, SIG_DFL);  // not a kernel's: once more, with the default action
        return;
    }
    if (signal == SIGVTALRM) {
        report("timeout", pc, "the launch took more than %u s of processor time", options.seconds);
    } else {
        const uint8_t* stack = stack_of(block.current);
        const auto* address = static_cast<const uint8_t*>(info->si_addr);
        const bool overflow = address >= stack && address < stack + 4096;
        report("fault", pc, overflow ? "the thread's stack overflows" : "access to address %p", info->si_addr);
    }
    leave_kernel(context);
}

// Our handlers for as long as a launch lasts.
class Guard {
  public:
    Guard() {
        static uint8_t alternate[64 << 10];
        const stack_t stack{.ss_sp = alternate, .ss_flags = 0, .ss_size = sizeof alternate};
        sigaltstack(&stack, &old_stack_);
        struct sigaction action{};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &old_fault_);
        sigaction(SIGVTALRM, &action, &old_alarm_);
        set_timer(options.seconds);
    }
    ~Guard() {
        set_timer(0);
        sigaction(SIGVTALRM, &old_alarm_, nullptr);
        sigaction(SIGSEGV, &old_fault_, nullptr);
        sigaltstack(&old_stack_, nullptr);
    }

  private:
    static void set_timer(time_t seconds) {
        const itimerval timer{.it_interval = {.tv_sec = 1, .tv_usec = 0},
                              .it_value = {.tv_sec = seconds, .tv_usec = 0}};
        setitimer(ITIMER_VIRTUAL, &timer, nullptr);
    }
    stack_t old_stack_;
    struct sigaction old_fault_, old_alarm_;
};

void start_block(uint32_t number) {
    const Dim3 grid = block.grid, dim = block.dim;
    block.number = number;
    block.index = Dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
    memset(shared_window + kSharedGuard, 0xff, block.shared_bytes);
    block.cells.assign((block.shared_bytes + 1) / 2, Cell{});
    block.readers.assign(block.cells.size() * block.num_readers, 0);
    block.warps.assign(block.num_warps, Warp{});
    block.warpgroups.assign(block.num_warpgroups, Warpgroup{});
    for (Barrier& b : block.barriers) b = Barrier{};
    block.mbarriers.clear(), block.mbarrier_at.clear(), block.invalid_mbarrier_at.clear();
    block.loads.clear(), block.maps.clear();
    block.tracks_registers = false;
    block.threads.assign(block.num_threads, Thread{});
    for (int t = 0; t < block.num_threads; ++t) {
        Thread& thread = block.threads[t];
        thread.index = t;
        thread.position = Dim3(t % dim.x, t / dim.x % dim.y, t / dim.x / dim.y);
        thread.known.reset(block.num_agents);
        thread.known.all[t] = 1;
    }
}

}  // namespace

uint8_t* const shared_window = make_window();

void launch_threads(Dim3 grid, Dim3 dim, size_t shared_bytes, const std::function<void()>& body, bool is_translated) {
    ++counters.launches, ++block.launch;
    block.current = -1;
    const unsigned threads = dim.x * dim.y * dim.z;
    if (shared_bytes > kSharedLimit || threads == 0 || threads > kMaxThreads) {
        report("launch", nullptr, "%u threads (at most %d) and %zu bytes of shared memory (at most %zu)", threads,
               kMaxThreads, shared_bytes, kSharedLimit);
        return;
    }
    block.grid = grid, block.dim = dim, block.body = &body, block.eager_wgmma = is_translated, block.abandoned = false;
    block.shared_bytes = shared_bytes;
    block.shared = shared_window + kSharedGuard;
    block.num_threads = threads, block.num_warps = (threads + 31) / 32, block.num_warpgroups = (threads + 127) / 128;
    block.num_agents = block.store_agent() + 1;
    block.num_readers = block.num_warps + block.num_warpgroups + 1;
    block.mbarriers.reserve(kMaxMbarriers);
    Guard guard;
    for (uint32_t number = 0; number < grid.x * grid.y * grid.z && !block.abandoned; ++number) {
        ++counters.blocks;
        start_block(number);
        run_block();
    }
    in_kernel = false;
}

TranslatedKernel translated_kernel(void* kernel) {
    if (!translated_library) return nullptr;
    Dl_info info;
    const bool named = dladdr(kernel, &info) && info.dli_sname;
    const std::string name = "ptx_" + std::string(named ? info.dli_sname : "(no name)");
    void* translated = dlsym(translated_library, name.c_str());
    if (!translated) report("ptx", kernel, "the PTX in use holds no %s", name.c_str());
    return reinterpret_cast<TranslatedKernel>(translated);
}

const Dim3& thread_idx() { return block.self().position; }
const Dim3& block_idx() { return block.index; }
const Dim3& block_dim() { return block.dim; }
const Dim3& grid_dim() { return block.grid; }

}  // namespace emu

using namespace emu;

void emu_configure(const Options* new_options) {
    options = *new_options;
    counters = {};
    clear_reports();
    clear_events();
}

const Counters* emu_counters() { return &counters; }

void emu_use_ptx(void* library) { translated_library = library; }

namespace dev {

uint8_t* dynamic_shared() { return shared_window + kSharedGuard; }

uint32_t shared_address(const void* p) { return static_cast<const uint8_t*>(p) - dynamic_shared() + kSharedBase; }

}  // namespace dev
