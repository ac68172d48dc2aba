// llama_model_quantize has no callback. Its log tells which tensor it is at, and is the one place where it can be stopped:
// an exception that starts in the log callback unwinds it, between two tensors, when none of its threads is running.
#include "guard.h"
#include "internal.h"

#include <cstdio>
#include <cstring>
#include <string>

namespace {

struct stopped {};  // no std::exception, which llama_model_quantize would catch

struct watch {
    moebind_hooks * hooks;
    std::string     rows;
};

// "[  12/ 272] blk.0.attn_q.weight                  - [  576,   576,     1,     1], type =   q4_1, "
void see_tensor(watch & seen, const char * text, int at, int count) {
    if (!moebind::progress(seen.hooks, (at - 1) / (float) count)) {
        throw stopped{};
    }
    const char * name = std::strstr(text, "] ");
    const char * end  = nullptr;
    for (const char * found = name; found != nullptr && (found = std::strstr(found + 1, " - [")) != nullptr;) {
        end = found;
    }
    if (end != nullptr) {
        name += 2;
        while (end > name && end[-1] == ' ') {
            end--;
        }
        seen.rows.append(name, end).push_back('\0');
    }
}

void see(void * data, const char * text) {
    watch & seen  = *static_cast<watch *>(data);
    int     at    = 0;
    int     count = 0;
    if (std::sscanf(text, "[%d/%d] ", &at, &count) == 2 && count > 0) {
        see_tensor(seen, text, at, count);
    } else if (std::strncmp(text, "size = ", 7) == 0) {
        // A dry run ends with the new type, "(q4_K)", unless the tensor stays as it is.
        if (const char * type = std::strchr(text, '(')) {
            seen.rows.append(type + 1, std::strcspn(type + 1, ")"));
        }
        seen.rows.push_back('\0');
    }
}

std::string & last_rows() {
    thread_local std::string rows;
    return rows;
}

}  // namespace

int32_t moebind_quantize(const char * source, const char * target, const llama_model_quantize_params * params,
                         moebind_hooks * hooks) {
    if (params->dry_run) {
        moebind::note_stopping();  // its warnings are in what it tells, and come again with the real run
    }
    watch                        seen{ hooks, "" };
    const moebind::log_tap_scope tap({ see, &seen });
    try {
        const uint32_t failed = llama_model_quantize(source, target, params);
        last_rows()           = std::move(seen.rows);
        return failed == 0 ? 0 : 1;
    } catch (const stopped &) {
        return 2;
    }
}

size_t moebind_quantize_rows(char * buffer, size_t size) {
    const std::string & rows = last_rows();
    std::memcpy(buffer, rows.data(), rows.size() < size ? rows.size() : size);
    return rows.size();
}
