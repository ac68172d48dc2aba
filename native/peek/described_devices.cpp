// Devices that are only described: what a plan needs of a GPU that is not in this machine. In llama.cpp's simulated
// allocation they are what CUDA's devices are (ggml-cuda.cu), or Vulkan's (ggml-vulkan.cpp): they offer pinned host memory, and
// for batches they take over what has its weights on the host, for which they need room for copies. CUDA's take every
// operation; Vulkan's have limits, `of_vulkan` below. They allocate nothing (what llama.cpp allocates all the same is counted:
// counted_memory.h): a model that is really loaded onto one fails, with llama.cpp's own message.
#include "internal.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <tuple>

namespace {

struct described_device {
    moebind_described        kind;
    std::string              name;
    std::string              description;
    size_t                   memory;
    ggml_backend_device      device;
    ggml_backend_buffer_type buft;
};

described_device & of(ggml_backend_dev_t device) { return *static_cast<described_device *>(device->context); }

const char * backend_name(ggml_backend_t backend) { return of(backend->device).name.c_str(); }
void         backend_free(ggml_backend_t backend) { delete backend; }
ggml_status  backend_compute(ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_FAILED; }

const char * buft_name(ggml_backend_buffer_type_t buft) { return of(buft->device).name.c_str(); }
// What CUDA's is; no driver's minStorageBufferOffsetAlignment is more than Vulkan's here.
size_t buft_alignment(ggml_backend_buffer_type_t buft) { return of(buft->device).kind == MOEBIND_DESCRIBED_CUDA ? 128 : 64; }
// Larger memory is allocated in several parts (suballocation_block_size).
size_t buft_max_size(ggml_backend_buffer_type_t) { return 1ull << 30; }
// llama.cpp reports that it is unable to allocate.
ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t, size_t) { return nullptr; }

// Pinned memory, one type for all devices.
const char *             host_name(ggml_backend_buffer_type_t) { return "GPU_Host"; }
ggml_backend_buffer_type host_type{};

const char *          device_name(ggml_backend_dev_t device) { return of(device).name.c_str(); }
const char *          device_description(ggml_backend_dev_t device) { return of(device).description.c_str(); }
void                  device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) { *free = *total = of(device).memory; }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
    // Asynchronous, with events: several of them are used as a pipeline, as several GPUs are.
    props->caps                       = {};
    props->caps.async                 = true;
    props->caps.host_buffer           = true;
    props->caps.events                = true;
    props->caps.mmap_support          = true;
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    static ggml_guid      guid  = { 'm', 'o', 'e', 'b', 'i', 'n', 'd', ' ', 'd', 'e', 's', 'c', 'r', 'i', 'b', 'e' };
    static const ggml_backend_i iface = [] {
        ggml_backend_i functions = {};
        functions.get_name       = backend_name;
        functions.free           = backend_free;
        functions.graph_compute  = backend_compute;
        return functions;
    }();
    auto * made  = new ggml_backend{};
    made->guid   = &guid;
    made->iface  = iface;
    made->device = device;
    return made;
}

ggml_backend_buffer_type_t device_buft(ggml_backend_dev_t device) { return &of(device).buft; }

// What ggml_backend_vk_device_supports_op says of what models use, by a driver without extensions that lift its limits.
namespace of_vulkan {

constexpr size_t largest = UINT32_MAX;  // maxStorageBufferRange

bool takes_rows(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q1_0:
        case GGML_TYPE_Q2_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ4_NL:
            return true;
        default:
            return false;
    }
}

bool supports(const ggml_tensor * op) {
    for (const ggml_tensor * source : op->src) {
        if (source != nullptr && ggml_nbytes(source) > largest) {
            return false;
        }
    }
    if (ggml_nbytes(op) > largest) {
        return false;
    }
    switch (op->op) {
        case GGML_OP_MUL_MAT_ID:
            return ggml_get_op_params_i32(op, 3) != GGML_PREC_F32;
        case GGML_OP_SET_ROWS:
            return takes_rows(op->type);
        case GGML_OP_FLASH_ATTN_EXT:
            return op->src[1]->ne[0] % 8 == 0 && op->src[2]->ne[0] % 8 == 0 &&
                   (op->src[1]->type == GGML_TYPE_BF16) == (op->src[2]->type == GGML_TYPE_BF16);
        default:
            return true;
    }
}

}  // namespace of_vulkan

bool device_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    return of(device).kind == MOEBIND_DESCRIBED_CUDA || of_vulkan::supports(op);
}

// As get_op_batch_size in ggml-cuda.cu, and Vulkan's.
int64_t batch_size(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS:
            return 0;
        case GGML_OP_MUL_MAT:
            return op->ne[1];
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return op->ne[2];
        default:
            return ggml_nrows(op);
    }
}

bool device_offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    const char * least = std::getenv("GGML_OP_OFFLOAD_MIN_BATCH");
    return batch_size(op) >= (least != nullptr ? std::atoi(least) : 32);
}

ggml_backend_buffer_type_t device_host_buft(ggml_backend_dev_t) { return &host_type; }

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) { return buft == device_buft(device); }

const char *       reg_name(ggml_backend_reg_t) { return "described"; }
size_t             reg_count(ggml_backend_reg_t) { return 0; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) { return nullptr; }

ggml_backend_reg & registry() {
    static ggml_backend_reg made = [] {
        ggml_backend_reg fresh = {};
        fresh.api_version            = GGML_BACKEND_API_VERSION;
        fresh.iface.get_name         = reg_name;
        fresh.iface.get_device_count = reg_count;
        fresh.iface.get_device       = reg_device;
        return fresh;
    }();
    return made;
}

}  // namespace

ggml_backend_dev_t moebind_described_device(moebind_described kind, int32_t number, size_t memory) {
    // Few and small, and models may hold them: they stay.
    static std::map<std::tuple<moebind_described, int32_t, size_t>, std::unique_ptr<described_device>> made;
    const auto lock = moebind::fork_lock();
    std::unique_ptr<described_device> & found = made[{ kind, number, memory }];
    if (found == nullptr) {
        ggml_backend_device_i device = {};
        device.get_name              = device_name;
        device.get_description       = device_description;
        device.get_memory            = device_memory;
        device.get_type              = device_type;
        device.get_props             = device_props;
        device.init_backend          = device_init;
        device.get_buffer_type       = device_buft;
        device.get_host_buffer_type  = device_host_buft;
        device.supports_op           = device_supports_op;
        device.supports_buft         = device_supports_buft;
        device.offload_op            = device_offload_op;
        ggml_backend_buffer_type_i buft = {};
        buft.get_name                   = buft_name;
        buft.alloc_buffer               = buft_alloc;
        buft.get_alignment              = buft_alignment;
        buft.get_max_size               = kind == MOEBIND_DESCRIBED_CUDA ? nullptr : buft_max_size;
        found.reset(new described_device{ kind, "GPU" + std::to_string(number), "described", memory, {}, {} });
        found->device.iface   = device;
        found->device.reg     = &registry();
        found->device.context = found.get();
        found->buft.iface     = buft;
        found->buft.device    = &found->device;
        if (host_type.device == nullptr) {
            host_type.iface              = ggml_backend_cpu_buffer_type()->iface;
            host_type.iface.get_name     = host_name;
            host_type.iface.alloc_buffer = buft_alloc;
            host_type.device             = &found->device;
        }
    }
    return &found->device;
}
