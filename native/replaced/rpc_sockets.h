// Plain sockets for rpc_connections.cpp: their options, connecting within a time, and the port that a server was given.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>

namespace rpc_sockets {

// How long to wait before looking for Ctrl-C again.
constexpr int slice_ms = 50;

inline std::string system_says(int error) { return std::string(std::strerror(error)); }

inline void set(int fd, int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof(value)); }

// A machine that is gone does not say so: the system finds out within half a minute.
inline void set_up(int fd) {
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
    set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30 * 1000);
}

inline bool address_of(const char * host, int port, sockaddr_in & address) {
    addrinfo   wanted = {};
    addrinfo * found  = nullptr;
    wanted.ai_family   = AF_INET;
    wanted.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, nullptr, &wanted, &found) != 0) {
        return false;
    }
    std::memcpy(&address, found->ai_addr, sizeof(address));
    address.sin_port = htons(uint16_t(port));
    freeaddrinfo(found);
    return true;
}

// Empty, or why there is no connection. The user is asked now and then whether to stop.
inline std::string connect_within(int fd, const sockaddr_in & address, int64_t allowed_ms, int (*asked_to_stop)()) {
    if (::connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) == 0) {
        return "";
    }
    if (errno != EINPROGRESS) {
        return system_says(errno);
    }
    using steady   = std::chrono::steady_clock;
    const auto end = steady::now() + std::chrono::milliseconds(allowed_ms);
    while (steady::now() < end) {
        pollfd waited = { fd, POLLOUT, 0 };
        if (poll(&waited, 1, slice_ms) > 0) {
            int       error = 0;
            socklen_t size  = sizeof(error);
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
            return error == 0 ? "" : system_says(error);
        }
        if (asked_to_stop() > 0) {
            return "interrupted";
        }
    }
    return "timed out";
}

// See moebind_rpc_link_report.
inline std::atomic<int> port_report{ -1 };

inline void report_port(int fd) {
    const int report = port_report.exchange(-1);
    if (report < 0) {
        return;
    }
    sockaddr_in address{};
    socklen_t   size = sizeof(address);
    if (getsockname(fd, reinterpret_cast<sockaddr *>(&address), &size) == 0) {
        dprintf(report, "%d\n", ntohs(address.sin_port));
    }
    close(report);
}

}  // namespace rpc_sockets
