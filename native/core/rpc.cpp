// The extension's side of RPC: how servers are, and Ctrl-C while one is waited for.
//
// The RPC client waits in a thread of its own, in which Python's signal handlers do not run; and the main thread, where
// they would, waits for that one. So a handler in front of Python's counts how often SIGINT came during a call.
#include "backends.h"
#include "guard.h"
#include "internal.h"
#include "rpc_link.h"
#include "shim.h"

#include <csignal>
#include <vector>

namespace {

struct sigaction of_python;

void on_interrupt(int signal) {
    moebind::note_interrupt();
    of_python.sa_handler(signal);
}

// Asked in whichever thread waits, several times a second. Python's handler takes our place whenever a program sets one.
int interrupts() {
    const auto       held = moebind::fork_lock();
    struct sigaction now;
    if (sigaction(SIGINT, nullptr, &now) == 0 && now.sa_handler != on_interrupt && now.sa_handler != SIG_DFL &&
        now.sa_handler != SIG_IGN && (now.sa_flags & SA_SIGINFO) == 0) {
        of_python      = now;
        now.sa_handler = on_interrupt;
        sigaction(SIGINT, &now, nullptr);
    }
    return moebind::interrupts();
}

// libggml-rpc is linked, or was loaded at run time.
template <class Function> Function * linked(const char * name) {
    return moebind::in_backend<Function>(name);
}

}  // namespace

int moebind_rpc_state(const char * endpoint, char * reason, size_t size) {
    static auto * state = linked<decltype(moebind_rpc_link_state)>("moebind_rpc_link_state");
    return state(endpoint, reason, size);
}

bool moebind_rpc_forget(const char * endpoint) {
    static auto * forget = linked<decltype(moebind_rpc_link_forget)>("moebind_rpc_link_forget");
    return forget(endpoint);
}

void moebind_rpc_renew(const char * endpoint) {
    static auto * renew = linked<decltype(moebind_rpc_link_renew)>("moebind_rpc_link_renew");
    renew(endpoint);
}

void moebind_rpc_timeouts(const char * endpoint, int64_t connect_ms, int64_t silence_ms) {
    static auto * timeouts = linked<decltype(moebind_rpc_link_timeouts)>("moebind_rpc_link_timeouts");
    static auto * link     = linked<decltype(moebind_rpc_link_interrupts)>("moebind_rpc_link_interrupts");
    link(interrupts);
    interrupts();  // in front of Python's handler from the first wait on
    timeouts(endpoint, connect_ms, silence_ms);
}

void moebind_rpc_report_port(int file) {
    static auto * report = linked<decltype(moebind_rpc_link_report)>("moebind_rpc_link_report");
    report(file);
}

void moebind_rpc_remove_server(ggml_backend_reg_t server) {
    // All RPC devices name the plain RPC backend as theirs, so they go with it; those of the other servers come back.
    const size_t                    n_gone = ggml_backend_reg_dev_count(server);
    std::vector<ggml_backend_dev_t> stay;
    ggml_backend_reg_t              rpc = ggml_backend_reg_by_name("RPC");
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        bool               gone   = ggml_backend_dev_backend_reg(device) != rpc;
        for (size_t j = 0; j < n_gone && !gone; j++) {
            gone = device == ggml_backend_reg_dev_get(server, j);
        }
        if (!gone) {
            stay.push_back(device);
        }
    }
    ggml_backend_unload(server);
    ggml_backend_unload(rpc);
    ggml_backend_register(rpc);
    for (ggml_backend_dev_t device : stay) {
        ggml_backend_device_register(device);
    }
}
