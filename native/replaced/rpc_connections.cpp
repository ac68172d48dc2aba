// llama.cpp's RPC backend, on connections that always answer.
//
// When a server dies, llama.cpp's own client aborts the process, partly from a thread of its own, below which no guard
// stands; when a server hangs, it waits for ever. This file takes the place of llama.cpp's transport.cpp: the backend is
// compiled as it is, over sockets of ours. Once a connection is lost - the server closed it, sends something that is no
// answer, or says nothing for too long - each further request is answered here with something of the right form that
// llama.cpp can go on with: no memory left, zeros. So its threads, locks and objects stay as they are meant to be,
// everything can be freed, and nothing aborts. The results are worthless from then on, so whoever uses the server asks
// for its state after each call, and raises (src/moebind/backend/rpc_servers.py). llama-server asks nobody: it ends.
//
// The protocol's structures are those of the vendored source, which is included here.
#include "ggml-rpc.cpp"
#include "rpc_answers.h"
#include "rpc_link.h"
#include "rpc_sockets.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>

using steady = std::chrono::steady_clock;

namespace {

// A first Ctrl-C lets the server finish what it computes, since giving up means to load the model again. A second one
// does not wait.
constexpr auto patience = std::chrono::seconds(10);

struct server {
    int         fd          = -1;  // of the connection in use
    std::string lost;              // why, when it was
    int64_t     connect_ms  = 5000;
    int64_t     silence_ms  = 300 * 1000;
};

// Never destroyed: the backend's threads may outlive the interpreter.
std::mutex &                              lock    = *new std::mutex;
std::unordered_map<std::string, server> & servers = *new std::unordered_map<std::string, server>;

// A child of a fork has not the threads that could hold it.
const int at_fork = pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });

std::atomic<int (*)(void)> interrupts{ nullptr };

int asked_to_stop() {
    int (*ask)(void) = interrupts;
    return ask == nullptr ? 0 : ask();
}

// Programs of llama.cpp's ask nobody whether a server was lost, and would pass on what is worth nothing: they end, as
// with llama.cpp's own client.
const bool unwatched = std::strncmp(program_invocation_short_name, "llama-", 6) == 0;

// Whether the other side has closed the connection, or is gone.
bool hung_up(int fd) {
    pollfd asked = { fd, POLLRDHUP, 0 };
    return poll(&asked, 1, 0) > 0;
}

}  // namespace

// Whether this thread serves: then its connections are to clients, and to other servers, with which it exchanges tensors.
static thread_local bool serving = false;

// A connection to one server, or, in a worker, to whom it serves (whose endpoint is empty, and which is simply read).
struct socket_t::impl {
    const int   fd;
    std::string endpoint;
    bool        lost = false;

    // The request that is being made: which of its three parts comes next, and what its answer depends on.
    int          part = 0;
    rpc_question asked;
    bool         answer_begun = false;

    explicit impl(int fd) : fd(fd) {}

    ~impl() {
        if (!endpoint.empty()) {
            std::lock_guard<std::mutex> held(lock);
            server & known = servers[endpoint];
            if (known.fd == fd) {
                known.fd = -1;
            }
        }
        close(fd);
    }

    void lose(const std::string & reason) {
        if (unwatched && !serving && !endpoint.empty()) {
            std::fprintf(stderr, "error: the RPC server %s %s\n", endpoint.c_str(), reason.c_str());
            std::_Exit(EXIT_FAILURE);
        }
        lost = true;
        shutdown(fd, SHUT_RDWR);
        std::lock_guard<std::mutex> held(lock);
        server & known = servers[endpoint];
        if (known.lost.empty()) {
            known.lost = reason;
        }
    }

    bool greeting() const { return asked.command == RPC_CMD_HELLO; }

    std::chrono::milliseconds patience_for_silence() const {
        std::lock_guard<std::mutex> held(lock);
        const server & known = servers[endpoint];
        return std::chrono::milliseconds(greeting() ? known.connect_ms : known.silence_ms);
    }

    // Until the socket can be read or written, or is at its end, which reading and writing tell.
    bool wait(short events) {
        const auto         begun = steady::now();
        steady::time_point pressed{};
        while (true) {
            pollfd    waited = { fd, events, 0 };
            const int ready  = poll(&waited, 1, rpc_sockets::slice_ms);
            if (ready > 0) {
                return true;
            }
            const auto now   = steady::now();
            const int  often = asked_to_stop();
            if (often > 0 && pressed == steady::time_point{}) {
                pressed = now;
            }
            if (often > 1 || (often > 0 && (greeting() || now - pressed > patience))) {
                lose("was given up, since the call that waited for it was interrupted");
                return false;
            }
            // Asked again each time, since it may be shortened meanwhile.
            const auto allowed = patience_for_silence();
            if (now - begun > allowed) {
                char text[100];
                std::snprintf(text, sizeof(text), "%s nothing for %g seconds", events == POLLIN ? "said" : "took",
                              allowed.count() / 1000.0);
                lose(text);
                return false;
            }
        }
    }

