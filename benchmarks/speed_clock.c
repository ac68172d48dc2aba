/* Stands before llama_decode (LD_PRELOAD), and counts the time in it: what is outside is then known exactly. llama.cpp's
   own count begins after it has looked at the batch. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <time.h>

struct llama_batch {
    int32_t n_tokens;
    void *  fields[6];
};

static double inside_us;

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e6 * (double) now.tv_sec + 1e-3 * (double) now.tv_nsec;
}

int32_t llama_decode(void * context, struct llama_batch batch) {
    static int32_t (*real)(void *, struct llama_batch);
    if (!real) {
        *(void **) &real = dlsym(dlopen("libllama.so", RTLD_LAZY | RTLD_NOLOAD), "llama_decode");
    }
    const double  begun = now_us();
    const int32_t code  = real(context, batch);
    inside_us += now_us() - begun;
    return code;
}

/* Microseconds that this process has spent in it. */
double speed_clock_inside_us(void) {
    return inside_us;
}
