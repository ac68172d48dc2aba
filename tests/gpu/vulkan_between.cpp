// Preloaded into a process, it stands between ggml-vulkan and Vulkan's loader.
//
// VULKAN_LOST_AFTER=n loses the device: the n-th submission of work and all after it fail with VK_ERROR_DEVICE_LOST, and so does
// whoever waits for work. VULKAN_CHECK_BINDINGS=1 ends the process when a descriptor set is bound that names a buffer which is
// gone: Mesa's driver of 22.3 writes to it.
#include <dlfcn.h>
#include <vulkan/vulkan.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

int number(const char * name) {
    const char * value = std::getenv(name);
    return value == nullptr ? 0 : std::atoi(value);
}

// --- what the loader has ------------------------------------------------------------------------
template <class F> F loader(const char * name) {
    static void * const library = dlopen("libvulkan.so.1", RTLD_NOW);
    return reinterpret_cast<F>(dlsym(library, name));
}
#define REAL(name) loader<PFN_##name>(#name)  // the loader's own functions find the driver by their first argument

// --- a device that is lost ----------------------------------------------------------------------
std::atomic<int> submissions{ 0 };

bool lost() {
    static const int after = number("VULKAN_LOST_AFTER");
    return after > 0 && submissions >= after;
}

// What was submitted before is waited for in truth: memory that is freed must not be computed in any more.
VkResult or_lost(VkResult result) { return lost() ? VK_ERROR_DEVICE_LOST : result; }

VkResult queue_submit(VkQueue queue, uint32_t n, const VkSubmitInfo * work, VkFence fence) {
    submissions++;
    return lost() ? VK_ERROR_DEVICE_LOST : REAL(vkQueueSubmit)(queue, n, work, fence);
}

VkResult wait_for_fences(VkDevice device, uint32_t n, const VkFence * fences, VkBool32 all, uint64_t timeout) {
    return lost() ? VK_ERROR_DEVICE_LOST : REAL(vkWaitForFences)(device, n, fences, all, timeout);
}

VkResult fence_status(VkDevice device, VkFence fence) { return or_lost(REAL(vkGetFenceStatus)(device, fence)); }

VkResult wait_semaphores(VkDevice device, const VkSemaphoreWaitInfo * info, uint64_t timeout) {
    return lost() ? VK_ERROR_DEVICE_LOST : REAL(vkWaitSemaphores)(device, info, timeout);
}

VkResult queue_wait_idle(VkQueue queue) { return or_lost(REAL(vkQueueWaitIdle)(queue)); }
VkResult device_wait_idle(VkDevice device) { return or_lost(REAL(vkDeviceWaitIdle)(device)); }

// --- sets that name buffers which are gone ------------------------------------------------------
const VkBuffer GONE = reinterpret_cast<VkBuffer>(~std::size_t(0));

std::mutex                                            mutex;
std::map<VkDescriptorSet, std::map<uint32_t, VkBuffer>> sets;

void update_sets(VkDevice device, uint32_t n, const VkWriteDescriptorSet * writes, uint32_t n_copies,
                 const VkCopyDescriptorSet * copies) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < writes[i].descriptorCount; j++) {
                sets[writes[i].dstSet][writes[i].dstBinding + j] = writes[i].pBufferInfo[j].buffer;
            }
        }
    }
    REAL(vkUpdateDescriptorSets)(device, n, writes, n_copies, copies);
}

void destroy_buffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks * allocator) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        for (auto & [set, bindings] : sets) {
            for (auto & [binding, bound] : bindings) {
                bound = bound == buffer ? GONE : bound;
            }
        }
    }
    REAL(vkDestroyBuffer)(device, buffer, allocator);
}

void bind_sets(VkCommandBuffer commands, VkPipelineBindPoint point, VkPipelineLayout layout, uint32_t first, uint32_t n,
               const VkDescriptorSet * bound, uint32_t n_offsets, const uint32_t * offsets) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        for (uint32_t i = 0; i < n; i++) {
            for (const auto & [binding, buffer] : sets[bound[i]]) {
                if (buffer == GONE) {
                    std::fprintf(stderr, "binding %u names a buffer that is gone\n", binding);
                    std::_Exit(3);
                }
            }
        }
    }
    REAL(vkCmdBindDescriptorSets)(commands, point, layout, first, n, bound, n_offsets, offsets);
}

// --- who gets what ------------------------------------------------------------------------------
PFN_vkVoidFunction in_between(const char * name) {
    static const bool checks = number("VULKAN_CHECK_BINDINGS") != 0;
    const struct { const char * name; void * function; bool wanted; } all[] = {
        { "vkQueueSubmit", reinterpret_cast<void *>(queue_submit), true },
        { "vkWaitForFences", reinterpret_cast<void *>(wait_for_fences), true },
        { "vkGetFenceStatus", reinterpret_cast<void *>(fence_status), true },
        { "vkWaitSemaphores", reinterpret_cast<void *>(wait_semaphores), true },
        { "vkQueueWaitIdle", reinterpret_cast<void *>(queue_wait_idle), true },
        { "vkDeviceWaitIdle", reinterpret_cast<void *>(device_wait_idle), true },
        { "vkUpdateDescriptorSets", reinterpret_cast<void *>(update_sets), checks },
        { "vkDestroyBuffer", reinterpret_cast<void *>(destroy_buffer), checks },
        { "vkCmdBindDescriptorSets", reinterpret_cast<void *>(bind_sets), checks },
    };
    for (const auto & each : all) {
        if (each.wanted && std::strcmp(name, each.name) == 0) {
            return reinterpret_cast<PFN_vkVoidFunction>(each.function);
        }
    }
    return nullptr;
}

PFN_vkVoidFunction device_function(VkDevice device, const char * name) {
    const auto ours = in_between(name);
    return ours != nullptr ? ours : REAL(vkGetDeviceProcAddr)(device, name);
}

}  // namespace

// ggml-vulkan asks this for every function, and the one for devices among them.
extern "C" PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    if (std::strcmp(name, "vkGetDeviceProcAddr") == 0) {
        return reinterpret_cast<PFN_vkVoidFunction>(device_function);
    }
    const auto ours = in_between(name);
    return ours != nullptr ? ours : REAL(vkGetInstanceProcAddr)(instance, name);
}