    bool send_all(const void * data, size_t size, int flags) {
        const char * next = static_cast<const char *>(data);
        while (size > 0) {
            const ssize_t n = send(fd, next, std::min(size, MAX_CHUNK_SIZE), MSG_NOSIGNAL | MSG_DONTWAIT | flags);
            if (n > 0) {
                next += n;
                size -= size_t(n);
            } else if (n < 0 && errno == EAGAIN) {
                if (!wait(POLLOUT)) {
                    return false;
                }
            } else if (n < 0 && errno != EINTR) {
                lose("closed the connection (" + rpc_sockets::system_says(errno) + ")");
                return false;
            }
        }
        return true;
    }

    bool receive_all(void * data, size_t size) {
        char * next = static_cast<char *>(data);
        while (size > 0) {
            const ssize_t n = recv(fd, next, std::min(size, MAX_CHUNK_SIZE), MSG_DONTWAIT);
            if (n > 0) {
                next += n;
                size -= size_t(n);
            } else if (n == 0) {
                lose("closed the connection");
                return false;
            } else if (errno == EAGAIN) {
                if (!wait(POLLIN)) {
                    return false;
                }
            } else if (errno != EINTR) {
                lose("closed the connection (" + rpc_sockets::system_says(errno) + ")");
                return false;
            }
        }
        return true;
    }

    // Before a request: the server has nothing to say, and is there.
    void look_first() {
        pollfd unasked = { fd, POLLIN | POLLRDHUP, 0 };
        if (poll(&unasked, 1, 0) > 0) {
            char          byte;
            const ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
            lose(n > 0 ? "sent something that it was not asked for" : "closed the connection");
        }
    }

    bool ask(const void * data, size_t size) {
        const int now = part;
        part          = (part + 1) % 3;
        if (now == 0) {
            asked.command = *static_cast<const uint8_t *>(data);
        } else if (now == 2) {  // what was between is the size
            // Answers depend on small requests only; a tensor's data is not copied.
            const auto * bytes = static_cast<const uint8_t *>(data);
            asked.request.assign(bytes, bytes + std::min<size_t>(size, sizeof(rpc_msg_copy_tensor_req)));
            answer_begun = false;
            if (!lost) {
                look_first();
            }
            if (!lost) {
                send_request(data, size);
            }
        }
        return true;
    }

    void send_request(const void * data, size_t size) {
        uint8_t        head[1 + sizeof(uint64_t)] = { asked.command };
        const uint64_t length                     = size;
        std::memcpy(head + 1, &length, sizeof(length));
        if (send_all(head, sizeof(head), size > 0 ? MSG_MORE : 0)) {
            send_all(data, size, 0);
        }
    }

    bool answer(void * data, size_t size) {
        if (!answer_begun) {
            const uint64_t expected  = asked.answer_size();
            uint64_t       announced = 0;
            if (!lost && receive_all(&announced, sizeof(announced)) && announced != expected) {
                lose("answers, but not as an RPC server of llama.cpp's does");
            }
            std::memcpy(data, &expected, sizeof(expected));
            answer_begun = true;
            return !(lost && greeting());
        }
        if (!lost && receive_all(data, size) && !asked.plausible(data)) {
            lose("sent an answer that cannot be true");
        }
        if (!lost && greeting()) {
            const auto * hello = static_cast<const rpc_msg_hello_rsp *>(data);
            if (hello->major != RPC_PROTO_MAJOR_VERSION || hello->minor > RPC_PROTO_MINOR_VERSION) {
                char text[200];
                std::snprintf(text, sizeof(text),
                              "speaks version %d.%d of the protocol, this build %d.%d: use the same llama.cpp on both sides",
                              hello->major, hello->minor, RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION);
                lose(text);
            }
        }
        if (lost) {
            // Nothing was built on this connection yet: the backend gives it up in the thread that wanted it, by an
            // assertion that a guard catches.
            if (greeting()) {
                return false;
            }
            asked.stand_in(data, size);
        }
        return true;
    }

    // A worker's side: as llama.cpp's own.
    bool serve_send(const void * data, size_t size) {
        const char * next = static_cast<const char *>(data);
        while (size > 0) {
            const ssize_t n = send(fd, next, std::min(size, MAX_CHUNK_SIZE), MSG_NOSIGNAL);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n < 0) {
                return false;
            }
            next += n;
            size -= size_t(n);
        }
        return true;
    }

    bool serve_receive(void * data, size_t size) {
        char * next = static_cast<char *>(data);
        while (size > 0) {
            const ssize_t n = recv(fd, next, std::min(size, MAX_CHUNK_SIZE), 0);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n <= 0) {
                return false;
            }
            next += n;
            size -= size_t(n);
        }
        return true;
    }
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}

socket_t::~socket_t() = default;

bool socket_t::send_data(const void * data, size_t size) {
    return pimpl->endpoint.empty() ? pimpl->serve_send(data, size) : pimpl->ask(data, size);
}

