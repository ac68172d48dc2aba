// GGUF files: what gguf.h does not tell, or tells one string at a time. A header is looked through before
// gguf_init_from_file reads it, which takes whatever memory the header claims.
#include "ggml-impl.h"
#include "gguf.h"
#include "shim.h"

#include <algorithm>
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
// gguf_init_from_file would make them all. No vocabulary comes near these, nor all metadata together.
constexpr uint64_t strings_max = 1 << 22;
constexpr uint64_t bytes_max   = 1 << 28;
constexpr uint64_t values_max  = 1 << 16;
// Nor does any model come near these. What claims more is left to gguf_init_from_file, which stops at the first mistake.
constexpr uint64_t tensors_max = 1 << 16;
// What is kept of a header, to be read from there: twice the largest vocabulary's.
constexpr uint64_t kept_max = 1 << 25;

// Reads the structure of a header, and keeps its bytes if they are not too many. Whatever does not add up is left to
// gguf_init_from_file, which reports it. The file can be the beginning of one of `total` bytes.
class header_scan {
  public:
    explicit header_scan(const char * path, uint64_t whole = 0) : file(std::fopen(path, "rb"), std::fclose) {
        if (!file) {
            throw std::runtime_error(std::strerror(errno));
        }
        std::setvbuf(file.get(), nullptr, _IONBF, 0);
        fseeko(file.get(), 0, SEEK_END);
        size  = (uint64_t) ftello(file.get());
        total = whole > size ? whole : size;
    }

    bool metadata() {
        char     magic[4];
        uint32_t version = 0;
        uint64_t n_kv    = 0;
        if (!read(magic) || std::memcmp(magic, GGUF_MAGIC, 4) != 0 || !read(version) || !read(n_tensors) || !read(n_kv)) {
            return false;
        }
        for (uint64_t i = 0; i < n_kv; i++) {
            if (i == values_max) {
                throw std::runtime_error("there are " + std::to_string(n_kv) + " metadata; at most " +
                                         std::to_string(values_max) + " are taken");
            }
            if (!value()) {
                return false;
            }
        }
        return true;
    }

    uint64_t size      = 0;  // what is there
    uint64_t n_tensors = 0;

    // Where the header ends; how many bytes it takes at least when the file ends before; 0 when it does not add up.
    uint64_t end() {
        return metadata() ? tensors() : needed;
    }

    // The same, behind the metadata.
    uint64_t tensors() {
        constexpr uint64_t least = sizeof(uint64_t) + 2 * sizeof(uint32_t) + sizeof(uint64_t);  // a tensor of no dimension
        if (n_tensors > (total - position) / least) {
            return 0;
        }
        for (uint64_t i = 0; i < n_tensors; i++) {
            const uint64_t begin  = position;
            uint32_t       n_dims = 0;
            key.clear();
            if (!string(&key) || !read(n_dims) || n_dims > GGML_MAX_DIMS ||
                !skip(n_dims * sizeof(uint64_t) + sizeof(int32_t) + sizeof(uint64_t))) {
                return needed == 0 ? 0 : std::max(needed, begin + least * (n_tensors - i));
            }
        }
        return position;
    }

    // The bytes from the beginning to here; none if they are too many to be kept, or no longer there.
    std::vector<char> kept() {
        if (position > kept_max || (position > begun + bytes.size() && !fill(0)) || begun != 0) {
            bytes = std::vector<char>();
        }
        bytes.resize(std::min<uint64_t>(bytes.size(), position));
        return std::move(bytes);
    }

  private:
    // Looked at in memory, since a vocabulary is a hundred thousand texts: calls for each would take most of the time.
    bool take(void * into, size_t n) {
        if (!have(n) || (position + n > begun + bytes.size() && !fill(n))) {
            return false;
        }
        std::memcpy(into, bytes.data() + (position - begun), n);
        position += n;
        return true;
    }

    // Read on, to n bytes behind this place at least: with all before it, or from here on where that is too much.
    bool fill(size_t n) {
        constexpr uint64_t at_once = 1 << 20;
        const uint64_t     until   = position + n;
        uint64_t           known   = bytes.size();
        if (begun != 0 || until > kept_max) {
            begun = position;
            known = 0;
            bytes = std::vector<char>(std::max<uint64_t>(n, std::min(size - position, at_once / 16)));
        } else {
            bytes.resize(std::min({ size, kept_max, std::max({ until, known + at_once, 2 * known }) }));
        }
        fseeko(file.get(), (off_t) (begun + known), SEEK_SET);
        bytes.resize(known + std::fread(bytes.data() + known, 1, bytes.size() - known, file.get()));
        return until <= begun + bytes.size();
    }

    // Whether there are n bytes more.
    bool have(uint64_t n) {
        if (n <= size - position) {
            return true;
        }
        needed = n <= total - position ? position + n : 0;
        return false;
    }

    template <class T> bool read(T & into) { return take(&into, sizeof(into)); }

