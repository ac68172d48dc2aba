/* Runs a program, and counts the instructions that its first thread executes between two signals SIGUSR1, by the file
 * that they are in: each is a step of its own (ptrace). That is slow, and the same on every processor and under any load.
 *
 *     instructions_steps PROGRAM ARGUMENT...     writes lines "COUNT FILE" to descriptor 3
 */
#include <elf.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

struct part {
    uint64_t begin, end, count;
    char     name[4096];
};

static struct part parts[4096];
static int         n_parts;

/* What is mapped, and may be executed. Nothing is loaded while it counts. */
static void read_parts(pid_t child) {
    char path[64], line[8192], rights[8];
    snprintf(path, sizeof path, "/proc/%d/maps", (int) child);
    FILE * maps = fopen(path, "r");
    while (maps && n_parts < 4096 && fgets(line, sizeof line, maps)) {
        struct part * part = &parts[n_parts];
        part->name[0]      = 0;
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %4095[^\n]", &part->begin, &part->end, rights, part->name) >= 3 &&
            strchr(rights, 'x')) {
            n_parts++;
        }
    }
    if (maps) {
        fclose(maps);
    }
}

static uint64_t address(pid_t child) {
    struct user_regs_struct registers;
    struct iovec            where = { &registers, sizeof registers };
    if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &where) != 0) {
        return 0;
    }
#if defined(__x86_64__)
    return registers.rip;
#else
    return registers.pc;
#endif
}

static void count(uint64_t at) {
    static int last;
    if (last < n_parts && at >= parts[last].begin && at < parts[last].end) {
        parts[last].count++;
        return;
    }
    for (int i = 0; i < n_parts; i++) {
        if (at >= parts[i].begin && at < parts[i].end) {
            last = i;
            parts[i].count++;
            return;
        }
    }
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        return 2;
    }
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) {
            _exit(126);
        }
        execvp(argv[1], argv + 1);
        _exit(127);
    }
    int status, counting = 0;
    while (waitpid(child, &status, 0) == child) {
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        int signal = WSTOPSIG(status);
        if (signal == SIGUSR1) {
            if (!counting) {
                read_parts(child);
            } else {
                for (int i = 0; i < n_parts; i++) {
                    if (parts[i].count) {
                        dprintf(3, "%lu %s\n", parts[i].count, parts[i].name);
                    }
                }
            }
            counting = !counting;
        } else if (signal == SIGTRAP && counting) {
            count(address(child));
        }
        int passed = signal == SIGUSR1 || signal == SIGTRAP ? 0 : signal;
        if (ptrace(counting ? PTRACE_SINGLESTEP : PTRACE_CONT, child, 0, passed) != 0) {
            return 125;
        }
    }
    return 125;
}
