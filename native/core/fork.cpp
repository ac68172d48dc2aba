// What has to be done before a process forks, so that its child can compute, and after it.
//
// A child has one thread. What the others had locked at the time of the fork stays locked in it, so the locks that it
// needs are taken for the fork: nobody else holds them then.
#include "ggml-threading.h"
#include "guard.h"
#include "internal.h"
#include "unicode.h"

#include <dlfcn.h>
#include <link.h>

#include <string>
#include <vector>

// The files of ggml's CPU backend that are in the process: one that it is linked to, or the variant that was loaded.
static std::vector<std::string> cpu_backends() {
    std::vector<std::string> found;
    dl_iterate_phdr(
        [](dl_phdr_info * info, size_t, void * to) {
            const std::string path = info->dlpi_name;
            if (path.compare(path.rfind('/') + 1, 11, "libggml-cpu") == 0) {
                static_cast<std::vector<std::string> *>(to)->push_back(path);
            }
            return 0;
        },
        &found);
    return found;
}

// OpenMP keeps a pool of threads for each thread that computed with several. A child has the pool, but not its threads,
// and would wait for them for ever. So the pool of the thread that forks, the only one that its child has, is given up;
// the next computation makes a new one.
static void give_up_openmp() {
    for (const std::string & path : cpu_backends()) {
        void * library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (library == nullptr) {
            continue;
        }
        constexpr int pause_hard = 2;  // omp_pause_hard, of the OpenMP specification
        // Whichever OpenMP that file needs, and whatever its own is called: what repairs a wheel puts one in under a name
        // that no other package has. omp.h would tie us to one.
        if (auto * pause = reinterpret_cast<int (*)(int)>(dlsym(library, "omp_pause_resource_all"))) {
            pause(pause_hard);
        }
        dlclose(library);
    }
}

static std::mutex & fork_mutex() {
    static auto & mutex = *new std::mutex;
    return mutex;
}

// Between moebind_before_fork and moebind_after_fork, in the thread that forks: other libraries' hooks run in it, and objects
// may be collected.
static thread_local bool forking = false;

std::unique_lock<std::mutex> moebind::fork_lock() {
    return forking ? std::unique_lock<std::mutex>() : std::unique_lock(fork_mutex());
}

// Called without the interpreter's lock, which whoever holds one of these may be waiting for.
void moebind_before_fork(void) {
    give_up_openmp();
    fork_mutex().lock();
    forking = true;
    ggml_critical_section_start();
}

void moebind_after_fork(bool in_child) {
    ggml_critical_section_end();
    forking = false;
    fork_mutex().unlock();
    if (in_child) {
        moebind::forget_other_threads();
    }
}

// A static variable that another thread was making at the time of a fork is waited for, too. Most are made in less than a
// microsecond; this one takes a millisecond, at the first text that is read.
void moebind_make_tables(void) { unicode_cpt_flags_from_cpt(0); }
