#include "guard.h"

#include "backends.h"
#include "ggml.h"
#include "internal.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

// A C string and plain pointers: no destructor of ours runs at a thread's end, when Python may be gone.
struct thread_state {
    int        depth;
    int        in_python;  // python_calls of this thread
    bool       failed;
    bool       stopping;
    volatile sig_atomic_t interrupted;
    char       text[4096];
    PyObject * exception;
};

thread_local thread_state state;

// Of the call that the main thread is in.
std::atomic<int> interrupts_{ 0 };

// How many threads are on their way to the interpreter or in it, and whether it lets in no more.
std::atomic<int>  calls_of_python{ 0 };
std::atomic<bool> ending{ false };

void throw_on_abort(const char * message) {
    if (state.depth == 0) {
        // Nobody below us could catch it, and the process ends when we return: at least say why.
        std::fprintf(stderr, "moebind: llama.cpp failed in a thread of its own: %s\n", message);
        return;
    }
    throw std::runtime_error(message);
}

std::atomic<bool> lost{ false };

// CUDA remembers the last error of a thread until somebody asks for it, and ggml-cuda asks after each operation: what ended
// one computation would end the next one, too. Not asked for where it failed, which may be inside the registry's own lock.
//
// Some errors stay (an illegal address, a card that is lost): every further call gives the same one. Nothing can be freed
// on such a device, and who tries, in a destructor of ggml-cuda's, ends the process.
void settle_cuda_error() noexcept {
    if (std::strstr(state.text, "CUDA error") == nullptr) {
        return;
    }
    try {
        auto *    last  = moebind::in_backend<int()>("cudaGetLastError");
        const int error = last();
        if (error != 0 && moebind::in_backend<int()>("cudaDeviceSynchronize")() == error) {
            lost = true;
        }
        last();
    } catch (const std::exception &) {
        // A backend that has the runtime inside, or is gone.
    }
}

void say_what_is_lost() noexcept {
    const size_t length = std::strlen(state.text);
    if (lost) {
        std::snprintf(state.text + length, sizeof(state.text) - length,
                      " (a device was lost, and does not come back in this process: start another one)");
    }
}

PyObject * native_error_type() {
    PyObject * module = PyImport_ImportModule("moebind.errors");
    if (module == nullptr) {
        return nullptr;
    }
    PyObject * type = PyObject_GetAttrString(module, "NativeError");
    Py_DECREF(module);
    return type;
}

}  // namespace

namespace moebind {

bool in_main_thread() noexcept {
    return syscall(SYS_gettid) == getpid();  // not remembered: a fork makes its thread the main one
}

python_call::python_call() noexcept {
    calls_of_python++;
    state.in_python++;
    // The main thread is the one that ends the interpreter, and may still call it.
    allowed_ = !ending || in_main_thread();
    if (!allowed_ && PyGILState_GetThisThreadState() != nullptr) {
        // A thread of Python's, whose turn does not come again. If it were told to stop instead, it might yet come back
        // to Python before the end and complain there.
        calls_of_python--;
        for (;;) {
            pause();
        }
    }
}

python_call::~python_call() noexcept {
    calls_of_python--;
    state.in_python--;
}

void forget_other_threads() noexcept {
    calls_of_python = state.in_python;
    if (state.depth == 0) {
        interrupts_ = 0;
    }
}

guard_scope::guard_scope() noexcept {
    if (state.depth++ == 0) {
        state.failed   = false;
        state.stopping = false;
    }
}

guard_scope::~guard_scope() noexcept {
    if (--state.depth == 0 && state.interrupted) {
        state.interrupted = 0;
        interrupts_       = 0;
    }
}

bool note_interrupt() noexcept {
    if (state.depth == 0) {
        return false;
    }
    state.interrupted = 1;
    interrupts_++;
    return true;
}

int interrupts() noexcept { return interrupts_; }

bool device_lost() noexcept { return lost; }

void note_device_lost() noexcept { lost = true; }

void keep_failure(const char * text) noexcept {
    state.failed = true;
    std::snprintf(state.text, sizeof(state.text), "%s", text);
}

bool exception_waiting() noexcept { return state.exception != nullptr; }

PyObject * take_exception() noexcept {
    PyObject * exception = state.exception;
    state.exception      = nullptr;
    return exception;
}

void adopt_exception(PyObject * exception) noexcept {
    if (exception != nullptr && state.exception == nullptr) {
        state.exception = exception;
    } else if (const python_call python; exception != nullptr && python) {
        PyGILState_STATE gil = PyGILState_Ensure();
        Py_DECREF(exception);
        PyGILState_Release(gil);
    }
}

void note_stopping() noexcept { state.stopping = true; }

bool stopping() noexcept { return state.stopping || state.exception != nullptr; }

bool keep_exception(PyObject * exception) noexcept {
    if (state.depth == 0) {
        return false;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    // The first one tells what happened; later ones are usually its consequences.
    if (state.exception == nullptr) {
        Py_INCREF(exception);
        state.exception = exception;
    }
    PyGILState_Release(gil);
    return true;
}

}  // namespace moebind

PyObject * moebind_result(PyObject * result) {
    // In a callback, a waiting exception belongs to the call outside it; a failure is always the innermost call's.
    const bool raise_exception = state.exception != nullptr && state.depth == 0;
    if (!state.failed && !raise_exception) {
        return result;
    }
    Py_XDECREF(result);
    PyErr_Clear();
    if (state.failed) {
        settle_cuda_error();
        say_what_is_lost();
    }
    state.failed = false;
    if (raise_exception) {
        PyObject * exception = state.exception;
        state.exception      = nullptr;
        PyErr_SetObject(reinterpret_cast<PyObject *>(Py_TYPE(exception)), exception);
        Py_DECREF(exception);
    } else if (PyObject * type = native_error_type()) {
        // It may quote what is in a file, whatever bytes these are.
        if (PyObject * text = PyUnicode_DecodeUTF8(state.text, Py_ssize_t(std::strlen(state.text)), "replace")) {
            PyErr_SetObject(type, text);
            Py_DECREF(text);
        }
        Py_DECREF(type);
    }
    return nullptr;
}

void moebind_end(void) {
    ending = true;
    // The interpreter is not held here, so that those in it can leave. One that does not is Python code that is waiting.
    for (int i = 0; i < 2000 && calls_of_python > 0; i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

void moebind_setup(void) {
    ggml_set_abort_callback(throw_on_abort);
    moebind::silence_llama_common();
    moebind::count_forks();
}

bool moebind_keep_exception(uintptr_t exception) {
    // This very call is guarded too: it takes a second guard for somebody to be waiting.
    return state.depth > 1 && moebind::keep_exception(reinterpret_cast<PyObject *>(exception));
}
