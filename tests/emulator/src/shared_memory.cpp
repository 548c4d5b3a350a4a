// The shadow of shared memory: one cell for every two bytes says who wrote them last and whether an asynchronous copy
// is on its way there; beside it stands who read them last, one slot for each warp, each warpgroup's wgmma and the TMA
// stores.
#include <cstring>

#include "state.h"

namespace emu {

namespace {

// A slot holds 0, or for a warp: bit 31, the lane, and the low bits of its epoch; for the others: the epoch.
constexpr uint32_t kLaneShift = 26, kEpochMask = (1u << kLaneShift) - 1;

struct Reader {
    uint32_t agent;
    Epoch epoch;
};

Reader reader_of(int slot, uint32_t mark) {
    if (slot < block.num_warps) return {slot * 32 + (mark >> kLaneShift & 31), mark & kEpochMask};
    const int warpgroup = slot - block.num_warps;
    if (warpgroup < block.num_warpgroups) return {uint32_t(block.wgmma_agent(warpgroup)), mark};
    return {uint32_t(block.store_agent()), mark};
}

Access thread_access(int thread, void* pc, const char* what) {
    return {uint32_t(thread), block.threads[thread].known, false, pc, what};
}

struct Problem {
    const char* kind;
    const char* text;  // the cell's writer follows, if there is one
};

// What is wrong with an access, as far as the last write to the cell goes. A null kind: nothing.
Problem problem_of(const Cell& cell, const Access& access, bool write) {
    switch (cell.state) {
        case CellState::uninitialised:
            return write ? Problem{} : Problem{"uninitialised-shared", "before any write"};
        case CellState::in_flight:
            return {"in-flight", "while an asynchronous copy is on its way there, by "};
        case CellState::mbarrier:
            return {"mbarrier", "where an mbarrier lies, initialised by "};
        case CellState::written:
            break;
    }
    if (access.known.all[cell.writer] < cell.epoch) return {"race", "with no synchronisation after the write by "};
    const bool visible = !access.async || cell.async || access.known.fenced[cell.writer] >= cell.epoch;
    return visible ? Problem{} : Problem{"proxy-fence", "with no fence.proxy.async after the write by "};
}

void check_last_write(uint32_t cell_number, const Access& access, bool write) {
    const Cell& cell = block.cells[cell_number];
    const Problem problem = problem_of(cell, access, write);
    if (!problem.kind) return;
    const bool has_writer = cell.state != CellState::uninitialised;
    report(problem.kind, access.pc, "%s %s shared offset %u %s%s", access.what, write ? "writes" : "reads",
           2 * cell_number, problem.text, has_writer ? agent_name(cell.writer).c_str() : "");
}

}  // namespace

bool is_repeated_store(const void* p, const void* value, size_t bytes) {
    const size_t offset = static_cast<const uint8_t*>(p) - block.shared;
    if (!options.repeated_stores || offset >= block.shared_bytes || bytes > block.shared_bytes - offset) return false;
    for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
        if (block.cells[i].state != CellState::written) return false;
    }
    return !memcmp(p, value, bytes);
}

std::string agent_name(uint32_t agent) {
    const uint32_t loads = block.mbarrier_agent(0), wgmma = block.wgmma_agent(0), stores = block.store_agent();
    if (agent < loads) return "thread " + std::to_string(agent);
    if (agent < wgmma) return "TMA on mbarrier " + std::to_string(block.mbarriers[agent - loads].offset + kSharedBase);
    if (agent < stores) return "wgmma of warpgroup " + std::to_string(agent - wgmma);
    return "a TMA store";
}

bool inside_shared(uint32_t offset, uint32_t bytes, void* pc, const char* what) {
    if (offset < block.shared_bytes && bytes <= block.shared_bytes - offset) return true;
    report("oob-shared", pc, "%s of %u bytes at shared offset %d; the block has %u bytes", what, bytes, int(offset),
           block.shared_bytes);
    return false;
}

void check_shared_read(uint32_t offset, uint32_t bytes, const Access& access, int slot, uint32_t mark) {
    for (uint32_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
        check_last_write(i, access, false);
        block.readers[size_t(i) * block.num_readers + slot] = mark;
    }
}

void check_shared_write(uint32_t offset, uint32_t bytes, const Access& access) {
    for (uint32_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
        check_last_write(i, access, true);
        uint32_t* marks = &block.readers[size_t(i) * block.num_readers];
        for (int slot = 0; slot < block.num_readers; ++slot) {
            if (!marks[slot]) continue;
            const Reader reader = reader_of(slot, marks[slot]);
            marks[slot] = 0;
            if (reader.agent != access.agent && access.known.all[reader.agent] < reader.epoch) {
                report("race", access.pc, "%s writes shared offset %u, which %s may still be reading", access.what,
                       2 * i, agent_name(reader.agent).c_str());
            }
        }
    }
}

void mark_shared(uint32_t offset, uint32_t bytes, uint32_t agent, Epoch epoch, CellState state, bool async) {
    for (uint32_t i = offset / 2; i < (offset + bytes + 1) / 2; ++i)
        block.cells[i] = {epoch, uint16_t(agent), state, async};
}

void thread_reads_shared(uint32_t offset, uint32_t bytes, int thread, void* pc, const char* what) {
    record_of(thread, kPlainRead, 0, 0, offset, offset + bytes);
    const uint32_t lane = thread % 32, epoch = block.threads[thread].known.all[thread];
    check_shared_read(offset, bytes, thread_access(thread, pc, what), thread / 32,
                      1u << 31 | lane << kLaneShift | (epoch & kEpochMask));
}

void thread_writes_shared(uint32_t offset, uint32_t bytes, int thread, void* pc, const char* what) {
    record_of(thread, kPlainWrite, 0, 0, offset, offset + bytes);
    check_shared_write(offset, bytes, thread_access(thread, pc, what));
    mark_shared(offset, bytes, thread, block.threads[thread].known.all[thread], CellState::written, false);
}

}  // namespace emu
