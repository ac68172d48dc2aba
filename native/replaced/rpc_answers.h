// What the RPC protocol's requests are answered with: how large an answer is, whether it can be true, and what stands in
// its place when a server gives none. Part of rpc_connections.cpp, which includes it after the protocol's structures.
#pragma once

// A command that is not known below would be taken for one without an answer, and its answer for nonsense.
static_assert(RPC_PROTO_MAJOR_VERSION == 8 && RPC_CMD_COUNT == 24,
              "another RPC protocol: tell rpc_question what is answered to its commands, then change these numbers");

// A request as far as answers depend on it.
struct rpc_question {
    uint8_t              command = 0;
    std::vector<uint8_t> request;  // its beginning: never a tensor's data

    template <class Message> const Message & request_as() const {
        return *reinterpret_cast<const Message *>(request.data());
    }

    // What the backend waits for after this request.
    uint64_t answer_size() const {
        switch (command) {
            case RPC_CMD_HELLO:             return sizeof(rpc_msg_hello_rsp);
            case RPC_CMD_DEVICE_COUNT:      return sizeof(rpc_msg_device_count_rsp);
            case RPC_CMD_GET_ALIGNMENT:     return sizeof(rpc_msg_get_alignment_rsp);
            case RPC_CMD_GET_MAX_SIZE:      return sizeof(rpc_msg_get_max_size_rsp);
            case RPC_CMD_GET_ALLOC_SIZE:    return sizeof(rpc_msg_get_alloc_size_rsp);
            case RPC_CMD_ALLOC_BUFFER:      return sizeof(rpc_msg_alloc_buffer_rsp);
            case RPC_CMD_BUFFER_GET_BASE:   return sizeof(rpc_msg_buffer_get_base_rsp);
            case RPC_CMD_SET_TENSOR_HASH:   return sizeof(rpc_msg_set_tensor_hash_rsp);
            case RPC_CMD_COPY_TENSOR:       return sizeof(rpc_msg_copy_tensor_rsp);
            case RPC_CMD_GET_DEVICE_MEMORY: return sizeof(rpc_msg_get_device_memory_rsp);
            case RPC_CMD_COMM_INIT:         return sizeof(rpc_msg_comm_init_rsp);
            case RPC_CMD_GET_TENSOR:        return request_as<rpc_msg_get_tensor_req>().size;
            case RPC_CMD_GET_TENSOR_2D: {
                const auto & part = request_as<rpc_msg_get_tensor_2d_req>();
                return part.size * part.n_copies;
            }
            default:                        return 0;
        }
    }

    // Whether llama.cpp can work with an answer of the right size. What tensors contain nobody can tell.
    bool plausible(const void * data) const {
        switch (command) {
            case RPC_CMD_DEVICE_COUNT: {
                // Each becomes an object at once, so a wrong number could take all memory.
                return static_cast<const rpc_msg_device_count_rsp *>(data)->device_count <= 256;
            }
            case RPC_CMD_GET_ALIGNMENT: {
                const uint64_t alignment = static_cast<const rpc_msg_get_alignment_rsp *>(data)->alignment;
                return alignment != 0 && (alignment & (alignment - 1)) == 0 && alignment <= (1u << 20);
            }
            case RPC_CMD_GET_MAX_SIZE:
                return static_cast<const rpc_msg_get_max_size_rsp *>(data)->max_size != 0;
            case RPC_CMD_GET_ALLOC_SIZE:
                return static_cast<const rpc_msg_get_alloc_size_rsp *>(data)->alloc_size < (uint64_t(1) << 48);
            case RPC_CMD_ALLOC_BUFFER: {
                const auto * buffer = static_cast<const rpc_msg_alloc_buffer_rsp *>(data);
                return buffer->remote_ptr == 0 || (buffer->remote_size >= request_as<rpc_msg_alloc_buffer_req>().size &&
                                                   buffer->remote_size < (uint64_t(1) << 48));
            }
            case RPC_CMD_BUFFER_GET_BASE:
                return static_cast<const rpc_msg_buffer_get_base_rsp *>(data)->base_ptr != 0;
            case RPC_CMD_COMM_INIT:
                return static_cast<const rpc_msg_comm_init_rsp *>(data)->ok <= 1;
            case RPC_CMD_SET_TENSOR_HASH:
                return static_cast<const rpc_msg_set_tensor_hash_rsp *>(data)->result <= 1;
            case RPC_CMD_COPY_TENSOR:
                return static_cast<const rpc_msg_copy_tensor_rsp *>(data)->result <= 1;
            case RPC_CMD_GET_DEVICE_MEMORY: {
                const auto * memory = static_cast<const rpc_msg_get_device_memory_rsp *>(data);
                return memory->free_mem <= memory->total_mem;
            }
            default:
                return true;
        }
    }

    // An answer in place of a server that gives none.
    void stand_in(void * data, size_t size) const {
        std::memset(data, 0, size);
        switch (command) {
            case RPC_CMD_GET_ALIGNMENT:  // divided by, and kept by the backend until moebind_rpc_link_renew
                static_cast<rpc_msg_get_alignment_rsp *>(data)->alignment = 4096;
                break;
            case RPC_CMD_GET_MAX_SIZE:
                static_cast<rpc_msg_get_max_size_rsp *>(data)->max_size = SIZE_MAX;
                break;
            case RPC_CMD_BUFFER_GET_BASE:  // NULL is an assertion; nobody on this side follows it
                static_cast<rpc_msg_buffer_get_base_rsp *>(data)->base_ptr = 4096;
                break;
            case RPC_CMD_SET_TENSOR_HASH:  // "I have it": nothing more need be sent
                static_cast<rpc_msg_set_tensor_hash_rsp *>(data)->result = 1;
                break;
            case RPC_CMD_COPY_TENSOR:
                static_cast<rpc_msg_copy_tensor_rsp *>(data)->result = 1;
                break;
            case RPC_CMD_GET_DEVICE_MEMORY:  // shares of the model are divided by their sum
                *static_cast<rpc_msg_get_device_memory_rsp *>(data) = { 1, 1 };
                break;
            default:  // no buffer, no devices, tensors of zeros
                break;
        }
    }
};
