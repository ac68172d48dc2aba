// A machine with two memory nodes: node 0 has processors 0 and 2, node 1 has 1 and 3, and the process runs on node 1.
// Preloaded into a process, it plays one to ggml, and prints where threads are put instead of moving them.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PROCESSORS 4

int stat(const char *restrict path, struct stat *restrict found)
{
    unsigned node, cpu;
    char rest;
    int there = -1;
    if (sscanf(path, "/sys/devices/system/node/node%u/cpu%u%c", &node, &cpu, &rest) == 2) {
        there = node < 2 && cpu < PROCESSORS && cpu % 2 == node;
    } else if (sscanf(path, "/sys/devices/system/node/node%u%c", &node, &rest) == 1) {
        there = node < 2;
    } else if (sscanf(path, "/sys/devices/system/cpu/cpu%u%c", &cpu, &rest) == 1) {
        there = cpu < PROCESSORS;
    }
    if (there < 0) {
        int (*real)(const char *, struct stat *) = (int (*)(const char *, struct stat *))dlsym(RTLD_NEXT, "stat");
        return real(path, found);
    }
    if (there) {
        memset(found, 0, sizeof *found);
        return 0;
    }
    errno = ENOENT;
    return -1;
}

int getcpu(unsigned *cpu, unsigned *node)
{
    *cpu = 3;
    *node = 1;
    return 0;
}

// What numactl chose.
int pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *set)
{
    (void)thread;
    CPU_ZERO_S(size, set);
    CPU_SET_S(2, size, set);
    return 0;
}

int pthread_setaffinity_np(pthread_t thread, size_t size, const cpu_set_t *set)
{
    char line[64] = "put on";
    Dl_info caller;
    (void)thread;
    // Drivers, such as Mesa's for Vulkan, have threads of their own, which they put somewhere.
    if (dladdr(__builtin_return_address(0), &caller) == 0 || strstr(caller.dli_fname, "libggml") == NULL) {
        return 0;
    }
    for (int cpu = 0; cpu < PROCESSORS; ++cpu) {
        if (CPU_ISSET_S(cpu, size, set)) {
            snprintf(line + strlen(line), sizeof line - strlen(line), " %d", cpu);
        }
    }
    fprintf(stderr, "%s\n", line);  // in one piece, from whichever thread
    return 0;
}
