// Functions of the library that a backend came from.
#pragma once

namespace moebind {

void * find_in_backend(const char * name);

// A function of a backend that was loaded at run time (MOEBIND_PORTABLE); throws when no loaded backend has it.
template <class Function> Function * in_backend(const char * name) {
    return reinterpret_cast<Function *>(find_in_backend(name));
}

}  // namespace moebind
