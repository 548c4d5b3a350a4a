// Asynchronous copies. Their destination is poisoned at issue and filled when the copy completes: cp.async at the wait
// that covers it, TMA loads whenever the scheduler decides (on their mbarrier), TMA stores at the wait.
#include <algorithm>
#include <cstring>

#include "state.h"
#include "tensor_map.h"

namespace emu {

namespace {

constexpr uint8_t kPoison = 0xff;  // NaN in every type

void finish_copies(int thread, std::vector<CopyOp>& group) {
    for (const CopyOp& c : group) {
        if (c.zero) {
            memset(block.shared + c.offset, 0, c.size);
        } else {
            memcpy(block.shared + c.offset, c.source, c.size);
        }
        mark_shared(c.offset, c.size, thread, block.threads[thread].known.all[thread], CellState::written, false);
    }
}

// Calls visit(offset in shared memory, address in the tensor or null where the box is outside) for the elements of a
// box.
template <class Visit>
void for_elements(const TensorTile& tile, Visit visit) {
    const TensorMapFields& map = fields(tile.map);
    const uint32_t element = map.element_bytes(), row_bytes = map.box[0] * element;
    for (uint32_t row = 0; row * row_bytes < tile.bytes; ++row) {
        uint8_t* start = map.base;
        bool inside = true;
        for (uint32_t d = 1, rest = row; d < map.rank; rest /= map.box[d], ++d) {
            const int64_t c = tile.coordinates[d] + int64_t(rest % map.box[d]);
            inside = inside && c >= 0 && uint64_t(c) < map.sizes[d];
            start += c * int64_t(map.strides[d]);
        }
        for (uint32_t e = 0; e < map.box[0]; ++e) {
            const uint32_t address = map.swizzled(kSharedBase + tile.offset + row * row_bytes + e * element);
            const int64_t c = tile.coordinates[0] + int64_t(e);
            const bool valid = inside && c >= 0 && uint64_t(c) < map.sizes[0];
            visit(address - kSharedBase, valid ? start + c * element : nullptr);
        }
    }
}

TensorTile make_tile(const CUtensorMap* map, uint32_t address, int rank, const int* coordinates, void* pc,
                     const char* what) {
    check_map(map, pc, what);
    const TensorMapFields& f = fields(*map);
    if (f.rank != rank) {
        report("tma", pc, "%s of rank %d with a tensor map of rank %d", what, rank, f.rank);
        abandon();
    }
    const uint32_t alignment = f.swizzle_bytes ? 8 * f.swizzle_bytes : 128;
    if (address % alignment) report("tma", pc, "%s at shared address %u, no multiple of %u", what, address, alignment);
    if (f.swizzle_bytes && f.box[0] * f.element_bytes() != f.swizzle_bytes)
        report("tma", pc, "%s of a box whose lines are not as wide as its swizzle; the emulator knows no other", what);
    TensorTile tile{.map = *map, .offset = address - kSharedBase, .bytes = f.box_bytes(), .coordinates = {}, .pc = pc};
    std::copy_n(coordinates, rank, tile.coordinates);
    if (!inside_shared(tile.offset, tile.bytes, pc, what)) abandon();
    return tile;
}

// Checks the reads or writes of the tensor, adjacent elements together.
void check_tensor(const TensorTile& tile, bool write, const char* what) {
    const uint32_t element = fields(tile.map).element_bytes();
    const uint8_t* run = nullptr;
    size_t bytes = 0;
    auto check_run = [&] {
        if (bytes && is_global(run)) check_global(run, bytes, write, tile.pc, what);
        if (bytes && !is_global(run)) report("oob-global", tile.pc, "%s at %p, no device memory", what, run);
    };
    for_elements(tile, [&](uint32_t, const uint8_t* p) {
        if (!p) return;
        if (p != run + bytes) {
            check_run();
            run = p, bytes = 0;
        }
        bytes += element;
    });
    check_run();
}

void finish_store(const StoreOp& op) {
    check_tensor(op.tile, true, "TMA store");
    const uint32_t element = fields(op.tile.map).element_bytes();
    for_elements(op.tile, [&](uint32_t offset, uint8_t* p) {
        if (p && is_global(p)) memcpy(p, block.shared + offset, element);
    });
}

void finish_load(const LoadOp& op) {
    check_tensor(op.tile, false, "TMA load");
    const uint32_t element = fields(op.tile.map).element_bytes();
    for_elements(op.tile, [&](uint32_t offset, const uint8_t* p) {
        if (p) {
            memcpy(block.shared + offset, p, element);
        } else {
            memset(block.shared + offset, 0, element);
        }
    });
}

}  // namespace

namespace {

void copy(uint32_t destination, const void* source, uint32_t size, bool valid, void* pc) {
    Thread& t = block.self();
    ++counters.cp_async;
    const uint32_t offset = destination - kSharedBase;
    if (destination % size || reinterpret_cast<uintptr_t>(source) % size) {
        return report("misaligned", pc, "cp.async of %u bytes from %p to shared address %u", size, source, destination);
    }
    if (!inside_shared(offset, size, pc, "cp.async")) return;
    if (valid && !is_global(source)) return report("oob-global", pc, "cp.async from %p, no device memory", source);
    if (valid) check_global(source, size, false, pc, "cp.async");
    check_shared_write(offset, size, {uint32_t(t.index), t.known, false, pc, "cp.async"});
    record(kCopy, 0, 0, offset, offset + size);
    memset(block.shared + offset, kPoison, size);
    mark_shared(offset, size, t.index, t.known.all[t.index], CellState::in_flight, false);
    t.open_copies.push_back({offset, static_cast<const uint8_t*>(source), size, !valid, pc});
}

}  // namespace

void cp_async(uint32_t destination, const void* source, uint32_t size, bool valid) {
    copy(destination, source, size, valid, CALLER);
}

void cp_async_wait(int pending) {
    Thread& t = block.self();
    record(kCopiesWaited, 0, pending);
    for (; t.copy_groups.size() > size_t(pending); t.copy_groups.pop_front())
        finish_copies(t.index, t.copy_groups.front());
}

void complete_load(size_t i) {
    const LoadOp op = block.loads[i];
    block.loads.erase(block.loads.begin() + i);
    const int before = block.current;
    block.current = op.thread;
    finish_load(op);
    block.current = before;
    const Epoch epoch = block.mbarriers[op.mbarrier].phase + 1;
    mark_shared(op.tile.offset, op.tile.bytes, block.mbarrier_agent(op.mbarrier), epoch, CellState::written, true);
    complete_bytes(op.mbarrier, op.tile.bytes, op.tile.pc);
}

void tma_load(uint32_t destination, const CUtensorMap* map, uint32_t bar, int rank, const int* coordinates) {
    void* pc = CALLER;
    ++counters.tma_loads;
    const int mbarrier = find_mbarrier(bar, pc, "TMA load");
    const TensorTile tile = make_tile(map, destination, rank, coordinates, pc, "TMA load");
    const Mbarrier& m = block.mbarriers[mbarrier];
    if (!m.fenced && !options.unpublished_mbarriers)
        report("proxy-fence", pc, "TMA load on mbarrier %u, which no fence has published since its initialisation",
               bar);
    check_shared_write(tile.offset, tile.bytes, {uint32_t(block.current), block.self().known, true, pc, "TMA load"});
    record(kLoad, m.offset, tile.bytes, tile.offset, tile.offset + tile.bytes);
    memset(block.shared + tile.offset, kPoison, tile.bytes);
    mark_shared(tile.offset, tile.bytes, block.mbarrier_agent(mbarrier), m.phase + 1, CellState::in_flight, true);
    block.loads.push_back({tile, mbarrier, block.current});
    if (options.eager_copies) complete_load(block.loads.size() - 1);
}

void tma_store(const CUtensorMap* map, uint32_t source, int rank, const int* coordinates) {
    void* pc = CALLER;
    ++counters.tma_stores;
    const TensorTile tile = make_tile(map, source, rank, coordinates, pc, "TMA store");
    const Epoch epoch = ++block.store_epoch;
    check_shared_read(tile.offset, tile.bytes, {uint32_t(block.current), block.self().known, true, pc, "TMA store"},
                      block.num_readers - 1, epoch);
    block.self().open_stores.push_back({tile, epoch});
}

void tma_store_wait(int pending, bool reads_only) {
    Thread& t = block.self();
    const size_t done = t.store_groups.size() > size_t(pending) ? t.store_groups.size() - pending : 0;
    for (size_t i = 0; i < done; ++i) {
        for (StoreOp& op : t.store_groups[i]) {
            if (!op.written) finish_store(op);
            op.written = true;
            Epoch& known = t.known.all[block.store_agent()];
            known = std::max(known, op.epoch);
        }
    }
    if (!reads_only) t.store_groups.erase(t.store_groups.begin(), t.store_groups.begin() + done);
}

void report_unfinished(Thread& t) {
    if (!t.open_copies.empty())
        report("cp.async", t.open_copies[0].pc, "the thread ends with cp.async that it never committed");
    if (!t.open_stores.empty())
        report("tma", t.open_stores[0].tile.pc, "the thread ends with a TMA store that it never committed");
    for (auto& group : t.store_groups) {
        for (StoreOp& op : group) {
            if (!op.written)
                report("tma", op.tile.pc,
                       "the thread ends without waiting for its TMA store to have read shared memory");
        }
    }
}

}  // namespace emu

using namespace emu;

namespace dev {

void cp_async_16(uint32_t destination, const void* source, bool valid) {
    emu::copy(destination, source, 16, valid, CALLER);
}

void cp_async_8(uint32_t destination, const void* source, bool valid) {
    emu::copy(destination, source, 8, valid, CALLER);
}

void cp_async_commit() {
    Thread& t = block.self();
    record(kCopiesCommitted, 0, 0);
    t.copy_groups.push_back(std::move(t.open_copies));
    t.open_copies.clear();
}

void tma_store_commit() {
    Thread& t = block.self();
    t.store_groups.push_back(std::move(t.open_stores));
    t.open_stores.clear();
}

}  // namespace dev
