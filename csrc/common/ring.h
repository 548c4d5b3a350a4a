// Buffers that are filled and emptied in turn.
#pragma once
#include "common/device.h"

// Position in a ring of buffers. A consumer waits for `phase` of "full", a producer for the other one of "empty".
struct Ring {
    int slots;
    int slot = 0;
    uint32_t phase = 0;

    DEVICE void advance() {
        if (++slot == slots) {
            slot = 0;
            phase ^= 1;
        }
    }
};
