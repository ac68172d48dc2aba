// What libggml-rpc, with our connections in it (rpc_connections.cpp), tells the extension.
#pragma once

#include <cstddef>
#include <cstdint>

#define MOEBIND_RPC_API extern "C" __attribute__((visibility("default")))

// See shim.h. Endpoints are "host:port".
MOEBIND_RPC_API int  moebind_rpc_link_state(const char * endpoint, char * reason, size_t size);
MOEBIND_RPC_API bool moebind_rpc_link_forget(const char * endpoint);
MOEBIND_RPC_API void moebind_rpc_link_renew(const char * endpoint);
MOEBIND_RPC_API void moebind_rpc_link_timeouts(const char * endpoint, int64_t connect_ms, int64_t silence_ms);

// The next server of this process writes the port that it listens on, a line of text, into this file, and closes it.
MOEBIND_RPC_API void moebind_rpc_link_report(int file);

// What tells how often the user asked, with Ctrl-C, to stop the call that runs now; called while a server is waited for.
MOEBIND_RPC_API void moebind_rpc_link_interrupts(int (*interrupts)(void));
