// GGUF files: what gguf.h does not tell, or tells one string at a time.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "gguf.h"
#include "llama-model.h"
#include "shim.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

// A file can be sparse: it may claim, and hold, an array of a thousand million empty strings and take no room on disk.
// gguf_init_from_file would make them all. No vocabulary comes near these.
constexpr uint64_t strings_max = 1 << 22;
constexpr uint64_t bytes_max   = 1 << 28;

// Reads the metadata's structure and keeps nothing of it. Whatever does not add up is left to gguf_init_from_file, which
// reports it.
class metadata_scan {
  public:
    explicit metadata_scan(const char * path) : file(std::fopen(path, "rb"), std::fclose) {
        if (!file) {
            throw std::runtime_error(std::strerror(errno));
        }
        std::setvbuf(file.get(), nullptr, _IOFBF, 1 << 16);
        fseeko(file.get(), 0, SEEK_END);
        size = (uint64_t) ftello(file.get());
        fseeko(file.get(), 0, SEEK_SET);
    }

    void run() {
        char     magic[4];
        uint32_t version   = 0;
        uint64_t n_tensors = 0;
        uint64_t n_kv      = 0;
        if (!read(magic) || std::memcmp(magic, GGUF_MAGIC, 4) != 0 || !read(version) || !read(n_tensors) || !read(n_kv)) {
            return;
        }
        for (uint64_t i = 0; i < n_kv && value(); i++) {
        }
    }

  private:
    template <class T> bool read(T & into) { return std::fread(&into, sizeof(into), 1, file.get()) == 1; }

    bool string(std::string * into = nullptr) {
        uint64_t length = 0;
        if (!read(length) || !fits(length, 1, bytes_max, "a text of")) {
            return false;
        }
        if (into != nullptr) {
            into->resize(length < 256 ? length : 256);
            if (!into->empty() && std::fread(into->data(), into->size(), 1, file.get()) != 1) {
                return false;
            }
            length -= into->size();
        }
        return skip(length);
    }

    bool skip(uint64_t n) {
        char scratch[512];
        if (n > sizeof(scratch)) {
            return fseeko(file.get(), (off_t) n, SEEK_CUR) == 0;
        }
        return n == 0 || std::fread(scratch, n, 1, file.get()) == 1;
    }

    bool value() {
        int32_t  type = -1;
        uint64_t n    = 1;
        key.clear();
        if (!string(&key) || !read(type)) {
            return false;
        }
        if (type == GGUF_TYPE_ARRAY && (!read(type) || !read(n))) {
            return false;
        }
        if (type == GGUF_TYPE_STRING) {
            bool ok = fits(n, sizeof(uint64_t), strings_max, "an array of");
            for (uint64_t i = 0; i < n && ok; i++) {
                ok = string();
            }
            return ok;
        }
        const size_t of_one = gguf_type_size((gguf_type) type);
        return of_one != 0 && fits(n, of_one, bytes_max / of_one, "an array of") && skip(n * of_one);
    }

    // False when the file ends before n of them, which gguf_init_from_file sees too.
    bool fits(uint64_t n, uint64_t of_one, uint64_t most, const char * what) const {
        if (n > (size - (uint64_t) ftello(file.get())) / of_one) {
            return false;
        }
        if (n > most) {
            throw std::runtime_error("the metadata '" + key + "' is " + what + " " + std::to_string(n) + "; at most " +
                                     std::to_string(most) + " are taken");
        }
        return true;
    }

    std::unique_ptr<FILE, int (*)(FILE *)> file;
    uint64_t                               size = 0;
    std::string                            key;
};

}  // namespace

void moebind_gguf_scan(const char * path) { metadata_scan(path).run(); }

size_t moebind_gguf_strings(const gguf_context * file, int64_t key, char * buffer, size_t size) {
    const size_t n   = gguf_get_arr_n(file, key);
    size_t       end = 0;
    for (size_t i = 0; i < n; i++) {
        const char * text   = gguf_get_arr_str(file, key, i);
        const size_t length = std::strlen(text) + 1;
        if (end + length <= size) {
            std::memcpy(buffer + end, text, length);
        }
        end += length;
    }
    return end;
}

int64_t moebind_gguf_repeated(const gguf_context * file, int64_t key) {
    // A table of indices, at most half full: a tenth of what a std::unordered_set takes over a vocabulary.
    const size_t n    = gguf_get_arr_n(file, key);
    size_t       size = 16;
    while (size < 2 * n) {
        size *= 2;
    }
    std::vector<uint32_t> seen(size, UINT32_MAX);
    for (size_t i = 0; i < n; i++) {
        const std::string_view text = gguf_get_arr_str(file, key, i);
        if (text.empty()) {
            continue;  // llama.cpp gives each of them a text of its own
        }
        size_t at = std::hash<std::string_view>{}(text) & (size - 1);
        for (; seen[at] != UINT32_MAX; at = (at + 1) & (size - 1)) {
            if (text == gguf_get_arr_str(file, key, seen[at])) {
                return (int64_t) i;
            }
        }
        seen[at] = (uint32_t) i;
    }
    return -1;
}

const char * moebind_model_unreadable(const llama_model * model) {
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (tensor->buffer == nullptr || tensor->buffer->iface.get_tensor == nullptr) {
            return name.c_str();
        }
    }
    return nullptr;
}
