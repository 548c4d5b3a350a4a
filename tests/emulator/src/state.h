// The state of the one block that runs at a time, and what the parts of the emulator share. README.md has the
// model.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "emulator/launch.h"
#include "runtime.h"

namespace emu {

// -------------------------------------------------------------------------------------------------------- clocks

// Happens-before by vector clocks. An agent is whoever accesses memory: a thread, an mbarrier on behalf of the
// TMA loads that complete on it, a warpgroup's wgmma, or the TMA stores. Each has an epoch; a clock says which epoch of
// every agent one knows of.
using Epoch = uint32_t;
using Clock = std::vector<Epoch>;
constexpr int kMaxThreads = 1024, kMaxMbarriers = 64, kMaxWarpgroups = kMaxThreads / 128;

inline void join(Epoch* into, const Epoch* from, size_t n) {
    for (size_t i = 0; i < n; ++i) into[i] = into[i] > from[i] ? into[i] : from[i];
}

// What one thread, or one release of a barrier, knows. `fenced` counts only generic accesses that a fence.proxy.async
// has made visible to asynchronous ones.
struct Knowledge {
    Clock all, fenced;
    void reset(size_t agents) { all.assign(agents, 0), fenced.assign(agents, 0); }
    void join(const Knowledge& other) {
        emu::join(all.data(), other.all.data(), all.size());
        emu::join(fenced.data(), other.fenced.data(), all.size());
    }
};

// ------------------------------------------------------------------------------------------------- shared memory

constexpr uint32_t kSharedBase = 1024;  // the 32-bit address of the first dynamic byte
constexpr size_t kSharedLimit = 232448;

enum class CellState : uint8_t { uninitialised, in_flight, written, mbarrier };

struct Cell {  // one for every two bytes
    Epoch epoch = 0;
    uint16_t writer = 0;
    CellState state = CellState::uninitialised;
    bool async = false;  // written through the asynchronous proxy
};

// One access to shared memory by an agent, with what the agent knows.
struct Access {
    uint32_t agent;
    const Knowledge& known;
    bool async;
    void* pc;
    const char* what;
};

// -------------------------------------------------------------------------------------------------- asynchronous

struct CopyOp {  // one cp.async
    uint32_t offset;
    const uint8_t* source;
    uint32_t size;
    bool zero;
    void* pc;
};

struct TensorTile {  // a box of a tensor map, and its place in shared memory
    CUtensorMap map;
    uint32_t offset, bytes;
    int coordinates[5];
    void* pc;
};

struct LoadOp {
    TensorTile tile;
    int mbarrier, thread;
};

struct StoreOp {
    TensorTile tile;
    Epoch epoch;
    bool written = false;
};

struct WgmmaOp {
    int n;
    uint64_t desc_a, desc_b;
    bool accumulate, is_bf16, a_in_registers, a_is_mn, b_is_mn;
    bool computed = false;
    uint32_t a[128][4];
    float* d[128];
    const uint32_t* a_registers[128];
    void* pc;
    Epoch epoch;
};

struct Accumulator {  // values of registers that are poisoned while wgmma is in flight
    int count;        // per thread
    std::vector<float> values;
    float* registers[128];
};

// ------------------------------------------------------------------------------------------- threads and groups

struct Thread {
    int index = 0;
    Dim3 position;
    void* stack_pointer = nullptr;
    bool exited = false;
    Knowledge known;
    Epoch register_fence = 0;  // the number of its last wgmma.fence, which registers written since carry
    std::vector<CopyOp> open_copies;
    std::deque<std::vector<CopyOp>> copy_groups;
    std::vector<StoreOp> open_stores;
    std::deque<std::vector<StoreOp>> store_groups;
    const char* waits_in = "";
    void* waits_at = nullptr;
    std::function<std::string()> waits_for;
};

enum class Collective {
    syncwarp,
    shfl,
    ldmatrix,
    stmatrix,
    mma,
    wgmma_fence,
    wgmma,
    wgmma_commit,
    wgmma_wait,
    setmaxnreg,
    elect,
    publish_map
};
const char* name(Collective kind);

struct Rendezvous {
    Collective kind;
    uint32_t mask = 0, arrived = 0;
    void* argument[32];
    void* pc[32];
};

struct Warp {
    uint32_t live = 0, runnable = 0;
    std::vector<Rendezvous> rendezvous;
};

struct Warpgroup {
    Collective kind{};
    int arrived = 0;
    void* argument[128];
    bool fenced = false;
    Epoch issued = 0, retired = 0;
    std::vector<WgmmaOp> open;
    std::deque<std::vector<WgmmaOp>> groups;
    std::map<float*, Accumulator> in_flight;  // by the first thread's registers
};

struct Barrier {
    int expected = 0, arrived = 0;
    Knowledge released;
    std::vector<int> waiters;
};

struct Mbarrier {
    uint32_t offset = 0, count = 0, pending = 0, phase = 0;  // phase: how many have completed
    uint32_t first_phase = 0;                                // of this initialisation, where there were others
    int64_t pending_bytes = 0;
    Knowledge arriving, completed;
    std::vector<int> waiters;
    int initialiser = 0;
    bool fenced = false;
    uint32_t phases() const { return phase - first_phase; }
};

// A tensor map in global memory that the kernel itself wrote.
struct PublishedMap {
    std::vector<std::pair<int, Epoch>> published, acquired;  // by these threads, then
};

struct Block {
    Dim3 grid, dim, index;
    uint32_t number = 0, launch = 0, shared_bytes = 0;
    int num_threads = 0, num_warps = 0, num_warpgroups = 0, num_agents = 0, num_readers = 0;
    uint8_t* shared = nullptr;
    std::vector<Cell> cells;
    std::vector<uint32_t> readers;  // num_readers for each cell
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    Barrier barriers[16];
    std::vector<Mbarrier> mbarriers;
    std::map<uint32_t, int> mbarrier_at, invalid_mbarrier_at;
    std::map<const void*, PublishedMap> maps;
    std::vector<LoadOp> loads;  // in flight
    Epoch store_epoch = 0;
    int current = -1, exited = 0;
    bool abandoned = false;
    bool eager_wgmma = false;       // computed at issue: translated PTX copies registers while they are in flight
    bool tracks_registers = false;  // some wgmma.fence was seen
    const std::function<void()>* body = nullptr;

