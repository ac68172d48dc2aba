// What C++ calls and Python defines (moebind/_native.py says how exceptions come back). `handle` is a cffi handle.
#pragma once

#include <stdbool.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

bool moebind_on_progress(float fraction, void * handle);
bool moebind_on_abort(void * handle);
bool moebind_on_eval(struct ggml_tensor * tensor, bool ask, void * handle);
void moebind_on_log(enum ggml_log_level level, const char * text);

#ifdef __cplusplus
}
#endif
