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

/* Room for any vocabulary. Token 300 is the likeliest. */
float * llama_get_logits_ith(void * context, int32_t i) {
    static float logits[1 << 18];
    (void) context;
    (void) i;
    logits[300] = 1;
    return logits;
}
