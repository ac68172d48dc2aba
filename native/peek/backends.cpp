// The library that a backend came from: ggml does not tell, but any function of the backend does.
#include "backends.h"

#include "ggml-backend-impl.h"
#include "shim.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace {

// A handle of the library, or null. It is never closed, so that the library stays for as long as the process runs.
void * library_of(ggml_backend_reg_t backend) {
    Dl_info info;
    if (dladdr(reinterpret_cast<void *>(backend->iface.get_name), &info) == 0) {
        return nullptr;
    }
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

}  // namespace

void * moebind::find_in_backend(const char * name) {
    for (size_t i = 0; i < ggml_backend_reg_count(); i++) {
        void * library = library_of(ggml_backend_reg_get(i));
        if (void * found = library == nullptr ? nullptr : dlsym(library, name)) {
            return found;
        }
    }
    throw std::runtime_error(std::string(name) + " is in a backend that is not loaded; moebind.init() loads them");
}

// CUDA answers every call with an error in the child of a fork, and llama.cpp asks each device that is listed for its type
// whenever a model is loaded, also for one that is to stay on the CPU.
int moebind_leave_devices(const char * backend) {
    int n_devices = 0;
    for (size_t i = ggml_backend_reg_count(); i-- > 0;) {
        ggml_backend_reg_t reg = ggml_backend_reg_get(i);
        if (std::strcmp(ggml_backend_reg_name(reg), backend) != 0) {
            continue;
        }
        // Its code stays: what was made with it before the fork is still there, and its destructors must not run.
        library_of(reg);
        n_devices += static_cast<int>(ggml_backend_reg_dev_count(reg));
        ggml_backend_unload(reg);
    }
    return n_devices;
}
