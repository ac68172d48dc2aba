// Part of libggml.so, not of the extension. ggml's registry asks for the CUDA backend here (cmake/CudaBackend.cmake) and
// takes null for an answer: a machine without a driver, or without cuBLAS, has no CUDA devices, and everything else of it
// works. Whatever uses ggml gets the same answer: the extension, llama-server, llama-bench.
#include "ggml-cuda.h"  // ggml_backend_cuda_reg stands for moebind_cuda_backend here
#include "ggml-impl.h"

#include <dlfcn.h>

#include <string>

namespace {

std::string & failure() {
    static std::string text;
    return text;
}

ggml_backend_reg_t failed(ggml_log_level level) {
    const char * reason = dlerror();
    failure()           = reason != nullptr ? reason : "unknown error";
    ggml_log_internal(level, "CUDA is not used: %s\n", failure().c_str());
    return nullptr;
}

// Beside this library, wherever that lies.
std::string library() {
    Dl_info here;
    if (dladdr(reinterpret_cast<void *>(&library), &here) == 0 || here.dli_fname == nullptr) {
        return "libggml-cuda.so";
    }
    const std::string path = here.dli_fname;
    return path.substr(0, path.rfind('/') + 1) + "libggml-cuda.so";
}

}  // namespace

// Called once, when the registry is made, under its lock.
ggml_backend_reg_t ggml_backend_cuda_reg(void) {
    // Without a driver cuBLAS, which has half a gigabyte, need not be looked for.
    if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) {
        return failed(GGML_LOG_LEVEL_INFO);
    }
    void * handle = dlopen(library().c_str(), RTLD_NOW | RTLD_LOCAL);
    // The backend's own name for it: the preprocessor does not see into strings.
    void * made = handle != nullptr ? dlsym(handle, "ggml_backend_cuda_reg") : nullptr;
    if (made == nullptr) {
        return failed(GGML_LOG_LEVEL_WARN);
    }
    return reinterpret_cast<ggml_backend_reg_t (*)()>(made)();
}

extern "C" const char * moebind_cuda_unloaded(void);

// Why CUDA is not used, after the registry was made; "" where it is.
const char * moebind_cuda_unloaded(void) { return failure().c_str(); }
