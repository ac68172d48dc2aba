// A server tells the port that it listens on, if somebody asked for that: with port 0, the system chooses one.
#pragma once

#include "rpc_link.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

// The file to write to, once; -1: none.
static std::atomic<int> port_report{ -1 };

void moebind_rpc_link_report(int file) { port_report = file; }

static void report_port(int listening) {
    const int report = port_report.exchange(-1);
    if (report < 0) {
        return;
    }
    sockaddr_in address{};
    socklen_t   size = sizeof(address);
    if (getsockname(listening, reinterpret_cast<sockaddr *>(&address), &size) == 0) {
        dprintf(report, "%d\n", ntohs(address.sin_port));
    }
    close(report);
}
