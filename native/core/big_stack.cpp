#include "big_stack.h"

#include "guard.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace {

constexpr size_t margin     = size_t(128) << 10;  // for what is below `body`, and for handlers of signals
constexpr long   wait_nanos = 50'000'000;

struct mapping {
    void * const start;
    const size_t size;

    explicit mapping(size_t bytes) :
        start(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0)),
        size(bytes) {
        if (start == MAP_FAILED) {
            throw std::runtime_error("there is no room for a stack of " + std::to_string(bytes) + " bytes");
        }
    }
    ~mapping() { munmap(start, size); }
    mapping(const mapping &)             = delete;
    mapping & operator=(const mapping &) = delete;
};

struct task {
    const std::function<void()> & body;
    std::exception_ptr            failure;
    PyObject *                    exception = nullptr;
};

void * run(void * data) {
    auto * job = static_cast<task *>(data);
    {
        moebind::guard_scope scope;  // failed assertions throw
        try {
            job->body();
        } catch (...) {
            job->failure = std::current_exception();
        }
    }
    job->exception = moebind::take_exception();
    return nullptr;
}

// The thread that is started inherits this: signals are for the threads that expect them.
struct signals_blocked {
    sigset_t before;
    signals_blocked() {
        sigset_t all;
        sigfillset(&all);
        for (int fault : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT }) {
            sigdelset(&all, fault);
        }
        pthread_sigmask(SIG_BLOCK, &all, &before);
    }
    ~signals_blocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
};

void wait_for(pthread_t thread, std::atomic<bool> * stop) {
    for (;;) {
        timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += wait_nanos;
        if (until.tv_nsec >= 1'000'000'000) {
            until.tv_nsec -= 1'000'000'000;
            until.tv_sec++;
        }
        if (pthread_timedjoin_np(thread, nullptr, &until) == 0) {
            return;
        }
        if (stop != nullptr && !stop->load() && moebind::interrupted()) {
            *stop = true;
        }
    }
}

}  // namespace

namespace moebind {

size_t stack_left() noexcept {
    static thread_local const uintptr_t lowest = [] {
        pthread_attr_t attributes;
        void *         start = nullptr;
        size_t         size  = 0;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            pthread_attr_getstack(&attributes, &start, &size);
            pthread_attr_destroy(&attributes);
        }
        return size == 0 ? UINTPTR_MAX : reinterpret_cast<uintptr_t>(start);
    }();
    const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return here > lowest && here - lowest > margin ? here - lowest - margin : 0;
}

void on_big_stack(size_t bytes, const std::function<void()> & body, std::atomic<bool> * stop) {
    if (stop == nullptr && bytes <= stack_left()) {
        body();
        return;
    }
    const size_t  page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t  size = (bytes + 2 * margin) / page * page + 2 * page;
    const mapping stack(size);
    mprotect(stack.start, page, PROT_NONE);  // an overflow ends here, not in somebody's memory

    task           job{ body, nullptr };
    pthread_attr_t attributes;
    pthread_t      thread;
    pthread_attr_init(&attributes);
    int failed = pthread_attr_setstack(&attributes, static_cast<char *>(stack.start) + page, size - page);
    if (failed == 0) {
        const signals_blocked blocked;
        failed = pthread_create(&thread, &attributes, run, &job);
    }
    pthread_attr_destroy(&attributes);
    if (failed != 0) {
        throw std::runtime_error("no thread with a stack of " + std::to_string(bytes) + " bytes could be started");
    }
    wait_for(thread, stop);
    adopt_exception(job.exception);
    if (job.failure) {
        std::rethrow_exception(job.failure);
    }
}

}  // namespace moebind
