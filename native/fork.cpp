// What has to be done before a process forks, so that its child can compute.
#include "shim.h"

#include <dlfcn.h>

// OpenMP keeps a pool of threads for each thread that computed with several. A child has the pool, but not its threads,
// and would wait for them for ever. So the pool of the thread that forks, the only one that its child has, is given up;
// the next computation makes a new one.
void moebind_before_fork(void) {
    // Whichever OpenMP ggml brought into the process, if any; omp.h would tie us to one.
    void * openmp = dlopen("libgomp.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (openmp == nullptr) {
        return;
    }
    constexpr int pause_hard = 2;  // omp_pause_hard, of the OpenMP specification
    if (auto * pause = reinterpret_cast<int (*)(int)>(dlsym(openmp, "omp_pause_resource_all"))) {
        pause(pause_hard);
    }
    dlclose(openmp);
}
