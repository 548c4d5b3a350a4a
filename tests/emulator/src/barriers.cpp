// Barriers of the block, named barriers, and mbarriers.
#include <algorithm>

#include "state.h"

namespace emu {

namespace {

void arrive_at_barrier(int id, int expected, bool wait, void* pc) {
    Barrier& b = block.barriers[id];
    record(wait ? kSync : kArriveNamed, id, expected);
    if (expected % 32 || expected > (block.num_threads + 31) / 32 * 32 || expected <= 0) {
        report("barrier", pc, "barrier %d with a thread count of %d; the block has %d threads", id, expected,
               block.num_threads);
        abandon();
    }
    if (b.arrived && b.expected != expected) {
        report("barrier", pc, "barrier %d with a thread count of %d, after arrivals with %d", id, expected, b.expected);
        abandon();
    }
    if (!b.arrived) b.expected = expected, b.released.reset(block.num_agents);
    b.released.join(block.self().known);
    next_epoch(block.current);
    if (wait) b.waiters.push_back(block.current);
    if (++b.arrived < expected) {
        if (wait) {
            sleep("barrier", pc, [id] {
                const Barrier& b = block.barriers[id];
                return " " + std::to_string(id) + " (" + std::to_string(b.arrived) + " of " +
                       std::to_string(b.expected) + " threads)";
            });
        }
        return;
    }
    for (int waiter : b.waiters) {
        block.threads[waiter].known.join(b.released);
        wake(waiter);
    }
    b.waiters.clear();
    b.arrived = 0;
}

std::string describe(const Mbarrier& m, uint32_t parity) {
    return " " + std::to_string(m.offset + kSharedBase) + " for parity " + std::to_string(parity) + " (" +
           std::to_string(m.phases()) + " phases completed, " + std::to_string(m.pending) + " arrivals and " +
           std::to_string(m.pending_bytes) + " bytes pending)";
}

void complete_phase_if_due(Mbarrier& m) {
    if (m.pending || m.pending_bytes) return;
    ++m.phase;
    m.pending = m.count;
    m.completed = m.arriving;
    m.arriving.reset(block.num_agents);
    for (int waiter : m.waiters) wake(waiter);
    m.waiters.clear();
}

void arrive_at_mbarrier(Mbarrier& m, uint32_t count, void* pc) {
    m.arriving.join(block.self().known);
    next_epoch(block.current);
    if (m.pending < count) {
        report("mbarrier", pc, "more than %u arrivals in one phase of mbarrier %u", m.count, m.offset + kSharedBase);
        return;
    }
    m.pending -= count;
    complete_phase_if_due(m);
}

}  // namespace

int find_mbarrier(uint32_t address, void* pc, const char* what) {
    auto it = block.mbarrier_at.find(address - kSharedBase);
    if (it == block.mbarrier_at.end()) {
        report("mbarrier", pc, "%s at shared address %u, where no mbarrier was initialised", what, address);
        abandon();
    }
    const Cell& cell = block.cells[block.mbarriers[it->second].offset / 2];
    if (block.self().known.all[cell.writer] < cell.epoch) {
        report("race", pc, "%s: the mbarrier's initialisation by %s is not ordered before it", what,
               agent_name(cell.writer).c_str());
    }
    return it->second;
}

void complete_bytes(int mbarrier, uint32_t bytes, void* pc) {
    Mbarrier& m = block.mbarriers[mbarrier];
    const uint32_t agent = block.mbarrier_agent(mbarrier);
    m.arriving.all[agent] = std::max(m.arriving.all[agent], m.phase + 1);
    if (bytes > m.pending_bytes) {
        report("mbarrier", pc, "TMA delivers %u bytes on mbarrier %u, which expects %ld more in this phase", bytes,
               m.offset + kSharedBase, long(m.pending_bytes));
    }
    m.pending_bytes -= bytes;
    complete_phase_if_due(m);
}

}  // namespace emu

using namespace emu;

void __syncthreads() { arrive_at_barrier(0, (block.num_threads + 31) / 32 * 32, true, CALLER); }

