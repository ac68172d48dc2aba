// Stands in for what MOEBIND_WITHOUT leaves out (cmake/Replacements.cmake): has the functions that the extension calls, which
// then leave all to llama.cpp. Each target that it becomes a part of defines what it lacks.
#ifdef MOEBIND_WITHOUT_RPC_CONNECTIONS
#include "rpc_link.h"

int  moebind_rpc_link_state(const char *, char *, size_t) { return 1; }  // as far as anyone knows, it is there
bool moebind_rpc_link_forget(const char *) { return true; }
void moebind_rpc_link_renew(const char *) {}
void moebind_rpc_link_timeouts(const char *, int64_t, int64_t) {}
void moebind_rpc_link_report(int) {}
void moebind_rpc_link_interrupts(int (*)(void)) {}
#endif

#ifdef MOEBIND_WITHOUT_COUNTED_MEMORY
#include "counted_memory.h"

bool moebind_count_only(bool) { return false; }
bool moebind_leave_unsplit(bool) { return false; }  // weights on other devices are then not counted as read
#endif

#ifdef MOEBIND_WITHOUT_CHECKED_HEADERS
#include "handed_headers.h"

size_t moebind_handed_headers() { return 0; }
void   moebind_hand_header(const char *, gguf_context * header) { gguf_free(header); }  // libllama reads it again
void   moebind_drop_headers(size_t) {}
#endif

#ifdef MOEBIND_WITHOUT_JINJA_HOOKS
#include "template_limits.h"
#include "template_numbers.h"

moebind::template_limits::template_limits(const std::atomic<bool> &) {}
moebind::template_limits::~template_limits() {}
moebind::integer_mark::integer_mark(const std::string &) {}
moebind::integer_mark::~integer_mark() {}
#endif
