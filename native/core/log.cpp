// llama.cpp's log, joined into whole lines and filtered here, so that what nobody reads never waits for the interpreter.
#include "callbacks.h"
#include "guard.h"
#include "internal.h"

#include "mtmd-helper.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>

namespace {

constexpr size_t n_recent = 24;  // lines that an error message can quote

std::atomic<int> lowest{ GGML_LOG_LEVEL_NONE };

struct thread_log {
    std::string             line;
    ggml_log_level          level = GGML_LOG_LEVEL_INFO;
    bool                    quiet = false;
    int                     holds = 0;  // errors are kept back
    std::deque<std::string> held;
    std::deque<std::string> recent;
};

thread_log & log_of_this_thread() {
    thread_local thread_log log;
    return log;
}

void show_line(thread_log & log) {
    const int least = lowest.load(std::memory_order_relaxed);
    if (least != GGML_LOG_LEVEL_NONE && log.level >= least && !log.quiet && !moebind::stopping() && Py_IsInitialized()) {
        const std::string line = log.line;
        log.line.clear();  // before Python, which may log through here again
        if (const moebind::python_call python; python) {
            moebind_on_log(log.level, line.c_str());
        }
    }
    log.line.clear();
}

void finish_line(thread_log & log) {
    if (log.line.empty()) {
        return;
    }
    // Said before it is thrown, also where llama.cpp catches it. To free what is there would throw again, in a destructor.
    if (log.level == GGML_LOG_LEVEL_ERROR && log.line.rfind("ggml_vulkan: device lost on ", 0) == 0) {
        moebind::note_device_lost();
    }
    if (log.level != GGML_LOG_LEVEL_DEBUG) {
        log.recent.push_back(log.line);
        if (log.recent.size() > n_recent) {
            log.recent.pop_front();
        }
    }
    if (log.holds > 0 && log.level == GGML_LOG_LEVEL_ERROR) {
        log.held.push_back(std::move(log.line));
        log.line.clear();
    } else {
        show_line(log);
    }
}

void on_log(ggml_log_level level, const char * text, void *) {
    thread_log & log = log_of_this_thread();
    if (level != GGML_LOG_LEVEL_CONT) {
        finish_line(log);  // one that was left without its newline
        log.level = level;
    }
    for (const char * end; (end = std::strchr(text, '\n')) != nullptr; text = end + 1) {
        log.line.append(text, end);
        finish_line(log);
    }
    log.line.append(text);
}

}  // namespace

void moebind_log_start(ggml_log_level level) {
    lowest = level;
    // Once: llama.cpp reads these without a lock whenever it logs, which other threads may be doing by the next time.
    static std::once_flag told;
    std::call_once(told, []() {
        llama_log_set(on_log, nullptr);
        mtmd_helper_log_set(on_log, nullptr);  // libmtmd's, too
    });
}

size_t moebind_log_recent(char * buffer, size_t size) {
    std::string all;
    for (const std::string & line : log_of_this_thread().recent) {
        all += line + '\n';
    }
    if (size > 0) {
        const size_t n = all.size() < size ? all.size() : size - 1;
        std::memcpy(buffer, all.data() + (all.size() - n), n);  // the end is what matters
        buffer[n] = '\0';
    }
    return all.size();
}

void moebind_log_forget(void) { log_of_this_thread().recent.clear(); }

void moebind_log_hold(void) { log_of_this_thread().holds++; }

void moebind_log_release(enum ggml_log_level level) {
    thread_log &                  log  = log_of_this_thread();
    const std::deque<std::string> held = std::move(log.held);
    log.held.clear();
    log.holds--;
    for (const std::string & line : held) {
        log.line  = line;
        log.level = level;
        show_line(log);
    }
}

void moebind_log_quiet(bool quiet) { log_of_this_thread().quiet = quiet; }