    bool string(std::string * into = nullptr) {
        uint64_t length = 0;
        if (!read(length) || !fits(length, 1, bytes_max, "a text of") || !have(length)) {
            return false;
        }
        if (into != nullptr) {
            into->resize(length < 256 ? length : 256);
            if (!take(into->data(), into->size())) {
                return false;
            }
            length -= into->size();
        }
        return skip(length);
    }

    // Go behind those of the next n texts that are in memory whole; how many they are. A call for each text, with all that
    // it looks at, takes several times as long.
    uint64_t strings_in_memory(uint64_t n) {
        if (position > begun + bytes.size()) {
            return 0;
        }
        const char *       at   = bytes.data() + (position - begun);
        const char * const end  = bytes.data() + bytes.size();
        uint64_t           seen = 0;
        for (uint64_t length = 0; seen < n && end - at >= (ptrdiff_t) sizeof(length); seen++) {
            std::memcpy(&length, at, sizeof(length));
            if (length > (uint64_t) (end - at) - sizeof(length)) {
                break;
            }
            at += sizeof(length) + length;
        }
        position = begun + (uint64_t) (at - bytes.data());
        return seen;
    }

    bool skip(uint64_t n) {
        if (!have(n)) {
            return false;
        }
        position += n;
        return true;
    }

    bool value() {
        int32_t  type = -1;
        uint64_t n    = 1;
        key.clear();
        if (!string(&key) || key.empty() || !read(type)) {
            return false;
        }
        if (type == GGUF_TYPE_ARRAY && (!read(type) || !read(n))) {
            return false;
        }
        if (type == GGUF_TYPE_STRING) {
            if (!fits(n, sizeof(uint64_t), strings_max, "an array of")) {
                return false;
            }
            together(n_strings, n, strings_max, "texts");
            for (uint64_t left = n; left > 0;) {
                const uint64_t begin = position;
                const uint64_t known = strings_in_memory(left);
                if (known == 0 && !string()) {
                    needed = needed == 0 ? 0 : std::max(needed, begin + left * sizeof(uint64_t));
                    return false;
                }
                left -= std::max<uint64_t>(known, 1);
                together(n_bytes, position - begin, bytes_max, "bytes");
            }
            return true;
        }
        const size_t of_one = type >= 0 && type < GGUF_TYPE_COUNT ? gguf_type_size((gguf_type) type) : 0;
        if (of_one == 0 || !fits(n, of_one, bytes_max / of_one, "an array of")) {
            return false;
        }
        together(n_bytes, n * of_one, bytes_max, "bytes");
        return skip(n * of_one);
    }

    // False when the file ends before n of them, which gguf_init_from_file sees too.
    bool fits(uint64_t n, uint64_t of_one, uint64_t most, const char * what) const {
        if (n > (total - position) / of_one) {
            return false;
        }
        if (n > most) {
            throw std::runtime_error("the metadata '" + key + "' is " + what + " " + std::to_string(n) + "; at most " +
                                     std::to_string(most) + " are taken");
        }
        return true;
    }

    // Counts what all metadata have.
    void together(uint64_t & sum, uint64_t n, uint64_t most, const char * what) const {
        sum += n;
        if (sum > most) {
            throw std::runtime_error("the metadata up to '" + key + "' have " + std::to_string(sum) + " " + what +
                                     "; at most " + std::to_string(most) + " are taken");
        }
    }

    std::unique_ptr<FILE, int (*)(FILE *)> file;
    std::vector<char>                      bytes;  // from `begun` on: all that was looked at, and a little more
    uint64_t                               begun     = 0;
    uint64_t                               position  = 0;
    uint64_t                               total     = 0;  // what the whole file has
    uint64_t                               needed    = 0;
    uint64_t                               n_strings = 0;
    uint64_t                               n_bytes   = 0;
    std::string                            key;
};

}  // namespace

gguf_context * moebind_gguf_open(const char * path) {
    const gguf_init_params params = { /*no_alloc =*/ true, /*ctx =*/ nullptr };
    header_scan            scan(path);
    const uint64_t         end = scan.metadata() && scan.n_tensors <= tensors_max ? scan.tensors() : 0;
    std::vector<char>      header;
    if (end != 0 && end <= scan.size) {
        header = scan.kept();
    }
    if (header.empty()) {
        return gguf_init_from_file(path, params);  // it says what is wrong
    }
    // From memory, it takes a third less than by the library's functions for files, two for each text.
    const auto read = [](void * bytes, void * into, uint64_t offset, size_t length) -> size_t {
        const std::vector<char> & from = *(const std::vector<char> *) bytes;
        if (offset > from.size() || length > from.size() - offset) {
            return 0;
        }
        std::memcpy(into, from.data() + offset, length);
        return length;
    };
    return gguf_init_from_callback(read, &header, SIZE_MAX, scan.size, params);
}

uint64_t moebind_gguf_header_end(const char * path, uint64_t total) { return header_scan(path, total).end(); }

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
