// Devices that the child of a fork cannot use. CUDA answers every call with an error there, and llama.cpp asks each device
// that is listed for its type whenever a model is loaded, also for one that is to stay on the CPU.
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "shim.h"

#include <dlfcn.h>

#include <cstring>

int moebind_leave_devices(const char * backend) {
    int left = 0;
    for (size_t i = ggml_backend_reg_count(); i-- > 0;) {
        ggml_backend_reg_t reg = ggml_backend_reg_get(i);
        if (std::strcmp(ggml_backend_reg_name(reg), backend) != 0) {
            continue;
        }
        // Its code stays: what was made with it before the fork is still there, and its destructors must not run.
        Dl_info info;
        if (dladdr(reinterpret_cast<void *>(reg->iface.get_name), &info) != 0) {
            dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        }
        left += static_cast<int>(ggml_backend_reg_dev_count(reg));
        ggml_backend_unload(reg);
    }
    return left;
}
