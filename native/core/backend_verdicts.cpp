// Whether the backends of graphics cards are in this build, and why one is not used where it is.
#include "build_info.h"
#include "shim.h"

#include <cstring>

const char * moebind_built(const char * backend) {
    return std::strcmp(backend, "CUDA") == 0 ? MOEBIND_CUDA_VERDICT : std::strcmp(backend, "Vulkan") == 0 ? MOEBIND_VULKAN_VERDICT : "";
}

#if (GGML_CUDA || GGML_VULKAN) && !defined(MOEBIND_WITHOUT_BACKEND_LOADER)
extern "C" const char * moebind_unloaded(const char * backend);  // replaced/backend_loader.cpp, in libggml.so

const char * moebind_unused(const char * backend) { return moebind_unloaded(backend); }
#else
const char * moebind_unused(const char *) { return ""; }
#endif