bool socket_t::recv_data(void * data, size_t size) {
    return pimpl->endpoint.empty() ? pimpl->serve_receive(data, size) : pimpl->answer(data, size);
}

bool socket_t::flush() { return true; }

// Capabilities are those of RDMA, which goes past sockets.
void socket_t::get_caps(uint8_t * local_caps) { std::memset(local_caps, 0, RPC_CONN_CAPS_SIZE); }

void socket_t::update_caps(const uint8_t *) {}

socket_ptr socket_t::connect(const char * host, int port) {
    sockaddr_in address;
    if (serving) {  // as llama.cpp's own, which tries again
        auto      made = std::make_unique<impl>(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        const int fd   = made->fd;
        if (!rpc_sockets::address_of(host, port, address) ||
            ::connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0) {
            return nullptr;
        }
        rpc_sockets::set_up(fd);
        return socket_ptr(new socket_t(std::move(made)));
    }
    const std::string endpoint = std::string(host) + ":" + std::to_string(port);
    const int         fd       = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return nullptr;
    }
    auto made      = std::make_unique<impl>(fd);
    made->endpoint = endpoint;
    int64_t allowed_ms;
    {
        std::lock_guard<std::mutex> held(lock);
        // Whoever lost this server must notice before it is used again: what it should have told may be missing.
        if (!servers[endpoint].lost.empty()) {
            return nullptr;
        }
        allowed_ms = servers[endpoint].connect_ms;
    }
    rpc_sockets::set_up(fd);
    const std::string failed =
        !rpc_sockets::address_of(host, port, address)
            ? "its name has no IPv4 address"
            : rpc_sockets::connect_within(fd, address, allowed_ms, asked_to_stop);
    if (!failed.empty()) {
        made->lose("does not answer (" + failed + "): check that it runs");
        return nullptr;
    }
    std::lock_guard<std::mutex> held(lock);
    servers[endpoint].fd = fd;
    return socket_ptr(new socket_t(std::move(made)));
}

socket_ptr socket_t::create_server(const char * host, int port) {
    sockaddr_in address;
    if (!rpc_sockets::address_of(host, port, address)) {
        std::fprintf(stderr, "%s is not an IPv4 address or a name of one\n", host);
        return nullptr;
    }
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return nullptr;
    }
    auto made = std::make_unique<impl>(fd);
    rpc_sockets::set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) < 0 || listen(fd, 16) < 0) {
        std::fprintf(stderr, "%s:%d cannot be served: %s\n", host, port, std::strerror(errno));
        return nullptr;
    }
    serving = true;
    rpc_sockets::report_port(fd);
    return socket_ptr(new socket_t(std::move(made)));
}

socket_ptr socket_t::accept() {
    while (true) {
        const int fd = ::accept4(pimpl->fd, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd >= 0) {
            rpc_sockets::set_up(fd);
            return socket_ptr(new socket_t(std::make_unique<impl>(fd)));
        }
        // A client that left before its turn is no reason to stop serving the others.
        if (errno != EINTR && errno != ECONNABORTED) {
            return nullptr;
        }
    }
}

bool rpc_transport_init() { return true; }

void rpc_transport_shutdown() {}

int moebind_rpc_link_state(const char * endpoint, char * reason, size_t size) {
    std::lock_guard<std::mutex> held(lock);
    const auto                  found = servers.find(endpoint);
    if (found == servers.end()) {
        return 0;
    }
    server & known = found->second;
    if (known.lost.empty() && known.fd >= 0 && hung_up(known.fd)) {
        known.lost = "closed the connection";
    }
    if (reason != nullptr) {
        std::snprintf(reason, size, "%s", known.lost.c_str());
    }
    return known.lost.empty() ? (known.fd >= 0 ? 1 : 0) : 2;
}

bool moebind_rpc_link_forget(const char * endpoint) {
    std::lock_guard<std::mutex> held(lock);
    server & known = servers[endpoint];
    if (known.fd >= 0 && !known.lost.empty()) {
        return false;
    }
    known.lost = "";
    return true;
}

void moebind_rpc_link_renew(const char * endpoint) {
    const uint32_t n = ggml_backend_rpc_get_device_count(endpoint);
    for (uint32_t device = 0; device < n; device++) {
        auto * type = static_cast<ggml_backend_rpc_buffer_type_context *>(
            ggml_backend_rpc_buffer_type(endpoint, device)->context);
        const auto dispatcher = get_dispatcher(endpoint);
        type->alignment       = get_alignment(dispatcher, device);
        type->max_size        = get_max_size(dispatcher, device);
    }
}

void moebind_rpc_link_timeouts(const char * endpoint, int64_t connect_ms, int64_t silence_ms) {
    std::lock_guard<std::mutex> held(lock);
    servers[endpoint].connect_ms = connect_ms;
    servers[endpoint].silence_ms = silence_ms;
}

void moebind_rpc_link_report(int file) { rpc_sockets::port_report = file; }

void moebind_rpc_link_interrupts(int (*ask)(void)) { interrupts = ask; }
