// Findings: one for each kind and place, with a count.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "state.h"

namespace emu {

namespace {

constexpr size_t kMaxFindings = 16;

struct Finding {
    std::string kind, message;
    void* pc;
    int count = 1;
};

std::vector<Finding> findings;
std::string json;

void append_quoted(std::string& out, const std::string& text) {
    out += '"';
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (c == '\n') {
            out += "\\n";
        } else {
            out += c;
        }
    }
    out += '"';
}

bool is_emulator_source(const char* line) { return strstr(line, "device.h:") != nullptr; }

}  // namespace

void report(const char* kind, void* pc, const char* format, ...) {
    for (Finding& f : findings) {
        if (f.pc == pc && f.kind == kind) {
            ++f.count;
            return;
        }
    }
    if (findings.size() == kMaxFindings) return;
    char text[2000];
    const int prefix = snprintf(text, sizeof text, "block (%u, %u, %u) thread %d: ", block.index.x, block.index.y,
                                block.index.z, block.current);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + prefix, sizeof text - prefix, format, arguments);
    va_end(arguments);
    findings.push_back({kind, text, pc});
}

// file:line < file:line of the caller ..., of a return address in a kernel.
std::string location(void* pc) {
    static std::map<void*, std::string> known;
    if (auto it = known.find(pc); it != known.end()) return it->second;
    std::string text;
    Dl_info info;
    if (pc && dladdr(pc, &info) && info.dli_fname) {
        char command[1024], line[512];
        snprintf(command, sizeof command, "addr2line -ise '%s' 0x%zx 2>/dev/null", info.dli_fname,
                 size_t(static_cast<uint8_t*>(pc) - 1 - static_cast<uint8_t*>(info.dli_fbase)));
        if (FILE* pipe = popen(command, "r")) {
            for (int shown = 0; fgets(line, sizeof line, pipe);) {
                line[strcspn(line, " \n")] = 0;
                if (is_emulator_source(line) || shown++ == 4) continue;
                text += (text.empty() ? "" : " < ") + std::string(line);
            }
            pclose(pipe);
        }
    }
    if (text.empty()) text = "unknown place";
    return known[pc] = text;
}

void clear_reports() { findings.clear(); }

}  // namespace emu

using namespace emu;

const char* emu_reports() {
    json = "[";
    for (const Finding& f : findings) {
        if (json.size() > 1) json += ", ";
        json += "{\"kind\": ";
        append_quoted(json, f.kind);
        json += ", \"message\": ";
        append_quoted(json, f.message);
        json += ", \"where\": ";
        append_quoted(json, location(f.pc));
        json += ", \"count\": " + std::to_string(f.count) + "}";
    }
    json += "]";
    return json.c_str();
}
