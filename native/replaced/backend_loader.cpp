// Part of libggml.so, not of the extension. ggml's registry asks for the backends of graphics cards here
// (cmake/LoadedBackends.cmake) and takes null for an answer: a machine without a driver, or without cuBLAS, has no such devices,
// and everything else of it works. Whatever uses ggml gets the same answer: the extension, llama-server, llama-bench.
#include "ggml-cuda.h"  // ggml_backend_cuda_reg stands for moebind_cuda_backend here
#include "ggml-impl.h"
#include "ggml-vulkan.h"  // and ggml_backend_vk_reg for moebind_vulkan_backend

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace {

struct loaded_backend {
    const char * name;
    const char * driver;    // what it cannot do without; looked for first, since the library may bring half a gigabyte
    const char * library;   // beside this one
    const char * registry;  // its function: the preprocessor does not see into strings
    std::string  failure;
};

loaded_backend cuda   = { "CUDA", "libcuda.so.1", "libggml-cuda.so", "ggml_backend_cuda_reg", "" };
loaded_backend vulkan = { "Vulkan", "libvulkan.so.1", "libggml-vulkan.so", "ggml_backend_vk_reg", "" };

std::nullptr_t failed(loaded_backend & backend, ggml_log_level level, const char * reason) {
    backend.failure = reason != nullptr ? reason : "unknown error";
    ggml_log_internal(level, "%s is not used: %s\n", backend.name, backend.failure.c_str());
    return nullptr;
}

// Beside this library, wherever that lies.
std::string path_of(const char * library) {
    Dl_info here;
    if (dladdr(reinterpret_cast<void *>(&path_of), &here) == 0 || here.dli_fname == nullptr) {
        return library;
    }
    const std::string path = here.dli_fname;
    return path.substr(0, path.rfind('/') + 1) + library;
}

// Vulkan's devices are looked at, so that what a broken driver throws is thrown here.
ggml_backend_reg_t listed(loaded_backend & backend, void * library) {
    // Vulkan's registry only says that something failed. This says what, and does the same.
    if (void * count = dlsym(library, "ggml_backend_vk_get_device_count")) {
        reinterpret_cast<int (*)()>(count)();
    }
    ggml_backend_reg_t reg = reinterpret_cast<ggml_backend_reg_t (*)()>(dlsym(library, backend.registry))();
    for (size_t i = 0; reg != nullptr && &backend == &vulkan && i < ggml_backend_reg_dev_count(reg); i++) {
        ggml_backend_reg_dev_get(reg, i);
    }
    return reg;
}

// Whether there can be a card that Vulkan drives: one has a file of the kernel's. Where there is none, as in most containers, only
// drivers that compute on the processor are left, which ggml does not use; to load all of them takes longer than `moebind plan`.
bool may_have_card() {
    for (const char * variable : { "GGML_VK_VISIBLE_DEVICES", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES" }) {
        if (getenv(variable) != nullptr) {
            return true;  // who chooses knows better
        }
    }
    for (const char * file : { "/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/mali0", "/dev/kgsl-3d0" }) {
        if (access(file, F_OK) == 0) {
            return true;
        }
    }
    return false;
}

ggml_backend_reg_t load(loaded_backend & backend) {
    if (dlopen(backend.driver, RTLD_LAZY | RTLD_LOCAL) == nullptr) {
        return failed(backend, GGML_LOG_LEVEL_INFO, dlerror());
    }
    if (&backend == &vulkan && !may_have_card()) {
        return failed(backend, GGML_LOG_LEVEL_INFO, "there are no device files of graphics cards (/dev/dri)");
    }
    void * library = dlopen(path_of(backend.library).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr || dlsym(library, backend.registry) == nullptr) {
        return failed(backend, GGML_LOG_LEVEL_WARN, dlerror());
    }
    try {
        ggml_backend_reg_t reg = listed(backend, library);
        return reg != nullptr ? reg : failed(backend, GGML_LOG_LEVEL_INFO, "it gave no reason");
    } catch (const std::exception & error) {
        return failed(backend, GGML_LOG_LEVEL_INFO, error.what());
    } catch (...) {
        return failed(backend, GGML_LOG_LEVEL_INFO, nullptr);
    }
}

}  // namespace

// Each is called once, when the registry is made, under its lock.
ggml_backend_reg_t moebind_cuda_backend(void) { return load(cuda); }
ggml_backend_reg_t moebind_vulkan_backend(void) { return load(vulkan); }

extern "C" const char * moebind_unloaded(const char * backend);

// Why a backend is not used, after the registry was made; "" where it is.
const char * moebind_unloaded(const char * backend) {
    for (const loaded_backend * each : { &cuda, &vulkan }) {
        if (std::strcmp(each->name, backend) == 0) {
            return each->failure.c_str();
        }
    }
    return "";
}
