// Loads models from headers that were checked.
#include "handed_headers.h"
#include "owned.h"
#include "shim.h"

size_t moebind_headers_left() { return moebind_handed_headers(); }

llama_model * moebind_model_load(const char ** paths, gguf_context ** headers, size_t n, bool split,
                                 llama_model_params params) {
    // A callback of this load may load another model in the same thread.
    struct handed {
        const size_t before = moebind_handed_headers();
        ~handed() { moebind_drop_headers(before); }
    } untaken;
    for (size_t i = 0; i < n; i++) {
        moebind::take(headers[i]);
        moebind_hand_header(paths[i], headers[i]);
    }
    return split ? llama_model_load_from_splits(paths, n, params) : llama_model_load_from_file(paths[0], params);
}
