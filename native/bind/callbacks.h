// What C++ calls and Python defines (src/moebind/_core/native.py says how exceptions come back). `handle` is a cffi handle.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "ggml.h"
#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

bool moebind_on_progress(float fraction, void * handle);
bool moebind_on_abort(void * handle);
bool moebind_on_eval(struct ggml_tensor * tensor, bool ask, void * handle);
void moebind_on_log(enum ggml_log_level level, const char * text);

// Of a sampler; false when it raised.
bool moebind_on_sampler_apply(llama_token_data_array * candidates, void * handle);
bool moebind_on_sampler_accept(llama_token token, void * handle);
bool moebind_on_sampler_reset(void * handle);
// Gives another one, with a reference to its object (moebind_reference).
bool moebind_on_sampler_clone(void * handle, uintptr_t * object, void ** copy);

#ifdef __cplusplus
}
#endif
