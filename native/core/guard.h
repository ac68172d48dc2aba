// Where libllama's failures end.
//
// libllama reports some failures by throwing and others by aborting the process. Every call from Python goes through
// moebind::guard, which catches both (moebind_setup installs an abort callback that throws), keeps the text in this
// thread, and returns a zeroed value. cffi's wrapper then ends in moebind_result, which raises it as NativeError.
//
// Python's exceptions get through C in the same place. A callback that fails has its exception kept, by
// moebind_keep_exception, and tells libllama to stop in whatever way that callback can; moebind_result raises it from the
// call that the user made.
//
// What is thrown where no guard stands below it - in a thread of OpenMP - cannot be caught; such preconditions are checked
// before the call. The RPC client has a thread too, in which nothing fails any more (replaced/rpc_connections.cpp).
#pragma once

#include <Python.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raises what the last guarded call of this thread caught, or returns `result` (a new reference, or NULL with an
// exception set).
PyObject * moebind_result(PyObject * result);

#ifdef __cplusplus
}

#include <exception>
#include <type_traits>

namespace moebind {

// Counts the guards that this thread is inside of, and forgets what an earlier call left behind.
struct guard_scope {
    guard_scope() noexcept;
    ~guard_scope() noexcept;
};

void keep_failure(const char * text) noexcept;

// Keeps a Python exception for the outermost guard of this thread; false when there is none.
bool keep_exception(PyObject * exception) noexcept;

// One is being kept.
bool exception_waiting() noexcept;

// Move it to another thread, which waits for this one: nullptr when there is none.
PyObject * take_exception() noexcept;
void       adopt_exception(PyObject * exception) noexcept;

// Runs Python's signal handlers, where this thread may; true when one raised, with the exception kept for the caller.
bool interrupted();

// From now to the end of this thread's call: it is being stopped because somebody asked for it, and what llama.cpp logs
// about that is no news.
void note_stopping() noexcept;
bool stopping() noexcept;

bool in_main_thread() noexcept;

// In the child of a fork: no other thread is in a call, or in the interpreter.
void forget_other_threads() noexcept;

// Whether a device answers every call with an error from now on: what is on it is left there rather than freed.
bool device_lost() noexcept;
void note_device_lost() noexcept;

// Called by a signal handler: Ctrl-C came while this thread was in a call. Says whether it was in one.
bool note_interrupt() noexcept;

// How often it came during the call that the main thread is in.
int interrupts() noexcept;

// Stands around every call of Python that C++ makes in the middle of a native call. When it is false, Python must not be
// called: the interpreter is ending, and would end a thread that comes to it by unwinding its stack, through our guards.
// A thread that came from Python waits here for the end of the process. While this lives, the interpreter does not end.
class python_call {
  public:
    python_call() noexcept;
    ~python_call() noexcept;
    python_call(const python_call &)             = delete;
    python_call & operator=(const python_call &) = delete;
    explicit operator bool() const noexcept { return allowed_; }

  private:
    bool allowed_;
};

template <class Call> auto guard(Call && call) noexcept -> decltype(call()) {
    using result_t = decltype(call());
    guard_scope scope;
    try {
        return call();
    } catch (const std::exception & failure) {
        keep_failure(failure.what());
    } catch (...) {
        keep_failure("an exception of unknown type");
    }
    if constexpr (!std::is_void_v<result_t>) {
        return result_t{};
    }
}

}  // namespace moebind
#endif
