// What threads do to barriers and to shared memory, in the order of this run: tests explore the other orders.
#include "state.h"

namespace emu {

static std::vector<Event> events;

void record_of(int thread, EventKind kind, uint32_t subject, uint32_t amount, uint32_t first, uint32_t last) {
    if (options.record) events.push_back({block.number, uint32_t(thread), kind, subject, amount, first, last});
}

void clear_events() { events.clear(); }

}  // namespace emu

const emu::Event* emu_events(size_t* count) {
    *count = emu::events.size();
    return emu::events.data();
}