namespace emu {

void whole_block_sync(int barrier) {
    arrive_at_barrier(barrier & 15, (block.num_threads + 31) / 32 * 32, true, CALLER);
}

void mbar_arrive(uint32_t bar, uint32_t count) {
    void* pc = CALLER;
    Mbarrier& m = block.mbarriers[find_mbarrier(bar, pc, "mbarrier.arrive")];
    record(kArrive, m.offset, count);
    arrive_at_mbarrier(m, count, pc);
}

void mbar_invalidate(uint32_t bar) {
    void* pc = CALLER;
    const int i = find_mbarrier(bar, pc, "mbarrier.inval");
    const Mbarrier& m = block.mbarriers[i];
    const Clock& known = block.self().known.all;
    bool ordered = m.waiters.empty() && !m.pending_bytes;
    for (int agent = 0; agent < block.num_agents; ++agent) {
        ordered = ordered && m.arriving.all[agent] <= known[agent] && m.completed.all[agent] <= known[agent];
    }
    if (!ordered) report("race", pc, "mbarrier %u is invalidated while others may still use it", bar);
    mark_shared(m.offset, 8, block.current, known[block.current], CellState::written, false);
    block.mbarrier_at.erase(m.offset);
    block.invalid_mbarrier_at[m.offset] = i;
}

}  // namespace emu

namespace dev {

void bar_sync(int id, int threads) { arrive_at_barrier(id & 15, threads, true, CALLER); }

void bar_arrive(int id, int threads) { arrive_at_barrier(id & 15, threads, false, CALLER); }

void mbar_init(uint32_t bar, uint32_t count) {
    void* pc = CALLER;
    const uint32_t offset = bar - kSharedBase;
    if (bar % 8) report("misaligned", pc, "mbarrier at shared address %u, no multiple of 8", bar);
    if (!inside_shared(offset, 8, pc, "mbarrier.init")) abandon();
    const auto before = block.invalid_mbarrier_at.find(offset);
    if (before == block.invalid_mbarrier_at.end() && block.mbarriers.size() == kMaxMbarriers) {
        report("mbarrier", pc, "more than the %d mbarriers that the emulator keeps", kMaxMbarriers);
        abandon();
    }
    thread_writes_shared(offset, 8, block.current, pc, "mbarrier.init");
    mark_shared(offset, 8, block.current, block.self().known.all[block.current], CellState::mbarrier, false);
    if (before == block.invalid_mbarrier_at.end()) {
        block.mbarrier_at[offset] = block.mbarriers.size();
        block.mbarriers.emplace_back();
    } else {  // its epochs go on
        block.mbarrier_at[offset] = before->second;
        block.invalid_mbarrier_at.erase(before);
    }
    Mbarrier& m = block.mbarriers[block.mbarrier_at[offset]];
    m.offset = offset, m.count = m.pending = count, m.initialiser = block.current;
    m.first_phase = m.phase, m.pending_bytes = 0, m.fenced = false;
    m.arriving.reset(block.num_agents), m.completed.reset(block.num_agents);
    record(kInit, offset, count);
}

void fence_mbar_init() {
    for (Mbarrier& m : block.mbarriers) m.fenced |= m.initialiser == block.current;
}

void fence_proxy_async() {
    Knowledge& known = block.self().known;
    join(known.fenced.data(), known.all.data(), known.all.size());
    fence_mbar_init();
}

void mbar_arrive(uint32_t bar) {
    void* pc = CALLER;
    Mbarrier& m = block.mbarriers[find_mbarrier(bar, pc, "mbarrier.arrive")];
    record(kArrive, m.offset, 1);
    arrive_at_mbarrier(m, 1, pc);
}

void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
    void* pc = CALLER;
    Mbarrier& m = block.mbarriers[find_mbarrier(bar, pc, "mbarrier.arrive.expect_tx")];
    record(kExpect, m.offset, bytes);
    m.pending_bytes += bytes;
    arrive_at_mbarrier(m, 1, pc);
}

bool mbar_try_wait(uint32_t bar, uint32_t parity) {
    void* pc = CALLER;
    const int i = find_mbarrier(bar, pc, "mbarrier.try_wait");
    // The phase with this parity has completed if the current one has the other parity.
    auto completed = [&] { return (block.mbarriers[i].phases() & 1) != (parity & 1); };
    if (!completed()) {
        block.mbarriers[i].waiters.push_back(block.current);
        sleep("mbarrier", pc, [i, parity] { return describe(block.mbarriers[i], parity); });
    }
    if (!completed()) return false;
    record(kWait, block.mbarriers[i].offset, parity & 1);
    if (block.mbarriers[i].phases()) block.self().known.join(block.mbarriers[i].completed);
    return true;
}

}  // namespace dev