    int mbarrier_agent(int mbarrier) const { return num_threads + mbarrier; }
    int wgmma_agent(int warpgroup) const { return num_threads + kMaxMbarriers + warpgroup; }
    int store_agent() const { return num_threads + kMaxMbarriers + kMaxWarpgroups; }
    Thread& self() { return threads[current]; }
    Warp& warp() { return warps[current / 32]; }
    Warpgroup& warpgroup() { return warpgroups[current / 128]; }
    int warpgroup_start() const { return current / 128 * 128; }
};

extern Block block;
extern uint8_t* const shared_window;  // the block's shared memory lies within it, guarded on both sides
constexpr size_t kSharedWindow = 1 << 20, kSharedGuard = 256 << 10;
extern Options options;
extern Counters counters;
extern bool in_kernel;

// ----------------------------------------------------------------------------------------------------- scheduler

constexpr size_t kStackBytes = 128 << 10;
uint64_t random_number();
uint8_t* stack_of(int thread);
// Sleeps until wake(). `reason` is asked only if nothing ever wakes the thread.
void sleep(const char* what, void* pc, std::function<std::string()> reason = [] { return std::string(); });
void wake(int thread);
// Ends the block: for findings after which going on would only produce nonsense.
[[noreturn]] void abandon();
void run_block();

// After a release a thread enters a new epoch: what it does next is not covered by the release.
inline void next_epoch(int thread) { ++block.threads[thread].known.all[thread]; }

// ------------------------------------------------------------------------------------------------------- reports

[[gnu::format(printf, 3, 4)]] void report(const char* kind, void* pc, const char* format, ...);
std::string location(void* pc);
void clear_reports();

// Keeps an event of a thread, where Options::record asks for it.
void record_of(int thread, EventKind kind, uint32_t subject, uint32_t amount, uint32_t first = 0, uint32_t last = 0);
inline void record(EventKind kind, uint32_t subject, uint32_t amount, uint32_t first = 0, uint32_t last = 0) {
    record_of(block.current, kind, subject, amount, first, last);
}
void clear_events();

// -------------------------------------------------------------------------------------------------------- memory

bool inside_shared(uint32_t offset, uint32_t bytes, void* pc, const char* what);
void check_shared_read(uint32_t offset, uint32_t bytes, const Access& access, int reader, uint32_t mark);
void check_shared_write(uint32_t offset, uint32_t bytes, const Access& access);
void mark_shared(uint32_t offset, uint32_t bytes, uint32_t agent, Epoch epoch, CellState state, bool async);
void thread_reads_shared(uint32_t offset, uint32_t bytes, int thread, void* pc, const char* what);
void thread_writes_shared(uint32_t offset, uint32_t bytes, int thread, void* pc, const char* what);
std::string agent_name(uint32_t agent);

bool is_global(const void* p);
void check_global(const void* p, size_t bytes, bool write, void* pc, const char* what);
bool is_written_in_launch(const void* p);

// Registers of a thread live on its stack.
bool is_register(const void* p);
void check_register(const void* p, uint32_t bytes, bool write, void* pc);
void mark_registers_written(const void* p, uint32_t bytes);
bool written_since_fence(int thread, const void* p, uint32_t bytes);
void fence_registers(Thread& thread);

// ---------------------------------------------------------------------------------------------- asynchronous ops

void complete_load(size_t i);
void report_unfinished(Thread& thread);
int find_mbarrier(uint32_t address, void* pc, const char* what);
void complete_bytes(int mbarrier, uint32_t bytes, void* pc);
void check_map(const CUtensorMap* map, void* pc, const char* what);

}  // namespace emu

#define CALLER __builtin_return_address(0)
