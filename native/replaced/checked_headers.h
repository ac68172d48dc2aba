// Included before libllama's llama-model-loader.cpp: it takes a header that was read already, where it was given one.
#pragma once
#include "gguf.h"

gguf_context * moebind_checked_header(const char * path, gguf_init_params params);

#define gguf_init_from_file moebind_checked_header
