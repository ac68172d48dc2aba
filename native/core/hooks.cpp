// What stops a load or a decode: Ctrl-C, moebind_hooks_abort, or a Python callback that says so or fails.
//
// ggml asks after every node of a graph, a thousand times for each token, so the question must be cheap: two loads and a
// look at the clock. Only every few milliseconds is the interpreter asked, and for signals only in the thread that may
// handle them.
//
// And which tensors an eval callback sees: ggml asks for every one of them, and where the names are known beforehand
// the interpreter is not asked.
#include "callbacks.h"
#include "guard.h"
#include "internal.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <regex>
#include <string>
#include <unordered_map>
#include <unordered_set>

using steady = std::chrono::steady_clock;

struct moebind_hooks {
    const int               python;
    void * const            handle;
    std::atomic<bool>       abort{ false };
    steady::time_point      next_signals{};
    steady::time_point      next_python{};
    std::atomic<unsigned>   n_nodes{ 0 };

    // Those of the context for which this one computes.
    std::atomic<const moebind_hooks *> followed{ nullptr };

    // Which tensors the eval callback sees; without these it is asked itself.
    bool                                  chosen = false;
    std::unordered_set<std::string>       names{};
    std::regex                            pattern{};
    std::unordered_map<std::string, bool> matched{};  // the pattern is searched once a name
};

namespace {

// The clock as the system last set it, some milliseconds ago: it costs a tenth of the exact one.
steady::time_point about_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return steady::time_point(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
}

// What besides the context's own hooks stops the computations of this thread.
thread_local const moebind_hooks * of_thread = nullptr;

bool asked_to_stop(const moebind_hooks * hooks) {
    const auto * followed = hooks->followed.load(std::memory_order_relaxed);
    return hooks->abort.load(std::memory_order_relaxed) ||
           (followed != nullptr && followed->abort.load(std::memory_order_relaxed)) ||
           (of_thread != nullptr && of_thread->abort.load(std::memory_order_relaxed));
}

constexpr auto signals_every = std::chrono::milliseconds(50);
constexpr auto python_every  = std::chrono::milliseconds(1);

}  // namespace

namespace moebind {

bool interrupted() {
    if (!in_main_thread()) {
        return false;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    const bool       raised = PyErr_CheckSignals() != 0;
    if (raised) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        moebind::keep_exception(value);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    PyGILState_Release(gil);
    return raised;
}

}  // namespace moebind

namespace {

bool should_stop(moebind_hooks * hooks) {
    if (asked_to_stop(hooks) || moebind::exception_waiting()) {
        return true;
    }
    const auto now = about_now();
    if (now >= hooks->next_signals) {
        hooks->next_signals = now + signals_every;
        if (moebind::interrupted()) {
            return true;
        }
    }
    if ((hooks->python & MOEBIND_HOOK_ABORT) != 0 && now >= hooks->next_python) {
        hooks->next_python = now + python_every;
        const moebind::python_call python;
        return !python || moebind_on_abort(hooks->handle) || moebind::exception_waiting();
    }
    return false;
}

bool stop_if(bool stop) {
    if (stop) {
        moebind::note_stopping();
    }
    return stop;
}

bool on_abort(void * hooks) { return stop_if(should_stop(static_cast<moebind_hooks *>(hooks))); }

bool on_progress(float fraction, void * data) {
    auto * hooks = static_cast<moebind_hooks *>(data);
    if (stop_if(should_stop(hooks))) {
        return false;
    }
    if ((hooks->python & MOEBIND_HOOK_PROGRESS) == 0) {
        return true;
    }
    const moebind::python_call python;
    return python && !stop_if(!moebind_on_progress(fraction, hooks->handle) || moebind::exception_waiting());
}

// Of an encoder's graph: few enough that they take some ten milliseconds, and so many that the interruptions take no time.
constexpr unsigned nodes_at_once = 16;

// Names come again with every graph; those of unnamed tensors count them, up to the size of a graph.
constexpr size_t matched_max = 1 << 16;

bool wanted(moebind_hooks * hooks, const char * name) {
    if (!hooks->names.empty()) {
        return hooks->names.count(name) != 0;
    }
    const auto known = hooks->matched.find(name);
    if (known != hooks->matched.end()) {
        return known->second;
    }
    const bool found = std::regex_search(name, hooks->pattern);
    if (hooks->matched.size() < matched_max) {
        hooks->matched.emplace(name, found);
    }
    return found;
}

bool on_eval(ggml_tensor * tensor, bool ask, void * data) {
    auto * hooks = static_cast<moebind_hooks *>(data);
    if (moebind::exception_waiting()) {
        return !ask;
    }
    if (ask && hooks->chosen) {
        return wanted(hooks, tensor->name);
    }
    const moebind::python_call python;
    const bool result = python && moebind_on_eval(tensor, ask, hooks->handle);
    if (ask) {
        return result;
    }
    // ggml takes a false for the end of this part of the graph, leaves the rest uncomputed and reports success. So it is
    // told to go on, and the abort callback, or the waiting exception, stops it at the next node.
    if (!result && !moebind::exception_waiting()) {
        hooks->abort = true;
        moebind::note_stopping();
    }
    return true;
}

// An encoder of images has no abort callback. So every few nodes of its graph are asked for, and the computation ends there:
// what it would have written is not read. Answering false at such a node ends a part of the graph, and the others in turn.
bool on_encode(ggml_tensor *, bool ask, void * data) {
    auto * hooks = static_cast<moebind_hooks *>(data);
    if (!ask) {
        return !stop_if(should_stop(hooks));
    }
    return ++hooks->n_nodes % nodes_at_once == 0;
}

}  // namespace

bool moebind::progress(moebind_hooks * hooks, float fraction) { return on_progress(fraction, hooks); }

moebind_hooks * moebind_hooks_new(int python_callbacks, void * handle) {
    return new moebind_hooks{ python_callbacks, handle };
}

void moebind_hooks_free(moebind_hooks * hooks) { delete hooks; }

void moebind_hooks_observe(moebind_hooks * hooks, const char * pattern, const char ** names, size_t n_names) {
    if (pattern != nullptr) {
        hooks->pattern = std::regex(pattern);
    }
    hooks->names.insert(names, names + n_names);
    hooks->chosen = true;
}

void moebind_hooks_into_model_params(moebind_hooks * hooks, llama_model_params * params) {
    params->progress_callback           = on_progress;
    params->progress_callback_user_data = hooks;
}

void moebind_hooks_into_context_params(moebind_hooks * hooks, llama_context_params * params) {
    params->abort_callback      = on_abort;
    params->abort_callback_data = hooks;
    if ((hooks->python & MOEBIND_HOOK_EVAL) != 0) {
        params->cb_eval           = on_eval;
        params->cb_eval_user_data = hooks;
    }
}

void moebind_hooks_into_mtmd_params(moebind_hooks * hooks, mtmd_context_params * params) {
    params->progress_callback           = on_progress;
    params->progress_callback_user_data = hooks;
    params->cb_eval                     = on_encode;
    params->cb_eval_user_data           = hooks;
}

void moebind_hooks_abort(moebind_hooks * hooks) { hooks->abort = true; }

void moebind_hooks_forget(moebind_hooks * hooks) { hooks->abort = false; }

bool moebind_hooks_aborted(const moebind_hooks * hooks) { return asked_to_stop(hooks); }

void moebind_hooks_follow(moebind_hooks * hooks, const moebind_hooks * others) { hooks->followed = others; }

void moebind_hooks_of_thread(const moebind_hooks * hooks) { of_thread = hooks; }
