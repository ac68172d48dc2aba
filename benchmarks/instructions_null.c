/* Takes the place of llama_decode (LD_PRELOAD): nothing is computed, so that all that is left is what moebind does. */
#include <stdint.h>

struct llama_batch {
    int32_t n_tokens;
    void *  fields[6];
};

int32_t llama_decode(void * context, struct llama_batch batch) {
    (void) context;
    (void) batch;
    return 0;
}

/* Room for any vocabulary, or for four texts of a small one. No token is likelier than another. */
static float logits[1 << 18];

float * llama_get_logits_ith(void * context, int32_t i) {
    (void) context;
    (void) i;
    return logits;
}

float * llama_get_logits(void * context) {
    (void) context;
    return logits;
}
